"""The linear cache: slots that are filled one after the other."""

from __future__ import annotations

from typing import NamedTuple

from polyattn import masks
from polyattn.arrays import Array, backend_of, is_array
from polyattn.caches.scatter import scatter
from polyattn.calls import answers, array, real, size
from polyattn.masks.algebra import Mask

__all__ = ["KVCache"]

_WHO = "polyattn.caches.KVCache.append"


class KVCache(NamedTuple):
    """A linear cache: room for `capacity` tokens, of which the first `length` are there.

        cache = KVCache.empty(batch, kv_heads, capacity, head_dim, like=x)
        cache = cache.append(k, v)         # (..., Hkv, n, D): any number of tokens, so prefill in pieces
        out = attention(q, cache.key, cache.value, mask=cache.mask, is_causal=True, query_offset=before)

    length may be an array with a number for each batch item, whose texts are of different length then, and may be
    traced by a compiler, so that one compiled step serves every position. A cache is a NamedTuple, hence a pytree.
    Beyond length the arrays hold zeros that nobody may see.

    >>> import numpy as np
    >>> cache = KVCache.empty(1, 1, 4, 2, like=np.zeros(()))
    >>> cache = cache.append(np.ones((1, 1, 3, 2)), np.ones((1, 1, 3, 2)))
    >>> cache.length, cache.capacity, cache.positions
    (3, 4, array([ 0,  1,  2, -1], dtype=int32))
    """

    key: Array  # (..., Hkv, capacity, D)
    value: Array  # (..., Hkv, capacity, E)
    length: int | Array = 0  # how many tokens are there; 0-d, or one for each batch item

    @property
    def in_order(self) -> bool:
        """Slot i holds token i."""
        return True

    @classmethod
    @answers("polyattn.caches.KVCache.empty", line="KVCache.empty")
    def empty(
        cls,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        like: Array,
    ) -> KVCache:
        """A cache without tokens in the library, dtype and on the device of `like`."""
        who = "polyattn.caches.KVCache.empty"
        backend = real(who, "like", like, "which gives the library, the dtype and the device")
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity, "head_dim": head_dim}
        batch, kv_heads, capacity, head_dim = (size(who, name, n) for name, n in sizes.items())
        if value_dim is not None:
            value_dim = size(who, "value_dim", value_dim)

        def zeros(width: int) -> Array:
            shape = (batch, kv_heads, capacity, width)
            return backend.xp.zeros(shape, dtype=like.dtype, device=backend.device(like))

        return cls(zeros(head_dim), zeros(head_dim if value_dim is None else value_dim))

    @property
    def capacity(self) -> int:
        """The number of tokens there is room for."""
        return int(self.key.shape[-2])

    @property
    def mask(self) -> Mask:
        """Hides what is not there yet."""
        return masks.key_lengths(self.length)

    @property
    def positions(self) -> Array:
        """The index of a slot where a token is, -1 where none is yet: (capacity,), or (B, capacity)."""
        backend = backend_of(self.key)
        at = backend.arange(0, self.capacity, self.key)
        length: Array = self.length
        if is_array(length) and length.ndim:
            length = length[..., None]
        return backend.xp.where(at < length, at, -1)

    @answers(_WHO, line="cache.append")
    def append(self, key: Array, value: Array) -> KVCache:
        """The cache with these tokens behind its own: key (..., Hkv, n, D), value (..., Hkv, n, E).

        ValueError if they do not fit. If a compiler traces `length`, that cannot be known: what does not fit
        then reads as NaN, and so does everything that attends to it.
        """
        for name, new, old in (("key", key, self.key), ("value", value, self.value)):
            if array(_WHO, name, new) is not backend_of(old):
                raise TypeError(
                    f"{_WHO}: expected {name} of the library of the cache, {backend_of(old).name}, got "
                    f"{backend_of(new).name}; convert it, or make the cache with like={name}"
                )
            if (
                new.ndim != old.ndim
                or (*new.shape[:-2], new.shape[-1]) != (*old.shape[:-2], old.shape[-1])
                or new.dtype != old.dtype
            ):
                raise ValueError(
                    f"{_WHO}: expected {name} of shape {(*old.shape[:-2], 'n', old.shape[-1])} "
                    f"and dtype {old.dtype}, got {tuple(new.shape)} and {new.dtype}; make the cache for this batch"
                )
        n = key.shape[-2]
        if value.shape[-2] != n:
            raise ValueError(
                f"{_WHO}: expected as many values as keys, got {value.shape[-2]} and {n}; every key needs its value"
            )
        held = self._held()
        if held + n > self.capacity:
            raise ValueError(
                f"{_WHO}: expected at most {self.capacity - held} more tokens, got {n}; "
                f"the cache has room for {self.capacity} and holds {held}, so make a larger one"
            )
        return KVCache(self._put(self.key, key), self._put(self.value, value), self.length + n)

    def _held(self) -> int:
        """How many tokens the fullest batch item holds at least: 0 if a compiler traces that."""
        length, lead = self.length, tuple(self.key.shape[:-3])
        if not is_array(length):
            if not hasattr(length, "__index__"):
                raise TypeError(
                    f"{_WHO}: expected length to be an integer, or an array of one for each batch item, got "
                    f"{length!r}; make it an array of the library of key"
                )
            return length
        backend = backend_of(length)
        if tuple(length.shape) not in ((), lead) or not backend.isdtype(length.dtype, "integral"):
            raise ValueError(
                f"{_WHO}: expected length of integers and of shape () or {lead}, got {length.dtype} of shape "
                f"{tuple(length.shape)}; one number for all batch items, or one for each"
            )
        if not backend.is_concrete(length):
            return 0
        with backend.eager():
            return max(backend.to_list(backend.xp.reshape(length, (-1,))), default=0)

    def _put(self, old: Array, new: Array) -> Array:
        """The array with `new` behind what is there; NaN at the end instead where that turns out not to fit."""
        backend, length = backend_of(old), self.length
        xp = backend.xp
        if is_array(length) and not backend.is_concrete(length):
            last = self.capacity - new.shape[-2]
            fits = xp.reshape(length <= last, (*length.shape, *(1,) * (3 if length.ndim else 0)))
            new = xp.where(fits, new, backend.asarray(float("nan"), new.dtype, new))
            length = xp.clip(length, 0, last)
        if is_array(length) and length.ndim:
            return scatter(old, new, length, -2)
        return backend.put(old, length, new, -2)
