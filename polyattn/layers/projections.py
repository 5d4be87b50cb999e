"""What goes into the attention of heads and what comes out: projections of x, norms of heads, a gate, the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from polyattn.arrays import Array, backend_of
from polyattn.layers.activations import sigmoid
from polyattn.layers.attending import OneAttention
from polyattn.layers.heads import heads_first
from polyattn.layers.initializers import ZEROS, Distribution, initializer
from polyattn.layers.layer import Layer, Parameter, Params, linear
from polyattn.layers.norm import Norm

__all__ = ["Projections"]


@dataclass(frozen=True)
class Projections(OneAttention):
    """The part of `MultiHeadAttention` before the attention itself, and the part behind it."""

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    output_projection: bool = True
    qk_norm: Norm | tuple[Norm, Norm] | None = None
    v_norm: Norm | None = None
    tied_kv: bool = False
    output_gate: Literal["entry", "head"] | None = None
    initializer: str | Distribution = "xavier_packed"

    def __post_init__(self) -> None:
        self.check_sizes(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
        )
        self.check_heads(self.num_heads, self.head_dim, self.kv_heads)
        for name, norm in self.head_norms.items():
            count = self.num_heads if name == "q_norm" else self.kv_heads
            if norm.dim != self.width and (name == "v_norm" or norm.dim != count * self.width):
                which = "qk_norm" if name != "v_norm" else name
                all_heads = (
                    "" if name == "v_norm" else f", or {count * self.width}, that of all heads of {name[0]}"
                )
                raise ValueError(
                    f"{self.name}: expected {which} of dim {self.width}, the width of a head{all_heads}, got {norm.dim}; "
                    f"make it for {self.width}"
                )
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def source_dim(self) -> int:
        """The width of what keys and values are made from."""
        return self.embed_dim

    @property
    def own_kv(self) -> bool:
        """Whether it has keys and values of its own."""
        return True

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def width(self) -> int:
        """The width D of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def head_norms(self) -> dict[str, Norm]:
        """The norms of q, k and v, by the names of their params."""
        pair = self.qk_norm if isinstance(self.qk_norm, tuple) else (self.qk_norm, self.qk_norm)
        found = dict(zip(("q_norm", "k_norm", "v_norm"), (*pair, self.v_norm), strict=True))
        return {
            name: norm
            for name, norm in found.items()
            if norm is not None and (name == "q_norm" or self.own_kv)
        }

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        heads = {"q": self.num_heads}
        if self.own_kv:
            heads |= dict.fromkeys("k" if self.tied_kv else "kv", self.kv_heads)
        packed = sum(heads.values()) * self.width if self.initializer == "xavier_packed" else None
        into, out_of = (
            ("glorot_uniform", "torch_linear") if packed is not None else (self.initializer, self.initializer)
        )
        found: dict[str, Parameter | Layer] = {}
        for name, count in heads.items():
            fan_in = self.embed_dim if name == "q" else self.source_dim
            drawn = initializer(self.name, into, fan_in, packed or count * self.width)
            found[f"w_{name}"] = Parameter((fan_in, count, self.width), drawn)
            if self.qkv_bias:
                found[f"b_{name}"] = Parameter((count, self.width), ZEROS)
        found |= self.head_norms
        if self.output_gate is not None:
            gates = (self.num_heads, self.width) if self.output_gate == "entry" else (self.num_heads,)
            drawn = initializer(self.name, into, self.embed_dim, packed or math.prod(gates))
            found["w_g"] = Parameter((self.embed_dim, *gates), drawn)
        if self.output_projection:
            drawn = initializer(self.name, out_of, self.num_heads * self.width, self.embed_dim)
            found["w_o"] = Parameter((self.num_heads, self.width, self.embed_dim), drawn)
            if self.out_bias:
                found["b_o"] = Parameter((self.embed_dim,), ZEROS)
        return found

    def project(self, params: Params, x: Array, context: Array) -> tuple[Array, Array, Array]:
        """The queries, keys and values of every head, (..., H, L, D) and (..., Hkv, S, D), before rotation."""
        return self.queries(params, x), *self.keys_values(params, context)

    def queries(self, params: Params, x: Array) -> Array:
        """The queries of every head, (..., H, L, D)."""
        return heads_first(self._normed(params, "q", self._mapped(params, "q", x)))

    def keys_values(self, params: Params, context: Array) -> tuple[Any, Any]:
        """The keys and values of every kv head, (..., Hkv, S, D), None where it has none of its own."""
        if not self.own_kv:
            return None, None
        k = self._mapped(params, "k", context)
        v = k if self.tied_kv else self._mapped(params, "v", context)
        return heads_first(self._normed(params, "k", k)), heads_first(self._normed(params, "v", v))

    def _mapped(self, params: Params, name: str, x: Array) -> Array:
        """x through the linear map of that name: (..., L, H, D)."""
        return linear(x, params[f"w_{name}"], params.get(f"b_{name}"))

    def _normed(self, params: Params, name: str, x: Array) -> Array:
        """The norm of each head of x (..., L, H, D), or of all of them together, as its dim says; x where there is none."""
        norm = self.head_norms.get(f"{name}_norm")
        if norm is None or norm.dim == x.shape[-1]:
            return x if norm is None else norm(params[f"{name}_norm"], x)
        xp = backend_of(x).xp
        return xp.reshape(norm(params[f"{name}_norm"], xp.reshape(x, (*x.shape[:-2], norm.dim))), x.shape)

    def join(self, params: Params, x: Array, heads: Array) -> Array:
        """The heads (..., H, L, D) side by side, through gate and output projection if these are there."""
        xp, width = backend_of(heads).xp, self.num_heads * self.width
        heads = heads_first(heads)  # its own inverse: (..., L, H, D)
        if self.output_gate is not None:
            gate = sigmoid(linear(x, params["w_g"]))
            heads = heads * (gate if self.output_gate == "entry" else gate[..., None])
        joined = xp.reshape(heads, (*heads.shape[:-2], width))
        if not self.output_projection:
            return joined
        return linear(joined, xp.reshape(params["w_o"], (width, self.embed_dim)), params.get("b_o"))
