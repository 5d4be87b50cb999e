"""Dot-product attention with projections: one definition, and the names under which the field knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from polyattn import attention as scaled_dot_product
from polyattn._attention import AuxRequest
from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.caches import KVCache
from polyattn.layers.initializers import ZEROS, Distribution, initializer
from polyattn.layers.layer import Layer, Parameter, Params, linear, positive, share
from polyattn.layers.norm import LayerNorm, RMSNorm
from polyattn.masks.algebra import Mask
from polyattn.mods import ScoreMod
from polyattn.rotary import Rotary


@dataclass(frozen=True)
class ScaledDotProductAttention(Layer):
    """`polyattn.attention` as a layer without parameters: layer({}, query, key, value, mask=...).

    query (..., H, L, D), key (..., Hkv, S, D), value (..., Hkv, S, E); rank 2 is one head. The weights are
    returned by return_aux=AuxRequest(weights=True).

    >>> import numpy as np
    >>> x = np.eye(2)
    >>> ScaledDotProductAttention(scale=0.0)({}, x, x, x)
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """

    _: KW_ONLY
    scale: float | None = None
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        share("ScaledDotProductAttention", self.dropout_rate)

    def __call__(
        self,
        params: Params,
        query: Array,
        key: Array,
        value: Array,
        *,
        mask: Any = None,
        is_causal: bool = False,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
        **options: Any,
    ) -> Any:
        self.check_params(params, query)
        return scaled_dot_product(
            query,
            key,
            value,
            mask=mask,
            is_causal=is_causal,
            scale=self.scale,
            dropout_rate=0.0 if dropout_seed is None else self.dropout_rate,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            **options,
        )


@dataclass(frozen=True)
class MultiHeadAttention(Layer):
    """out = concat_h(softmax(q_h k_h^T / sqrt(D)) v_h) W_o, with q = x W_q + b_q, k, v likewise from context.

    Shapes: x (..., L, embed_dim), context (..., S, context_dim); context=None is self-attention. Params, with
    E = embed_dim, C = context_dim: w_q (E, H, D), w_k and w_v (C, Hkv, D), w_o (H, D, E), biases b_q (H, D),
    b_k, b_v (Hkv, D), b_o (E,). head_dim D is E / H unless given. Without output_projection the heads are
    returned side by side, (..., L, H D).

    num_kv_heads < num_heads is grouped-query attention. mask, score_mod, scale: as `attention` takes them,
    part of the layer. rotary: a `positions.Rotary` for q and k. qk_norm: a norm of dim D for each head of q
    and k. is_causal: the default of the call. context_length: the most keys that a call may have.

        layer(params, x, context=None, *, mask=None, is_causal=None, query_offset=None, cache=None,
              dropout_seed=None, return_aux=None)

    mask: hides in addition; broadcasts to (..., H, L, S). cache: a `KVCache` with the earlier tokens of x; x
    continues them. dropout_seed: weights are dropped only where there is one. Returns out; with a cache
    (out, cache); with return_aux (out, aux); with both (out, cache, aux).

    Source: Vaswani 2017, arXiv:1706.03762, section 3.2.2.

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
    rotary: Rotary | None = None
    qk_norm: LayerNorm | RMSNorm | None = None
    initializer: str | Distribution = "xavier_packed"

    def __post_init__(self) -> None:
        kind = type(self).__name__
        positive(
            kind,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            context_dim=self.context_dim,
            context_length=self.context_length,
        )
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(
                f"polyattn.layers.{kind}: expected num_heads to divide embed_dim, got embed_dim={self.embed_dim} and "
                f"num_heads={self.num_heads}; change one of them, or give head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"polyattn.layers.{kind}: expected num_kv_heads to divide num_heads, got num_heads={self.num_heads} "
                f"and num_kv_heads={self.kv_heads}; each kv head serves equally many query heads"
            )
        share(kind, self.dropout_rate)
        if self.qk_norm is not None and self.qk_norm.dim != self.width:
            raise ValueError(
                f"polyattn.layers.{kind}: expected qk_norm of dim {self.width}, the width of a head, got "
                f"{self.qk_norm.dim}"
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
    def source_dim(self) -> int:
        """The width of what keys and values are made from."""
        return self.embed_dim if self.context_dim is None else self.context_dim

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        heads = {"q": self.num_heads, "k": self.kv_heads, "v": self.kv_heads}
        packed = sum(heads.values()) * self.width
        found: dict[str, Parameter | Layer] = {}
        for name, count in heads.items():
            fan_in = self.embed_dim if name == "q" else self.source_dim
            fan_out = packed if self.initializer == "xavier_packed" else count * self.width
            how = "glorot_uniform" if self.initializer == "xavier_packed" else self.initializer
            initial = initializer(how, fan_in, fan_out, type(self).__name__)
            found[f"w_{name}"] = Parameter((fan_in, count, self.width), initial)
            if self.qkv_bias:
                found[f"b_{name}"] = Parameter((count, self.width), ZEROS)
        if self.qk_norm is not None:
            found |= {"q_norm": self.qk_norm, "k_norm": self.qk_norm}
        if self.output_projection:
            fan_in, fan_out = self.num_heads * self.width, self.embed_dim
            how = "torch_linear" if self.initializer == "xavier_packed" else self.initializer
            initial = initializer(how, fan_in, fan_out, type(self).__name__)
            found["w_o"] = Parameter((self.num_heads, self.width, fan_out), initial)
            if self.out_bias:
                found["b_o"] = Parameter((fan_out,), ZEROS)
        return found

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

    def __call__(
        self,
        params: Params,
        x: Array,
        context: Array | None = None,
        *,
        mask: Any = None,
        is_causal: bool | None = None,
        query_offset: int | Literal["end"] | Array | None = None,
        cache: KVCache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> Any:
        backend = self.check(params, self.embed_dim, x=x, context=context)
        source = x if context is None else context
        if source.shape[-1] != self.source_dim:
            raise ValueError(
                f"{self.name}: expected context of shape (..., length, {self.source_dim}), got {tuple(source.shape)}; "
                "context_dim declares its width"
            )
        q, k, v = self.project(params, x, source)
        if cache is not None:
            if context is not None or query_offset is not None:
                raise ValueError(
                    f"{self.name}: expected neither context nor query_offset with a cache, got "
                    f"{'context' if context is not None else 'query_offset'}; a cache holds the earlier tokens of x, "
                    "and x continues them"
                )
            query_offset = cache.length
        if self.rotary is not None:
            q, k = self._turn(backend, q, k, query_offset, cached=cache is not None)
        hidden: list[Any] = [m for m in (self.mask,) if m is not None]
        if cache is not None:
            cache = cache.append(k, v)
            k, v = cache.key, cache.value
            hidden.append(cache.mask)
        self._check_length(int(k.shape[-2]) if cache is None else cache.length)
        out = self._attend(
            (q, k, v),
            mask=mask if not hidden else _combine(hidden, mask),
            is_causal=self.is_causal if is_causal is None else is_causal,
            query_offset=query_offset,
            scale=self.scale,
            score_mod=self.score_mod,
            dropout_rate=0.0 if dropout_seed is None else self.dropout_rate,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
        )
        out, *aux = out if return_aux is not None else (out,)
        out = _heads_first(out)  # its own inverse: (..., L, H, D)
        joined = backend.xp.reshape(out, (*out.shape[:-2], self.num_heads * self.width))
        if self.output_projection:
            w = params["w_o"]
            joined = linear(
                joined, backend.xp.reshape(w, (self.num_heads * self.width, w.shape[-1])), params.get("b_o")
            )
        rest = (*(() if cache is None else (cache,)), *aux)
        return (joined, *rest) if rest else joined

    def _attend(self, qkv: tuple[Array, Array, Array], **options: Any) -> Any:
        """`attention`, whose errors also say which layer called it."""
        try:
            return scaled_dot_product(*qkv, **options)
        except (ValueError, TypeError) as error:
            if not str(error).startswith("polyattn.attention"):
                raise
            shapes = ", ".join(str(tuple(x.shape)) for x in qkv)
            raise type(error)(f"{self.name} with q, k, v of shapes {shapes}: {error}") from error

    def _check_length(self, keys: int | Array) -> None:
        if self.context_length is None:
            return
        if is_array(keys):
            backend = backend_of(keys)
            if not backend.is_concrete(keys):
                return
            with backend.eager():
                keys = backend.to_list(keys)
        if keys > self.context_length:
            raise ValueError(
                f"{self.name}: expected at most context_length={self.context_length} tokens, got {keys}; cut the "
                "input, or make the layer for more"
            )

    def _turn(
        self, backend: Backend, q: Array, k: Array, offset: Any, *, cached: bool
    ) -> tuple[Array, Array]:
        """q and k turned to their positions: q from `offset` on, k from 0, or from `offset` if they continue a cache."""
        assert self.rotary is not None
        length, keys = q.shape[-2], k.shape[-2]
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
        return self.rotary(q, position), self.rotary(k, at_keys)


def _heads_first(x: Array) -> Array:
    """(..., L, H, D) -> (..., H, L, D), and back."""
    xp = backend_of(x).xp
    axes = list(range(x.ndim))
    axes[-3], axes[-2] = axes[-2], axes[-3]
    return xp.permute_dims(x, tuple(axes))


def _combine(masks: list[Any], given: Any) -> Any:
    """All of them: a key is seen where every mask says so."""
    from polyattn.masks import from_array, mask_mod

    if given is not None:
        known = (
            given if isinstance(given, Mask) else from_array(given) if is_array(given) else mask_mod(given)
        )
        masks = [*masks, known]
    combined = masks[0]
    for mask in masks[1:]:
        combined = combined & mask
    return combined


@dataclass(frozen=True)
class SelfAttention(MultiHeadAttention):
    """One head of self-attention with trainable projections and no output projection.

        softmax((x W_q) (x W_k)^T / sqrt(D)) x W_v,   x (..., L, embed_dim) -> (..., L, head_dim)

    qkv_bias=False is the form with plain matrices, qkv_bias=True the one with linear layers. Params as
    `MultiHeadAttention` with H = 1.

    >>> import numpy as np
    >>> layer = SelfAttention(3, head_dim=2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((6, 3))).shape
    (6, 2)
    """

    num_heads: int = 1
    _: KW_ONLY
    qkv_bias: bool = False
    output_projection: bool = False


@dataclass(frozen=True)
class CausalSelfAttention(MultiHeadAttention):
    """Self-attention in which no position sees a later one, over at most context_length tokens (GPT-2).

    >>> import numpy as np
    >>> layer = CausalSelfAttention(8, 2, context_length=16, dropout_rate=0.1)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((5, 8))).shape
    (5, 8)
    """

    _: KW_ONLY
    context_length: int | None = field()  # required, None = any: a bare annotation inherits the default
    is_causal: bool = True

    def __call__(self, params: Params, x: Array, context: Array | None = None, **options: Any) -> Any:
        if context is not None or options.get("is_causal") is False:
            raise ValueError(
                f"{self.name}: expected self-attention that is causal, got "
                f"{'a context' if context is not None else 'is_causal=False'}; take MultiHeadAttention"
            )
        return super().__call__(params, x, **options)


@dataclass(frozen=True)
class MultiHeadCrossAttention(MultiHeadAttention):
    """Queries from x, keys and values from a context of another length and width, which must be given.

    >>> import numpy as np
    >>> layer = MultiHeadCrossAttention(8, 2, context_dim=6)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 6))).shape
    (5, 8)
    """

    def __call__(self, params: Params, x: Array, context: Array | None = None, **options: Any) -> Any:
        if context is None:
            raise ValueError(
                f"{self.name}: expected a context, got None; for self-attention take MultiHeadAttention"
            )
        return super().__call__(params, x, context, **options)


@dataclass(frozen=True)
class CrossAttention(MultiHeadCrossAttention):
    """One head of cross-attention without output projection: (..., L, embed_dim) -> (..., L, head_dim).

    >>> import numpy as np
    >>> layer = CrossAttention(3, head_dim=2, context_dim=4)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((6, 3)), np.ones((8, 4))).shape
    (6, 2)
    """

    num_heads: int = 1
    _: KW_ONLY
    qkv_bias: bool = False
    output_projection: bool = False


@dataclass(frozen=True)
class GroupedQueryAttention(MultiHeadAttention):
    """Several query heads share a key and value head (Ainslie 2023, arXiv:2305.13245): head h reads h // G.

    >>> import numpy as np
    >>> layer = GroupedQueryAttention(8, 4, num_kv_heads=2)
    >>> layer.shapes()["w_k"]
    (8, 2, 2)
    """

    _: KW_ONLY
    num_kv_heads: int = field()  # required


@dataclass(frozen=True)
class MultiQueryAttention(MultiHeadAttention):
    """All query heads share one key and value head (Shazeer 2019, arXiv:1911.02150).

    >>> import numpy as np
    >>> MultiQueryAttention(8, 4).shapes()["w_k"]
    (8, 1, 2)
    """

    _: KW_ONLY
    num_kv_heads: int = 1

    def __post_init__(self) -> None:
        if self.num_kv_heads != 1:
            raise ValueError(
                f"{self.name}: expected num_kv_heads=1, got {self.num_kv_heads}; for more take GroupedQueryAttention"
            )
        super().__post_init__()
