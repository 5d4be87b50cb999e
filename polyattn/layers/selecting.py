"""Attention to blocks of keys that a cheap score selects, as layers: MoBA and native sparse attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.caches import Cache, KVCache
from polyattn.calls import flag, seed_like, shown, size
from polyattn.layers.activations import sigmoid, silu
from polyattn.layers.heads import heads_first, positions_of, turned
from polyattn.layers.initializers import Distribution, Normal, initializer
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params, linear
from polyattn.layers.projections import Projections
from polyattn.rotary import Rotary
from polyattn.selection import moba_attention, nsa_attention

__all__ = ["MixtureOfBlockAttention", "NativeSparseAttention"]


@dataclass(frozen=True)
class _Selecting(Projections):
    """Causal self-attention whose rows attend to `count` blocks of block_size keys."""

    _: KW_ONLY
    block_size: int
    count: int
    qkv_bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        self.check_sizes(block_size=self.block_size, count=self.count)
        super().__post_init__()

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> KVCache:
        """A cache for this layer, without tokens."""
        return KVCache.empty(batch, self.kv_heads, capacity, self.width, like=like)

    def run(
        self,
        params: Params,
        x: Array,
        *,
        is_causal: bool | None = None,
        cache: Cache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: Any = None,
    ) -> LayerResult:
        q, k, v = self.project(params, x, self.source(params, x, None))
        if is_causal is not None and not flag(self.name, "is_causal", is_causal):
            raise ValueError(
                f"{self.name}: expected is_causal=True, got False; blocks are selected among earlier ones, take "
                "MultiHeadAttention"
            )
        if return_aux is not None:
            raise ValueError(
                f"{self.name}: expected no return_aux, got {shown(return_aux)}; every row has keys of its own, and no "
                "matrix of weights is made"
            )
        if dropout_seed is not None:
            seed_like(self.name, "dropout_seed", dropout_seed)
        start: int | Array = 0
        if cache is not None:
            self.check_cache(cache)
            start = cache.length
        if self.rotary is not None:
            at = positions_of(x, start)
            q, k = turned(self.rotary, q, k, at, at)
        if cache is not None:
            cache = cache.append(k, v)
            k, v = cache.key, cache.value
        heads = self._select(params, x, q, k, v, {"query_offset": start, "scale": self.scale})
        return LayerResult(self.join(params, x, heads), cache)

    def check_cache(self, cache: Any) -> None:
        """An error unless this is a cache that has its tokens in order, in one array."""
        super().check_cache(cache)
        if not cache.in_order or hasattr(cache, "attend"):
            raise ValueError(
                f"{self.name}: expected a cache whose slots are in the order of the tokens and may be read as one array, "
                f"got {shown(cache)}; blocks are of neighbouring slots, so take a KVCache"
            )

    def _select(
        self, params: Params, x: Array, q: Array, k: Array, v: Array, options: dict[str, Any]
    ) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class MixtureOfBlockAttention(_Selecting):
    """`MultiHeadAttention` in which every row of a head sees its own block of keys and the best earlier ones (MoBA).

        out = concat_h(moba_attention(q_h, k_h, v_h)) W_o,   score of a block = q . (mean of its keys)

    Params: those of a causal `MultiHeadAttention`, whose weights it takes as they are; num_kv_heads, head_dim, qk_norm,
    v_norm, tied_kv, output_gate, rotary as there, and no biases unless asked for. block_size, count: as
    `polyattn.selection.moba_attention` has them; with all blocks it is `MultiHeadAttention`.

        layer(params, x) -> out;   layer.run(params, x, cache=) -> LayerResult(out, cache, None)

    Source: Lu 2025, arXiv:2502.13189, section 2.2.

    >>> import numpy as np
    >>> layer = MixtureOfBlockAttention(8, 2, block_size=4, count=2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 10, 8))).shape
    (3, 10, 8)
    """

    def _select(
        self, params: Params, x: Array, q: Array, k: Array, v: Array, options: dict[str, Any]
    ) -> Array:
        return moba_attention(q, k, v, block_size=self.block_size, count=self.count, **options)


@dataclass(frozen=True)
class _Compression(Layer):
    """silu((x_1 + p_1; ...; x_n + p_n) W_in) W_out: (..., S, D) -> (..., ceil(S / n), D), a block of n rows to one."""

    block_size: int
    dim: int
    hidden_dim: int
    initializer: str | Distribution

    def parameters(self) -> Mapping[str, Parameter]:
        n, dim, hidden = self.block_size, self.dim, self.hidden_dim
        return {
            "position": Parameter((n, dim), Normal(0.02)),
            "w_in": Parameter((n, dim, hidden), initializer(self.name, self.initializer, n * dim, hidden)),
            "w_out": Parameter((hidden, dim), initializer(self.name, self.initializer, hidden, dim)),
        }

    def __call__(self, params: Params, x: Array) -> Array:
        backend, n, (*lead, rows, dim) = backend_of(x), self.block_size, x.shape
        xp, blocks = backend.xp, -(-rows // self.block_size)
        if blocks * n > rows:  # the last block, which nobody sees before it is complete
            rest = xp.zeros((*lead, blocks * n - rows, dim), dtype=x.dtype, device=backend.device(x))
            x = xp.concat((x, rest), axis=-2)
        placed = xp.reshape(x, (*lead, blocks, n, dim)) + params["position"]
        w_in = xp.reshape(params["w_in"], (n * dim, self.hidden_dim))
        return linear(silu(linear(xp.reshape(placed, (*lead, blocks, n * dim)), w_in)), params["w_out"])


@dataclass(frozen=True)
class NativeSparseAttention(_Selecting):
    """Causal attention in three ways, to compressed blocks, to selected ones and to a window, which gates weigh (NSA).

        out = concat_h(g_1 compressed + g_2 selected + g_3 window) W_o,   g = sigmoid(x W_b)
        key of a block = silu((k_1 + p_1; ...; k_n + p_n) W_in) W_out,  its value likewise, with maps of their own

    Params, with E = embed_dim, n = block_size, F = compression_dim or D: w_q (E, H, D), w_k and w_v (E, Hkv, D), w_o (H, D,
    E), w_b (E, H, 3), and in "compress_k" and "compress_v" position (n, D), w_in (n, D, F), w_out (F, D), the same for all
    heads; other settings as `MixtureOfBlockAttention` has them. count, window_size, initial, local: as
    `polyattn.selection.nsa_attention` has them. Keys are compressed as they are turned by rotary.

        layer(params, x) -> out;   layer.run(params, x, cache=) -> LayerResult(out, cache, None)

    cache: a `KVCache`; blocks are compressed anew in every call, in time O(S). The paper leaves open what the MLP is, and
    gives each of the three ways keys and values of its own, which here are one.

    Source: Yuan 2025, arXiv:2502.11089, section 3, the map of a block equation 7.

    >>> import numpy as np
    >>> layer = NativeSparseAttention(8, 2, block_size=4, count=2, window_size=3)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 10, 8))).shape
    (3, 10, 8)
    """

    _: KW_ONLY
    window_size: int
    initial: int = 1
    local: int = 2
    compression_dim: int | None = None

    def __post_init__(self) -> None:
        self.check_sizes(window_size=self.window_size, compression_dim=self.compression_dim)
        for name, n in (("initial", self.initial), ("local", self.local)):
            size(self.name, name, n)
        super().__post_init__()

    @cached_property  # made with the layer, as compilers make none
    def _compression(self) -> _Compression:
        drawn = "glorot_uniform" if self.initializer == "xavier_packed" else self.initializer
        return _Compression(self.block_size, self.width, self.compression_dim or self.width, drawn)

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        drawn = initializer(self.name, self._compression.initializer, self.embed_dim, 3 * self.num_heads)
        return {
            **super().parameters(),
            "w_b": Parameter((self.embed_dim, self.num_heads, 3), drawn),
            "compress_k": self._compression,
            "compress_v": self._compression,
        }

    def _select(
        self, params: Params, x: Array, q: Array, k: Array, v: Array, options: dict[str, Any]
    ) -> Array:
        return nsa_attention(
            q,
            k,
            v,
            self._compression(params["compress_k"], k),
            self._compression(params["compress_v"], v),
            heads_first(sigmoid(linear(x, params["w_b"]))),
            block_size=self.block_size,
            count=self.count,
            window=self.window_size,
            initial=self.initial,
            local=self.local,
            **options,
        )
