"""Layers that look at one position at a time: linear maps, embeddings, the MLP of a transformer block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from polyattn.arrays import Array, backend_of, is_array
from polyattn.arrays.numbers import SameArray
from polyattn.dropout import drop
from polyattn.layers.activations import ACTIVATIONS, GATED
from polyattn.layers.initializers import ZEROS, Distribution, Normal, initializer
from polyattn.layers.layer import Layer, Parameter, Params, linear

__all__ = ["MLP", "Embedding", "Linear"]

_SMALL = Normal(0.02)  # as GPT-2 and BERT begin


@dataclass(frozen=True)
class Linear(Layer):
    """x W + b: (..., length, in_dim) -> (..., length, out_dim). Params: w (in_dim, out_dim), b (out_dim,)."""

    in_dim: int
    out_dim: int
    _: KW_ONLY
    use_bias: bool = True
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(in_dim=self.in_dim, out_dim=self.out_dim)

    def parameters(self) -> Mapping[str, Parameter]:
        return _affine(self, "w", "b", self.in_dim, self.out_dim)

    def __call__(self, params: Params, x: SameArray) -> SameArray:
        self.check(params, self.in_dim, x=x)
        return linear(x, params["w"], params.get("b"))


@dataclass(frozen=True)
class Embedding(Layer):
    """Row number token of a table: integers (..., length) -> (..., length, dim). Params: table (size, dim)."""

    size: int
    dim: int
    _: KW_ONLY
    initializer: Distribution = _SMALL

    def __post_init__(self) -> None:
        self.check_sizes(size=self.size, dim=self.dim)

    def parameters(self) -> Mapping[str, Parameter]:
        return {"table": Parameter((self.size, self.dim), self.initializer)}

    def __call__(self, params: Params, tokens: Array) -> Array:
        if not is_array(tokens) or not backend_of(tokens).isdtype(tokens.dtype, "integral"):
            raise TypeError(
                f"{self.name}: expected an array of integer tokens, got "
                f"{getattr(tokens, 'dtype', tokens)!r}; convert them to integers"
            )
        backend = self.check_params(params, tokens)
        xp = backend.xp
        if 0 not in tokens.shape and backend.is_concrete(tokens):
            with backend.eager():
                low, high = (backend.to_list(extreme(tokens)) for extreme in (xp.min, xp.max))
            if low < 0 or high >= self.size:
                raise ValueError(
                    f"{self.name}: expected tokens from 0 to {self.size - 1}, got some from {low} to {high}; "
                    "the table has no such rows"
                )
        rows = backend.take(params["table"], xp.reshape(tokens, (-1,)), axis=0)
        return xp.reshape(rows, (*tokens.shape, self.dim))


@dataclass(frozen=True)
class MLP(Layer):
    """act(x W_in + b_in) W_out + b_out, position by position (Vaswani 2017, equation 2).

    activation: "relu", "gelu" (exact), "gelu_tanh", "silu"; or with a gate, "swiglu", "geglu", "geglu_tanh", whose
    hidden layer is silu (gelu, gelu_tanh) of (x W_gate + b_gate) times (x W_in + b_in) (Shazeer 2020,
    arXiv:2002.05202, equation 5; Llama, Gemma), "clipped_swiglu" that of gpt-oss. PyTorch and Keras mean the exact function by "gelu", Flax and
    Equinox the tanh one, so it has no default.

    Params: w_in, w_gate (embed_dim, hidden_dim), b_in, b_gate (hidden_dim,), w_out (hidden_dim, embed_dim),
    b_out (embed_dim,). dropout_rate drops hidden entries where the call has a dropout_seed.

    >>> import numpy as np
    >>> mlp = MLP(2, 8, activation="swiglu", use_bias=False)
    >>> mlp(mlp.init(0, like=np.zeros(())), np.ones((3, 2))).shape
    (3, 2)
    """

    embed_dim: int
    hidden_dim: int
    _: KW_ONLY
    activation: str
    use_bias: bool = True
    dropout_rate: float = 0.0
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(embed_dim=self.embed_dim, hidden_dim=self.hidden_dim)
        self.check_rate(self.dropout_rate)
        if self.activation not in (known := {**ACTIVATIONS, **GATED}):
            raise ValueError(
                f"{self.name}: expected activation among {', '.join(known)}, got "
                f"{self.activation!r}; take the one that the model was trained with"
            )

    def parameters(self) -> Mapping[str, Parameter]:
        def affine(suffix: str, fan_in: int, fan_out: int) -> Mapping[str, Parameter]:
            return _affine(self, f"w_{suffix}", f"b_{suffix}", fan_in, fan_out)

        gate = affine("gate", self.embed_dim, self.hidden_dim) if self.activation in GATED else {}
        return {
            **affine("in", self.embed_dim, self.hidden_dim),
            **gate,
            **affine("out", self.hidden_dim, self.embed_dim),
        }

    def __call__(self, params: Params, x: SameArray, *, dropout_seed: int | Array | None = None) -> SameArray:
        self.check(params, self.embed_dim, x=x)
        hidden = linear(x, params["w_in"], params.get("b_in"))
        if self.activation in GATED:
            hidden = GATED[self.activation](linear(x, params["w_gate"], params.get("b_gate")), hidden)
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        hidden = drop(hidden, self.dropout_rate, dropout_seed)
        return linear(hidden, params["w_out"], params.get("b_out"))


def _affine(layer: Linear | MLP, w: str, b: str, fan_in: int, fan_out: int) -> dict[str, Parameter]:
    drawn = initializer(layer.name, layer.initializer, fan_in, fan_out)
    found = {w: Parameter((fan_in, fan_out), drawn)}
    return found | {b: Parameter((fan_out,), ZEROS)} if layer.use_bias else found
