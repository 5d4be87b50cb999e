"""Dot-product attention with projections: the one layer that most others are a name for.

The way of a call: `__call__` -> `run` -> `project` (x to heads) -> `attend` (heads to heads) -> `_join` (heads to x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal

from polyattn._attention import AttentionAux, AuxRequest, Wish
from polyattn.arrays import Array, backend_of, is_array
from polyattn.caches import Cache, KVCache
from polyattn.caches.reading import without_empty
from polyattn.layers.activations import sigmoid
from polyattn.layers.attending import OneAttention
from polyattn.layers.heads import all_of, heads_first, positions_of, reach
from polyattn.layers.initializers import ZEROS, Distribution, initializer
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params, linear
from polyattn.layers.norm import Norm
from polyattn.masks import Mask
from polyattn.mods import ScoreMod
from polyattn.normalizers import Normalizer
from polyattn.problem import packed_positions
from polyattn.rotary import Rotary

__all__ = ["MultiHeadAttention"]


@dataclass(frozen=True)
class MultiHeadAttention(OneAttention):
    """out = concat_h(softmax(q_h k_h^T / sqrt(D)) v_h) W_o, with q = x W_q + b_q, k, v likewise from context.

    Shapes: x (..., L, embed_dim), context (..., S, context_dim); context=None is self-attention. Params, with
    E = embed_dim, C = context_dim: w_q (E, H, D), w_k and w_v (C, Hkv, D), w_o (H, D, E), biases of these maps
    b_q (H, D), b_k, b_v (Hkv, D), b_o (E,); sinks (H,) with sinks=True. head_dim D is E / H unless given.
    Without output_projection the heads are returned side by side, (..., L, H D).

    num_kv_heads < num_heads is grouped-query attention. mask, score_mod, scale, normalizer, implementation: as
    `attention` takes them, part of the layer. sinks: learned extra logits, one a head, at first 0 (GPT-OSS). rotary: a
    `polyattn.rotary.Rotary` for q and k. qk_norm: a norm for q and k, or one for each; of dim D it is of each head
    (Qwen3), of dim H D and Hkv D of all heads together (OLMo 2). v_norm: one of dim D for v. tied_kv: v is k before norm
    and rotation, and there is no w_v (Gemma 4). output_gate: the heads times sigma(x W_g) before W_o, an "entry" or a
    "head" at a time: w_g (E, H, D) or (E, H), no bias (Qwen3-Next). is_causal: the default of the call.
    context_length: the most keys that a call may have.

        layer(params, x, context=None, mask=, bias=, is_causal=, query_offset=, positions=, cu_seqlens=, ...) -> out
        layer.run(params, x, ..., cache=, return_aux=) -> LayerResult(out, cache, aux)

    mask: hides in addition; broadcasts to (..., H, L, S), as does bias, which is added to the scores. positions: where
    `rotary` takes the tokens of x to stand, (L,), (B, L), or as it has them; None = in a row. The mask goes by the order
    of the tokens even so. cu_seqlens (n + 1,): x is n documents without padding, each attends to itself alone, and its
    positions begin anew. cache: one of `polyattn.caches` with the earlier tokens of x; x
    continues them, and S is the number of its slots.
    dropout_seed: weights are dropped only where there is one.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.2.2; sinks: Xiao 2023, arXiv:2309.17453, section 3.3; gate: Qiu
    2025, arXiv:2505.06708.

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
    normalizer: str | Normalizer = "softmax"
    mask: Mask | None = None
    score_mod: ScoreMod | None = None
    sinks: bool = False
    rotary: Rotary | None = None
    qk_norm: Norm | tuple[Norm, Norm] | None = None
    v_norm: Norm | None = None
    tied_kv: bool = False
    output_gate: Literal["entry", "head"] | None = None
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
        self.check_heads(self.num_heads, self.head_dim, self.kv_heads)
        self.check_rate(self.dropout_rate)
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

    @property
    def head_norms(self) -> dict[str, Norm]:
        """The norms of q, k and v, by the names of their params."""
        pair = self.qk_norm if isinstance(self.qk_norm, tuple) else (self.qk_norm, self.qk_norm)
        found = dict(zip(("q_norm", "k_norm", "v_norm"), (*pair, self.v_norm), strict=True))
        return {name: norm for name, norm in found.items() if norm is not None}

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        heads = {"q": self.num_heads, "k": self.kv_heads}
        if not self.tied_kv:
            heads["v"] = self.kv_heads
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
        return found | {"sinks": Parameter((self.num_heads,), ZEROS)} if self.sinks else found

    def project(self, params: Params, x: Array, context: Array) -> tuple[Array, Array, Array]:
        """The queries, keys and values of every head, (..., H, L, D) and (..., Hkv, S, D), before rotation."""

        def heads(name: str, given: Array) -> Array:
            return linear(given, params[f"w_{name}"], params.get(f"b_{name}"))  # (..., L, H, D)

        found = {"q": heads("q", x), "k": heads("k", context)}
        found["v"] = found["k"] if self.tied_kv else heads("v", context)
        for name, norm in self.head_norms.items():
            found[name[0]] = _normed(norm, params[name], found[name[0]])
        q, k, v = (heads_first(found[name]) for name in "qkv")
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
        positions: Array | None = None,
        cu_seqlens: Array | None = None,
        cache: Cache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        q, k, v = self.project(params, x, self.source(params, x, context))
        if cache is not None or cu_seqlens is not None:
            others = {"context": context, "query_offset": query_offset}
            if cu_seqlens is not None:
                others["cache"] = cache
            if extra := [name for name, given in others.items() if given is not None]:
                what, why = (
                    ("a cache", "a cache holds the earlier tokens of x, and x continues them")
                    if cu_seqlens is None
                    else ("cu_seqlens", "they say where the documents of x begin, which see themselves alone")
                )
                raise ValueError(
                    f"{self.name}: expected neither {' nor '.join(others)} with {what}, got {extra[0]}; {why}"
                )
        if cache is not None:
            self.check_cache(cache)
            query_offset = cache.length
        if cu_seqlens is not None and positions is None and self.rotary is not None:
            positions = packed_positions(cu_seqlens, x.shape[-2])
        if positions is not None:
            if self.rotary is None or context is not None:
                raise ValueError(
                    f"{self.name}: expected positions in a layer with rotary and without context, got some "
                    f"{'beside a context' if self.rotary else 'without rotary'}; the mask goes by query_offset"
                )
            q, k = self.rotary.both(q, k, positions, **reach(self.rotary, positions))
        elif self.rotary is not None:
            q, k = self._turn(self.rotary, q, k, query_offset, cached=cache is not None)
        attend: Callable[..., Any] = self.attend
        mask, empty = all_of(self.mask, mask), None
        if cache is not None:
            cache = cache.append(k, v)
            empty = cache.mask
            if hasattr(cache, "attend"):  # its keys are never there as one array
                attend = partial(self._attend_by, cache)
            elif (held := without_empty(cache, mask, bias, return_aux)) is not None:
                (k, v), empty = held, None
            else:
                k, v = cache.key, cache.value
        self._check_length(k.shape[-2] if cache is None else cache.length)
        heads, aux = attend(
            q,
            k,
            v,
            mask=all_of(empty, mask),
            bias=bias,
            score_mod=self.score_mod,
            is_causal=self.is_causal if is_causal is None else is_causal,
            query_offset=query_offset,
            key_positions=None if cache is None or cache.in_order else cache.positions,
            cu_seqlens_q=cu_seqlens,
            scale=self.scale,
            normalizer=self.normalizer,
            sinks=params.get("sinks"),
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            implementation=self.implementation,
        )
        return LayerResult(self._join(params, x, heads), cache, aux)

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

    def _join(self, params: Params, x: Array, heads: Array) -> Array:
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
        position = positions_of(q, start)
        if cached or offset is None:
            return rotary.both(q, k, position, **reach(rotary, position))
        at_keys = backend.arange(0, keys, k)
        return rotary(q, position, **reach(rotary, position)), rotary(k, at_keys, **reach(rotary, at_keys))


def _normed(norm: Norm, params: Params, x: Array) -> Array:
    """The norm of each head of x (..., L, H, D), or of all of them together, as its dim says."""
    if norm.dim == x.shape[-1]:
        return norm(params, x)
    xp = backend_of(x).xp
    return xp.reshape(norm(params, xp.reshape(x, (*x.shape[:-2], norm.dim))), x.shape)
