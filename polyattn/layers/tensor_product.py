"""Tensor product attention: queries, keys and values are sums of a few outer products, and a cache keeps their factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn._attention import AuxRequest, Wish
from polyattn.arrays import Array, backend_of
from polyattn.caches import Cache, KVCache
from polyattn.layers.attending import AttentionLayer
from polyattn.layers.heads import all_of, heads_first, joined, positions_of
from polyattn.layers.initializers import Distribution, initializer
from polyattn.layers.layer import LayerResult, Parameter, Params, linear
from polyattn.rotary import Rotary

__all__ = ["TensorProductAttention"]


@dataclass(frozen=True)
class TensorProductAttention(AttentionLayer):
    """Self-attention whose heads share factors: q = A_q(x)^T B_q(x) / R_q is (H, D), and k and v alike (TPA).

        q_h = sum_r A_q(x)[r, h] rotary(B_q(x)[r]) / q_rank,  k_h alike,  v_h = sum_r A_v(x)[r, h] B_v(x)[r] / v_rank
        out = concat_h(softmax(q_h k_h^T / sqrt(D)) v_h) W_o

    Every factor is a linear map of x. Params, with E = embed_dim, D = head_dim: w_aq (E, q_rank, H), w_bq (E,
    q_rank, D), w_ak, w_bk with k_rank, w_av, w_bv with v_rank, w_o (H, D, E). No biases. Turning B turns every
    head, so that the cached key is a factor that was turned once: k_rank (H + D) + v_rank (H + D) numbers a token,
    instead of 2 H D.

        layer(params, x, mask=, bias=, is_causal=, dropout_seed=) -> out
        layer.run(params, x, ..., cache=, return_aux=) -> LayerResult(out, cache, aux)

    The attention is that of all heads: beside a cache the keys and values of its tokens are formed for each call.

    Source: Zhang 2025, arXiv:2501.06425, section 3.1.

    >>> import numpy as np
    >>> layer = TensorProductAttention(8, 2, q_rank=3, k_rank=2, v_rank=2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8)), is_causal=True).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    q_rank: int
    k_rank: int
    v_rank: int
    head_dim: int | None = None
    rotary: Rotary | None = None
    scale: float | None = None
    is_causal: bool = False
    dropout_rate: float = 0.0
    implementation: Wish = "auto"
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            q_rank=self.q_rank,
            k_rank=self.k_rank,
            v_rank=self.v_rank,
            head_dim=self.head_dim,
        )
        self.check_heads(self.num_heads, self.head_dim)
        self.check_rate(self.dropout_rate)
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def width(self) -> int:
        """The width D of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    def parameters(self) -> Mapping[str, Parameter]:
        heads, width = self.num_heads, self.width
        found = {}
        for name, rank in (("q", self.q_rank), ("k", self.k_rank), ("v", self.v_rank)):
            for factor, n in (("a", heads), ("b", width)):
                drawn = initializer(self.name, self.initializer, self.embed_dim, rank * n)
                found[f"w_{factor}{name}"] = Parameter((self.embed_dim, rank, n), drawn)
        out = initializer(self.name, self.initializer, heads * width, self.embed_dim)
        return found | {"w_o": Parameter((heads, width, self.embed_dim), out)}

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> KVCache:
        """A cache of factors for this layer, without tokens."""
        each = self.num_heads + self.width
        return KVCache.empty(batch, 1, capacity, self.k_rank * each, self.v_rank * each, like=like)

    def run(
        self,
        params: Params,
        x: Array,
        *,
        mask: Any = None,
        bias: Array | None = None,
        is_causal: bool | None = None,
        cache: Cache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        self.check(params, self.embed_dim, x=x)
        if cache is not None:
            self.check_cache(cache)
        start = 0 if cache is None else cache.length
        at = positions_of(x, start)
        q, k, v = (self._factors(params, name, x, at) for name in "qkv")
        if cache is not None:
            cache = cache.append(k[..., None, :, :], v[..., None, :, :])
            k, v = cache.key[..., 0, :, :], cache.value[..., 0, :, :]
        heads, aux = self.attend(
            self._heads(q, self.q_rank),
            self._heads(k, self.k_rank),
            self._heads(v, self.v_rank),
            mask=all_of(None if cache is None else cache.mask, mask),
            bias=bias,
            is_causal=self.is_causal if is_causal is None else is_causal,
            query_offset=start,
            key_positions=None if cache is None or cache.in_order else cache.positions,
            scale=self.scale,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            implementation=self.implementation,
        )
        return LayerResult(joined(heads, params["w_o"]), cache, aux)

    def _factors(self, params: Params, name: str, x: Array, at: Array) -> Array:
        """A and B, those of queries and keys turned, side by side as one row a token: (..., L, R (H + D))."""
        xp = backend_of(x).xp
        a, b = linear(x, params[f"w_a{name}"]), linear(x, params[f"w_b{name}"])
        if self.rotary is not None and name != "v":
            b = self.rotary(b, at, layout="BLHD")
        return xp.concat([xp.reshape(f, (*x.shape[:-1], math.prod(f.shape[-2:]))) for f in (a, b)], axis=-1)

    def _heads(self, factors: Array, rank: int) -> Array:
        """A^T B / R: (..., L, R (H + D)) -> (..., H, L, D)."""
        backend, heads = backend_of(factors), self.num_heads
        xp, lead = backend.xp, tuple(factors.shape[:-1])
        compute = backend.astype(factors, backend.compute_dtype(factors.dtype))
        a = xp.reshape(compute[..., : rank * heads], (*lead, rank, heads))
        b = xp.reshape(compute[..., rank * heads :], (*lead, rank, self.width))
        return heads_first(backend.astype(backend.matmul(xp.matrix_transpose(a), b) / rank, factors.dtype))
