"""Dot-product attention with projections: the one layer that most others are a name for.

The way of a call: `__call__` -> `run` -> `project` (x to heads) -> `attend` (heads to heads) -> `_join` (heads to x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, Literal, Self

from polyattn._attention import AuxRequest, Wish
from polyattn.arrays import Array, backend_of
from polyattn.caches import Cache, CircularCache, KVCache
from polyattn.caches.reading import without_empty
from polyattn.calls import flag, size
from polyattn.layers.attending import Memory
from polyattn.layers.heads import Handed, all_of, check_length, positions_of, turned
from polyattn.layers.initializers import ZEROS
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params
from polyattn.layers.projections import Projections
from polyattn.masks import Mask
from polyattn.masks.relative import latest
from polyattn.mods import ScoreMod
from polyattn.normalizers import Normalizer
from polyattn.problem import packed_positions
from polyattn.rotary import Rotary

__all__ = ["MultiHeadAttention"]


@dataclass(frozen=True)
class MultiHeadAttention(Projections):
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
    context_length: the most keys that a call may have. shares_kv: without w_k, w_v and their biases and norms; cache is
    then what the layer left that has them, is read, and stays as it is (`Encoder` with kv_from; Gemma 3n, YOCO).

        layer(params, x, context=None, mask=, bias=, is_causal=, query_offset=, positions=, cu_seqlens=, ...) -> out
        layer.run(params, x, ..., cache=, return_aux=) -> LayerResult(out, cache, aux)

    mask: hides in addition; broadcasts to (..., H, L, S), as does bias, which is added to the scores. positions: where
    `rotary` takes the tokens of x to stand, (L,), (B, L), or as it has them; None = in a row. The mask goes by the order
    of the tokens even so. context may be a `Memory`, which `remember` makes of it once for many calls. cu_seqlens (n + 1,):
    x is n documents without padding, each attends to itself alone, and its positions begin anew. cache: one of
    `polyattn.caches` with the earlier tokens of x; x continues them, and S is the number of its slots.
    dropout_seed: weights are dropped only where there is one.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.2.2; sinks: Xiao 2023, arXiv:2309.17453, section 3.3; gate: Qiu
    2025, arXiv:2505.06708.

    >>> import numpy as np
    >>> layer = MultiHeadAttention(8, 2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    _: KW_ONLY
    context_dim: int | None = None
    is_causal: bool = False
    context_length: int | None = None
    dropout_rate: float = 0.0
    scale: float | None = None
    normalizer: str | Normalizer = "softmax"
    mask: Mask | None = None
    score_mod: ScoreMod | None = None
    sinks: bool = False
    rotary: Rotary | None = None
    shares_kv: bool = False
    implementation: Wish = "auto"

    def __post_init__(self) -> None:
        self.check_sizes(context_dim=self.context_dim, context_length=self.context_length)
        self.check_rate(self.dropout_rate)
        if self.shares_kv and (self.tied_kv or self.v_norm or isinstance(self.qk_norm, tuple)):
            raise ValueError(
                f"{self.name}: expected no tied_kv, no v_norm and one qk_norm, that of q, with shares_kv, got another; "
                "keys and values come as the layer left them that has them"
            )
        if not isinstance(self.sinks, bool):
            raise TypeError(
                f"{self.name}: expected sinks=True or False, got {self.sinks!r}; the logits themselves are the "
                "parameter 'sinks'"
            )
        super().__post_init__()

    @property
    def source_dim(self) -> int:
        """The width of what keys and values are made from."""
        return self.embed_dim if self.context_dim is None else self.context_dim

    @property
    def own_kv(self) -> bool:
        """Whether it has keys and values of its own."""
        return not self.shares_kv

    @property
    def window(self) -> int | None:
        """How many of the latest keys a token sees at most, itself among them, as `mask` says; None = all."""
        return latest(self.mask)

    def without_kv(self) -> Self:
        """The same with shares_kv: queries of its own to the keys and values of another layer."""
        norm = self.qk_norm[0] if isinstance(self.qk_norm, tuple) else self.qk_norm
        return replace(self, shares_kv=True, tied_kv=False, v_norm=None, qk_norm=norm)

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        found = super().parameters()
        return {**found, "sinks": Parameter((self.num_heads,), ZEROS)} if self.sinks else found

    def remember(self, params: Params, context: Array) -> Memory:
        """The keys and values of a context (..., S, context_dim), which calls take in its place."""
        self._check_own_kv()
        self.check(params, self.source_dim, context=context)
        return Memory(*self.keys_values(params, context))

    def empty_cache(
        self, batch: int, capacity: int, *, like: Array, circular: bool = False
    ) -> KVCache | CircularCache:
        """A cache for this layer, without tokens; circular: of no more slots than its window has."""
        self._check_own_kv()
        sizes = (batch, self.kv_heads, capacity, self.width)
        if not flag(self.name, "circular", circular):
            return KVCache.empty(*sizes, like=like)
        if self.window is None:
            raise ValueError(
                f"{self.name}: expected a window with circular=True, such as mask=masks.sliding_window(n), got "
                f"{self.mask}; leave circular out"
            )
        if self.window >= size(self.name, "capacity", capacity):
            return KVCache.empty(*sizes, like=like)
        return CircularCache.empty(batch, self.kv_heads, self.window, self.width, like=like)

    def run(
        self,
        params: Params,
        x: Array,
        context: Array | Memory | None = None,
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
        if isinstance(context, Memory):
            k, v = context
            self.check(params, self.embed_dim, x=x, **{"context.key": k, "context.value": v})
            q = self.queries(params, x)
        else:
            q, k, v = self.project(params, x, self.source(params, x, context))
        handed, cache = (cache, None) if isinstance(cache, Handed) else (None, cache)
        if self.shares_kv and handed is None:
            self._check_shared(x, cache)
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
            query_offset = cache.length - (x.shape[-2] if self.shares_kv else 0)
        if cu_seqlens is not None and positions is None and self.rotary is not None:
            positions = packed_positions(cu_seqlens, x.shape[-2])
        if positions is not None and (self.rotary is None or context is not None):
            raise ValueError(
                f"{self.name}: expected positions in a layer with rotary and without context, got some "
                f"{'beside a context' if self.rotary else 'without rotary'}; the mask goes by query_offset"
            )
        if self.rotary is not None:
            at = at_keys = positions
            if positions is None:
                keys = x.shape[-2] if k is None else k.shape[-2]
                at, at_keys = self._places(q, keys, query_offset, together=cache is not None)
            q, k = turned(self.rotary, q, k, at, at_keys)
        attend: Callable[..., Any] = self.attend
        if handed is not None:
            k, v = handed = handed if self.shares_kv else Handed(k, v)
        mask, empty = all_of(self.mask, mask), None
        if cache is not None:
            if not self.shares_kv:
                cache = cache.append(k, v)
            empty = cache.mask
            if hasattr(cache, "attend"):  # its keys are never there as one array
                attend = partial(self.attend_by, cache)
            elif held := without_empty(cache, mask, bias, return_aux, self.implementation):
                (k, v), empty = held, None
            else:
                k, v = cache.key, cache.value
        check_length(self.name, self.context_length, k.shape[-2] if cache is None else cache.length)
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
        return LayerResult(self.join(params, x, heads), cache if handed is None else handed, aux)

    def _check_own_kv(self) -> None:
        if self.shares_kv:
            raise TypeError(
                f"{self.name}: expected a layer with keys and values of its own, got one that shares those of another; "
                "ask that one"
            )

    def _check_shared(self, x: Array, cache: Any) -> None:
        """An error unless there are keys and values to share, those of the tokens of x among them."""
        if cache is None:
            raise ValueError(
                f"{self.name}: expected with shares_kv the cache that the layer left whose keys and values these are, got "
                "None; write cache=layer.run(params, x, cache=...).cache, or take an Encoder with kv_from"
            )
        self.check_cache(cache)
        if isinstance(cache.length, int) and cache.length < x.shape[-2]:
            raise ValueError(
                f"{self.name}: expected with shares_kv a cache that has the {x.shape[-2]} tokens of x already, got one of "
                f"{cache.length}; run the layer first that appends to it"
            )

    def _places(self, q: Array, keys: int, offset: Any, *, together: bool) -> tuple[Array, Array]:
        """Where q stands, from `offset` on, and the keys: there too if they come `together`, else from 0 on."""
        length = q.shape[-2]
        if offset is None and length != keys:
            raise ValueError(
                f"{self.name}: expected query_offset with rotary positions, {length} queries and {keys} keys, got None; "
                "query_offset=0 aligns the first tokens, query_offset='end' the last"
            )
        at = positions_of(q, keys - length if isinstance(offset, str) else 0 if offset is None else offset)
        return at, at if together or offset is None else backend_of(q).arange(0, keys, q)
