"""The quantised cache: keys and values as bytes, with a scale for each token of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from polyattn import masks
from polyattn._attention import AuxRequest, attention
from polyattn.arrays import Array, backend_of
from polyattn.caches.folding import attend_stored, folds
from polyattn.caches.reading import own_options
from polyattn.caches.scatter import behind
from polyattn.caches.tokens import check_tokens, held, lengths, room_for, standing, zeros
from polyattn.calls import answers, size
from polyattn.masks.algebra import Mask

__all__ = ["QuantizedCache"]

_WHO = "polyattn.caches.QuantizedCache"
MOST = 127  # of a signed byte, symmetric about 0


@dataclass(frozen=True, eq=False)
class Scaled:
    """integers * scale, in the compute dtype, a tile at a time; `Stored` in the words of the fold."""

    integers: Array  # (B, Hkv, S, W) int8
    scale: Array  # (B, Hkv, S, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, Hkv, S, W)"""
        return tuple(self.integers.shape)

    def cut(self, item: Any, items: int, head: Any, heads: int, start: Any, size: int) -> Array:
        """`size` of them from `start` on: (items, heads, size, W)."""
        backend = backend_of(self.scale)

        def part(x: Array) -> Array:
            x = backend.tile(backend.tile(x, item, items, -4), head, heads, -3)
            return backend.astype(backend.tile(x, start, size, -2), compute)

        compute = backend.compute_dtype(self.scale.dtype)
        return part(self.integers) * part(self.scale)


class QuantizedCache(NamedTuple):
    """A linear cache of bytes: a quarter of the memory of float32, half of that of bfloat16.

        scale_j = max_d |k_jd| / 127,   n_jd = round(k_jd / scale_j),   k_jd ~ scale_j n_jd      (values alike)

        cache = QuantizedCache.empty(batch, kv_heads, capacity, head_dim, like=x)
        cache = cache.append(k, v)
        out = cache.attend(q, is_causal=True, query_offset=before)   # a tile is floating when the fold comes to it

    An entry is off by at most half a scale, max_d |k_jd| / 254. With K and V the largest |k| and |v|, a score is then off by
    at most delta = |scale| sum_d |q_d| K / 254, and an output by (exp(2 delta) - 1) V + V / 254, besides rounding and as
    long as nothing is done to the scores. A token that holds NaN or an infinity is NaN as a whole. Scales are of the dtype of
    `like`. `key` and `value` make everything floating, for whoever asks for it. Length and overflow are as in `KVCache`.

    Source: a scale for each token is usual; Sheng 2023, arXiv:2303.06865, quantises caches by groups.

    >>> import numpy as np
    >>> cache = QuantizedCache.empty(1, 1, 2, 2, like=np.zeros(()))
    >>> cache.append(np.array([[[[1.27, -0.503]]]]), np.ones((1, 1, 1, 2))).key.round(6)[0, 0, 0]
    array([ 1.27, -0.5 ])
    """

    key_integers: Array  # (..., Hkv, capacity, D) int8
    key_scale: Array  # (..., Hkv, capacity, 1)
    value_integers: Array  # (..., Hkv, capacity, E) int8
    value_scale: Array  # (..., Hkv, capacity, 1)
    length: int | Array = 0  # how many tokens are there; 0-d, or one for each batch item

    @property
    def in_order(self) -> bool:
        """Slot i holds token i."""
        return True

    @classmethod
    @answers(f"{_WHO}.empty", line="QuantizedCache.empty")
    def empty(
        cls,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        like: Array,
    ) -> QuantizedCache:
        """A cache without tokens, for keys of the library and dtype and on the device of `like`."""
        who = f"{_WHO}.empty"
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity}
        widths = {
            "head_dim": size(who, "head_dim", head_dim, 1),
            "value_dim": size(who, "value_dim", head_dim if value_dim is None else value_dim, 1),
        }
        parts = []
        for name, width in widths.items():
            whole, scale = zeros(who, like, **sizes, **{name: width}), zeros(who, like, **sizes, one=1)
            backend = backend_of(scale)
            parts += [backend.astype(whole, backend.xp.int8), scale]
        return cls(*parts)

    @property
    def capacity(self) -> int:
        """The number of tokens there is room for."""
        return int(self.key_integers.shape[-2])

    @property
    def key(self) -> Array:
        """(..., Hkv, capacity, D), as floating numbers: a copy of everything."""
        return _floating(self.key_integers, self.key_scale)

    @property
    def value(self) -> Array:
        """(..., Hkv, capacity, E), as floating numbers."""
        return _floating(self.value_integers, self.value_scale)

    @property
    def mask(self) -> Mask:
        """Hides what is not there yet."""
        return masks.key_lengths(self.length)

    @property
    def positions(self) -> Array:
        """The index of a slot where a token is, -1 where none is yet: (capacity,), or (B, capacity)."""
        backend = backend_of(self.key_scale)
        at = backend.arange(0, self.capacity, self.key_scale)
        return standing(backend, at, lengths(self.length, self.key_scale))

    @answers(f"{_WHO}.append", line="cache.append")
    def append(self, key: Array, value: Array) -> QuantizedCache:
        """The cache with these tokens, rounded, behind its own: key (..., Hkv, n, D), value (..., Hkv, n, E)."""
        who, length = f"{_WHO}.append", self.length
        like = (_like(self.key_integers, self.key_scale), _like(self.value_integers, self.value_scale))
        n = check_tokens(who, key, value, *like)
        room_for(who, n, held(who, length, tuple(self.key_scale.shape[:-3])), self.capacity)
        new = (*_rounded(key), *_rounded(value))
        parts = [behind(old, x, length) for old, x in zip(self[:4], new, strict=True)]
        return QuantizedCache._make([*parts, length + n])

    @answers(f"{_WHO}.attend", line="cache.attend")
    def attend(
        self,
        query: Array,
        *,
        return_aux: AuxRequest | None = None,
        implementation: Any = "auto",
        **options: Any,
    ) -> Any:
        """`attention` of query (..., Hq, L, D) to what is there: a fold over tiles that are made floating one at a time.

        Takes the options of `attention` but for those that say where keys stand, and a layout. An implementation other than
        "auto" and "blockwise", values besides lse, and leading axes other than one batch have everything made floating.
        """
        who = f"{_WHO}.attend"
        options = own_options(who, self, options)
        if (
            not folds(who, query, implementation, return_aux)
            or self.capacity == 0
            or self.key_scale.ndim != 4
        ):
            given = {"return_aux": return_aux, "implementation": implementation}
            return attention(query, self.key, self.value, **given, **options)
        key, value = Scaled(*self[:2]), Scaled(*self[2:4])
        return attend_stored(who, query, key, value, self.key_scale, return_aux=return_aux, **options)


def _rounded(x: Array) -> tuple[Array, Array]:
    """Bytes and their scales."""
    backend = backend_of(x)
    xp, compute = backend.xp, backend.compute_dtype(x.dtype)
    exact = backend.astype(x, compute)
    scale = backend.astype(xp.max(xp.abs(exact), axis=-1, keepdims=True) / MOST, x.dtype)
    step = backend.astype(scale, compute)
    steps = xp.round(exact / xp.where(step > 0, step, 1.0))
    # What is not finite is so by its scale alone.
    steps = xp.where(xp.isfinite(steps), xp.clip(steps, -MOST, MOST), 0.0)
    return backend.astype(steps, xp.int8), scale


def _floating(integers: Array, scale: Array) -> Array:
    backend = backend_of(scale)
    compute = backend.compute_dtype(scale.dtype)
    return backend.astype(backend.astype(integers, compute) * backend.astype(scale, compute), scale.dtype)


def _like(integers: Array, scale: Array) -> Array:
    """What stands for the floating tokens where shapes and dtypes are compared."""
    shape = (*scale.shape[:-2], 1, integers.shape[-1])
    return backend_of(scale).xp.broadcast_to(scale[..., :1, :], shape)
