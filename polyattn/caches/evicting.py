"""The evicting cache: slots in any order, of which those are used again whose tokens were given up."""

from __future__ import annotations

from typing import NamedTuple

from polyattn import masks
from polyattn.arrays import Array, backend_of, is_array
from polyattn.caches.scatter import gather
from polyattn.caches.tokens import check_tokens, held, lengths, room_for, zeros
from polyattn.calls import answers, real, shown
from polyattn.masks.algebra import Mask

__all__ = ["EvictingCache"]

_WHO = "polyattn.caches.EvictingCache"


class EvictingCache(NamedTuple):
    """A cache that forgets what it is told to: every slot has the position of its token beside it.

        cache = EvictingCache.empty(batch, kv_heads, capacity, head_dim, like=x)
        cache = cache.append(k, v)                         # into empty slots, in whatever order these are
        out = cached_attention(q, cache, is_causal=True)
        cache = cache.evict(heaviest(mass, 64))            # all but the 64 keys that were looked at most are given up

    A token keeps its position when others go, so causal masks, windows and rotary positions mean what they meant. All
    heads of an item forget the same tokens. More tokens than there are empty slots are a ValueError; where a compiler
    traces positions that cannot be known, and they read as NaN in place of others.

    Source: heavy hitters, Zhang 2023, arXiv:2306.14048; with sinks and a window, Xiao 2023, arXiv:2309.17453.

    >>> import numpy as np
    >>> token = np.ones((1, 1, 3, 2))
    >>> cache = EvictingCache.empty(1, 1, 4, 2, like=token).append(token, token)
    >>> cache = cache.evict(np.array([[True, False, True, True]])).append(token[:, :, :2], token[:, :, :2])
    >>> cache.positions, cache.length
    (array([[0, 3, 2, 4]], dtype=int32), 5)
    """

    key: Array  # (B, Hkv, capacity, D)
    value: Array  # (B, Hkv, capacity, E)
    positions: Array  # (B, capacity) where the key in each slot stands; -1 = an empty slot
    length: int | Array = 0  # how many tokens came; 0-d, or one for each batch item

    @property
    def in_order(self) -> bool:
        """Slots are used again, so `positions` says where each key stands."""
        return False

    @classmethod
    @answers(f"{_WHO}.empty", line="EvictingCache.empty")
    def empty(
        cls,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        like: Array,
    ) -> EvictingCache:
        """A cache without tokens in the library, dtype and on the device of `like`."""
        who = f"{_WHO}.empty"
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity}
        backend = real(who, "like", like)
        nowhere = backend.astype(zeros(who, like, batch=batch, capacity=capacity), backend.xp.int32) - 1
        return cls(
            zeros(who, like, **sizes, head_dim=head_dim),
            zeros(who, like, **sizes, value_dim=head_dim if value_dim is None else value_dim),
            nowhere,
        )

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return int(self.key.shape[-2])

    @property
    def mask(self) -> Mask:
        """Hides nothing: `positions` says which slots are empty."""
        return masks.key_lengths(self.capacity)

    @answers(f"{_WHO}.append", line="cache.append")
    def append(self, key: Array, value: Array) -> EvictingCache:
        """The cache with these tokens in empty slots: key (B, Hkv, n, D), value (B, Hkv, n, E)."""
        who, backend = f"{_WHO}.append", backend_of(self.key)
        xp, length = backend.xp, self.length
        n = check_tokens(who, key, value, self.key, self.value)
        held(who, length, tuple(self.key.shape[:1]))
        taken = backend.astype(self.positions >= 0, xp.int32)
        count = xp.sum(taken, axis=-1)
        room_for(who, n, held(who, count, tuple(count.shape)), self.capacity)
        # Slot s gets token rank[s]: the inverse of the order in which empty slots come first.
        order = xp.argsort(taken, axis=-1, stable=True)
        rank = backend.astype(xp.argsort(order, axis=-1, stable=True), xp.int32)
        arrives, fits = rank < n, count + n <= self.capacity

        def put(old: Array, new: Array) -> Array:
            if n == 0:
                return old
            nan = backend.asarray(float("nan"), new.dtype, new)
            new = xp.where(fits[:, None, None, None], new, nan)
            return xp.where(arrives[:, None, :, None], gather(new, xp.where(arrives, rank, 0)), old)

        at = lengths(length, self.key) + rank
        return EvictingCache(
            put(self.key, key), put(self.value, value), xp.where(arrives, at, self.positions), length + n
        )

    @answers(f"{_WHO}.evict", line="cache.evict")
    def evict(self, keep: Array) -> EvictingCache:
        """The cache without the tokens in the slots that are not kept: (B, capacity) bools, or (capacity,) for all items."""
        xp, shape = backend_of(self.key).xp, tuple(self.positions.shape)
        if not is_array(keep) or tuple(keep.shape) not in (shape, shape[1:]) or keep.dtype != xp.bool:
            raise ValueError(
                f"{_WHO}.evict: expected keep to be an array of bools of shape {shape}, True for the slots that stay, "
                f"got {shown(keep)}; heaviest(mass, n) makes one"
            )
        return self._replace(positions=xp.where(keep, self.positions, -1))
