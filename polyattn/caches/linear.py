"""The keys and values of earlier tokens, kept as a value: a new cache comes out, the old one stays."""

from __future__ import annotations

from typing import NamedTuple

from polyattn import masks
from polyattn.arrays import Array, backend_of, is_array
from polyattn.masks.algebra import Mask


class KVCache(NamedTuple):
    """A linear cache: room for `capacity` tokens, of which the first `length` are there.

        cache = KVCache.empty(batch, kv_heads, capacity, head_dim, like=x)
        cache = cache.append(k, v)         # (..., Hkv, n, D): any number of tokens, so prefill in pieces
        out = attention(q, cache.key, cache.value, mask=cache.mask, is_causal=True, query_offset=before)

    length may be traced by a compiler, so that one compiled step serves every position. A cache is a
    NamedTuple, hence a pytree. Beyond length the arrays hold zeros that nobody may see.

    >>> import numpy as np
    >>> cache = KVCache.empty(1, 1, 4, 2, like=np.zeros(()))
    >>> cache = cache.append(np.ones((1, 1, 3, 2)), np.ones((1, 1, 3, 2)))
    >>> cache.length, cache.capacity
    (3, 4)
    """

    key: Array  # (..., Hkv, capacity, D)
    value: Array  # (..., Hkv, capacity, E)
    length: int | Array = 0  # how many tokens are there

    @classmethod
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
        backend = backend_of(like)

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

    def append(self, key: Array, value: Array) -> KVCache:
        """The cache with these tokens behind its own: key (..., Hkv, n, D), value (..., Hkv, n, E).

        ValueError if they do not fit. If a compiler traces `length`, that cannot be known: what does not fit
        then reads as NaN, and so does everything that attends to it.
        """
        for name, new, old in (("key", key, self.key), ("value", value, self.value)):
            if (*new.shape[:-2], new.shape[-1]) != (*old.shape[:-2], old.shape[-1]) or new.dtype != old.dtype:
                raise ValueError(
                    f"polyattn.cache.KVCache.append: expected {name} of shape {(*old.shape[:-2], 'n', old.shape[-1])} "
                    f"and dtype {old.dtype}, got {tuple(new.shape)} and {new.dtype}; make the cache for this batch"
                )
        n, backend = key.shape[-2], backend_of(key)
        if value.shape[-2] != n:
            raise ValueError(
                f"polyattn.cache.KVCache.append: expected as many values as keys, got {value.shape[-2]} and {n}"
            )
        length = self.length
        if is_array(length) and backend_of(length).is_concrete(length):
            with backend.eager():
                length = backend.to_list(length)
        known = 0 if is_array(length) else length
        if known + n > self.capacity:
            raise ValueError(
                f"polyattn.cache.KVCache.append: expected at most {self.capacity - known} more tokens, got {n}; "
                f"the cache has room for {self.capacity} and holds {known}"
            )
        if is_array(length):
            xp = backend.xp
            fits = length + n <= self.capacity
            key, value = (xp.where(fits, x, backend.asarray(float("nan"), x.dtype, x)) for x in (key, value))
        return KVCache(
            backend.put(self.key, length, key, -2),
            backend.put(self.value, length, value, -2),
            self.length + n,
        )
