"""Dot-product attention with projections: the one layer that most others are a name for.

The way of a call: `__call__` -> `run` -> `project` (x to heads) -> `attend` (heads to heads) -> `_join` (heads to x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial, reduce
from operator import and_
from typing import Any, Literal

from polyattn._attention import AttentionAux, AuxRequest, Wish
from polyattn.arrays import Array, backend_of, is_array
from polyattn.caches import Cache, KVCache
from polyattn.layers.attending import OneAttention
from polyattn.layers.initializers import ZEROS, Distribution, initializer
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params, linear
from polyattn.layers.norm import LayerNorm, RMSNorm
from polyattn.masks import Mask, from_array, mask_mod
from polyattn.mods import ScoreMod
from polyattn.rotary import Rotary

__all__ = ["MultiHeadAttention"]


@dataclass(frozen=True)
class MultiHeadAttention(OneAttention):
    """out = concat_h(softmax(q_h k_h^T / sqrt(D)) v_h) W_o, with q = x W_q + b_q, k, v likewise from context.

    Shapes: x (..., L, embed_dim), context (..., S, context_dim); context=None is self-attention. Params, with
    E = embed_dim, C = context_dim: w_q (E, H, D), w_k and w_v (C, Hkv, D), w_o (H, D, E), biases of these maps
    b_q (H, D), b_k, b_v (Hkv, D), b_o (E,); sinks (H,) with sinks=True. head_dim D is E / H unless given.
    Without output_projection the heads are returned side by side, (..., L, H D).

    num_kv_heads < num_heads is grouped-query attention. mask, score_mod, scale, implementation: as `attention`
    takes them, part of the layer. sinks: learned extra logits, one a head, at first 0 (GPT-OSS). rotary: a
    `polyattn.rotary.Rotary` for q and k. qk_norm: a norm of dim D for each head of q and k. is_causal: the
    default of the call. context_length: the most keys that a call may have.

        layer(params, x, context=None, mask=, bias=, is_causal=, query_offset=, dropout_seed=) -> out
        layer.run(params, x, ..., cache=, return_aux=) -> LayerResult(out, cache, aux)

    mask: hides in addition; broadcasts to (..., H, L, S), as does bias, which is added to the scores. cache: one
    of `polyattn.caches` with the earlier tokens of x; x continues them, and S is the number of its slots.
    dropout_seed: weights are dropped only where there is one.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.2.2; sinks: Xiao 2023, arXiv:2309.17453, section 3.3.

    >>> import numpy as np
    >>> layer = MultiHeadAttention(8, 2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    num_kv_heads: int | None = None
    head_dim: int | None = None
    context_dim: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    output_projection: bool = True
    is_causal: bool = False
    context_length: int | None = None
    dropout_rate: float = 0.0
    scale: float | None = None
    mask: Mask | None = None
    score_mod: ScoreMod | None = None
    sinks: bool = False
    rotary: Rotary | None = None
    qk_norm: LayerNorm | RMSNorm | None = None
    implementation: Wish = "auto"
    initializer: str | Distribution = "xavier_packed"

    def __post_init__(self) -> None:
        self.check_sizes(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            context_dim=self.context_dim,
            context_length=self.context_length,
        )
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(
                f"{self.name}: expected num_heads to divide embed_dim, got embed_dim={self.embed_dim} and "
                f"num_heads={self.num_heads}; change one of them, or give head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: expected num_kv_heads to divide num_heads, got num_heads={self.num_heads} and "
                f"num_kv_heads={self.kv_heads}; each kv head serves equally many query heads"
            )
        self.check_rate(self.dropout_rate)
        if self.qk_norm is not None and self.qk_norm.dim != self.width:
            raise ValueError(
                f"{self.name}: expected qk_norm of dim {self.width}, the width of a head, got {self.qk_norm.dim}; "
                f"make it for {self.width}"
            )
        if not isinstance(self.sinks, bool):
            raise TypeError(
                f"{self.name}: expected sinks=True or False, got {self.sinks!r}; the logits themselves are the "
                "parameter 'sinks'"
            )
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def width(self) -> int:
        """The width D of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        heads = {"q": self.num_heads, "k": self.kv_heads, "v": self.kv_heads}
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
        if self.qk_norm is not None:
            found |= {"q_norm": self.qk_norm, "k_norm": self.qk_norm}
        if self.output_projection:
            drawn = initializer(self.name, out_of, self.num_heads * self.width, self.embed_dim)
            found["w_o"] = Parameter((self.num_heads, self.width, self.embed_dim), drawn)
            if self.out_bias:
                found["b_o"] = Parameter((self.embed_dim,), ZEROS)
        return found | {"sinks": Parameter((self.num_heads,), ZEROS)} if self.sinks else found

    def project(self, params: Params, x: Array, context: Array) -> tuple[Array, Array, Array]:
        """The queries, keys and values of every head, (..., H, L, D) and (..., Hkv, S, D), before rotation."""
        q, k, v = (
            _heads_first(linear(given, params[f"w_{name}"], params.get(f"b_{name}")))
            for name, given in (("q", x), ("k", context), ("v", context))
        )
        if self.qk_norm is not None:
            q, k = self.qk_norm(params["q_norm"], q), self.qk_norm(params["k_norm"], k)
        return q, k, v

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> KVCache:
        """A cache for this layer, without tokens."""
        return KVCache.empty(batch, self.kv_heads, capacity, self.width, like=like)

    def run(
        self,
        params: Params,
        x: Array,
        context: Array | None = None,
        *,
        mask: Any = None,
        bias: Array | None = None,
        is_causal: bool | None = None,
        query_offset: int | Literal["end"] | Array | None = None,
        cache: Cache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        q, k, v = self.project(params, x, self.source(params, x, context))
        if cache is not None:
            self.check_cache(cache)
            if context is not None or query_offset is not None:
                raise ValueError(
                    f"{self.name}: expected neither context nor query_offset with a cache, got "
                    f"{'context' if context is not None else 'query_offset'}; a cache holds the earlier tokens of x, "
                    "and x continues them"
                )
            query_offset = cache.length
        if self.rotary is not None:
            q, k = self._turn(self.rotary, q, k, query_offset, cached=cache is not None)
        attend: Callable[..., Any] = self.attend
        if cache is not None:
            cache = cache.append(k, v)
            if hasattr(cache, "attend"):  # its keys are never there as one array
                attend = partial(self._attend_by, cache)
            else:
                k, v = cache.key, cache.value
        self._check_length(k.shape[-2] if cache is None else cache.length)
        heads, aux = attend(
            q,
            k,
            v,
            mask=_all_of(self.mask, None if cache is None else cache.mask, mask),
            bias=bias,
            score_mod=self.score_mod,
            is_causal=self.is_causal if is_causal is None else is_causal,
            query_offset=query_offset,
            key_positions=None if cache is None or cache.in_order else cache.positions,
            scale=self.scale,
            sinks=params.get("sinks"),
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            implementation=self.implementation,
        )
        return LayerResult(self._join(params, heads), cache, aux)

    def _attend_by(
        self,
        cache: Any,
        query: Array,
        *_: Array,
        dropout_seed: int | Array | None,
        return_aux: AuxRequest | None,
        **options: Any,
    ) -> tuple[Array, AttentionAux | None]:
        """`attend` to what a cache holds that reads it in a way of its own, the new keys and values among it."""
        rate = 0.0 if dropout_seed is None else self.dropout_rate
        given: dict[str, Any] = {"dropout_rate": rate, "dropout_seed": dropout_seed, "return_aux": return_aux}
        found = cache.attend(query, **given, **options)
        return (found, None) if return_aux is None else found

    def _join(self, params: Params, heads: Array) -> Array:
        """The heads (..., H, L, D) side by side, through the output projection if there is one."""
        xp, width = backend_of(heads).xp, self.num_heads * self.width
        heads = _heads_first(heads)  # its own inverse: (..., L, H, D)
        joined = xp.reshape(heads, (*heads.shape[:-2], width))
        if not self.output_projection:
            return joined
        return linear(joined, xp.reshape(params["w_o"], (width, self.embed_dim)), params.get("b_o"))

    def _check_length(self, keys: int | Array) -> None:
        if self.context_length is None:
            return
        if is_array(keys):
            backend = backend_of(keys)
            if not backend.is_concrete(keys):
                return
            with backend.eager():
                keys = backend.to_list(backend.xp.max(keys))
        if keys > self.context_length:
            raise ValueError(
                f"{self.name}: expected at most context_length={self.context_length} tokens, got {keys}; cut the "
                "input, or make the layer for more"
            )

    def _turn(self, rotary: Rotary, q: Array, k: Array, offset: Any, *, cached: bool) -> tuple[Array, Array]:
        """q and k turned to their positions: q from `offset` on, k from 0, or from `offset` if they continue a cache."""
        backend, length, keys = backend_of(q), q.shape[-2], k.shape[-2]
        if offset is None and length != keys:
            raise ValueError(
                f"{self.name}: expected query_offset with rotary positions, {length} queries and {keys} keys, got None; "
                "query_offset=0 aligns the first tokens, query_offset='end' the last"
            )
        start = keys - length if isinstance(offset, str) else 0 if offset is None else offset
        if is_array(start) and start.ndim == 1:
            start = start[:, None]
        position = backend.arange(0, length, q) + start
        at_keys = position if cached else backend.arange(0, keys, k)
        return rotary(q, position), rotary(k, at_keys)


def _heads_first(x: Array) -> Array:
    """(..., L, H, D) -> (..., H, L, D), and back."""
    xp = backend_of(x).xp
    axes = list(range(x.ndim))
    axes[-3], axes[-2] = axes[-2], axes[-3]
    return xp.permute_dims(x, tuple(axes))


def _all_of(*given: Any) -> Any:
    """One mask: a key is seen where each one says so that is there."""
    known = [m for m in given if m is not None]
    if len(known) < 2:
        return known[0] if known else None
    return reduce(
        and_, (m if isinstance(m, Mask) else from_array(m) if is_array(m) else mask_mod(m) for m in known)
    )
