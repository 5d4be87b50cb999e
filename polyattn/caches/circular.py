"""The circular cache: for a window, the slots of tokens that no query sees any more are used again."""

from __future__ import annotations

from typing import NamedTuple

from polyattn import masks
from polyattn.arrays import Array, backend_of, is_array
from polyattn.caches.scatter import gather, scatter
from polyattn.caches.tokens import check_tokens, held, lengths, zeros
from polyattn.calls import answers, size
from polyattn.masks.algebra import Mask

__all__ = ["CircularCache"]

_WHO = "polyattn.caches.CircularCache.append"


class CircularCache(NamedTuple):
    """The latest tokens of a text of any length, for a sliding window: memory that does not grow.

        the token at position p stands in slot p % capacity     (`positions` says which p each slot has, -1: none)

        cache = CircularCache.empty(batch, kv_heads, window, head_dim, like=x)
        cache = cache.append(k, v)       # (..., Hkv, n, D), keys already turned to their positions
        where = {"query_offset": before, "key_positions": cache.positions}
        out = attention(q, cache.key, cache.value, mask=cache.mask, **where)

    Its mask is `masks.sliding_window(window)`, so that no result depends on the pieces in which tokens come: what is
    beyond the window is hidden whether it was overwritten already or not. At most capacity - window + 1 tokens at
    once are written in place, with the same shapes before and after, so that one compiled step serves every position.
    A longer piece, as a prompt is, gives key and value of window - 1 + n slots for that one step, the last window - 1
    old tokens and the new ones in order, and the next `append` is back at `capacity` slots.

    length counts all tokens that ever came; as in `KVCache` it may be an array with a number for each batch item, and
    be traced. Nothing overflows. Source: the rolling buffer of Jiang 2023, arXiv:2310.06825, section 2.

    >>> import numpy as np
    >>> cache = CircularCache.empty(1, 1, 3, 2, capacity=4, like=np.zeros(()))
    >>> for _ in range(6):
    ...     cache = cache.append(np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 2)))
    >>> cache.length, cache.positions
    (6, array([4, 5, 2, 3], dtype=int32))
    """

    key: Array  # (..., Hkv, slots, D); slots is capacity, or more for one step after a long piece
    value: Array  # (..., Hkv, slots, E)
    length: int | Array  # how many tokens came; 0-d, or one for each batch item
    sizes: Array  # (capacity, window, 0): no number in it, since what compilers know of an array is its shape

    @classmethod
    @answers("polyattn.caches.CircularCache.empty", line="CircularCache.empty")
    def empty(
        cls,
        batch: int,
        kv_heads: int,
        window: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        capacity: int | None = None,
        like: Array,
    ) -> CircularCache:
        """A cache without tokens in the library, dtype and on the device of `like`; capacity: None = window."""
        who = "polyattn.caches.CircularCache.empty"
        window = size(who, "window", window, 1, "it counts keys, the token itself among them")
        capacity = size(
            who, "capacity", window if capacity is None else capacity, window, "the window has to fit"
        )
        value_dim = head_dim if value_dim is None else value_dim
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity}
        return cls(
            zeros(who, like, **sizes, head_dim=head_dim),
            zeros(who, like, **sizes, value_dim=value_dim),
            0,
            zeros(who, like, capacity=capacity, window=window, nothing=0),
        )

    @property
    def in_order(self) -> bool:
        """Slots are used again, so `positions` says where each key stands."""
        return False

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return int(self.sizes.shape[0])

    @property
    def window(self) -> int:
        """How many keys a query sees, the token itself among them."""
        return int(self.sizes.shape[1])

    @property
    def mask(self) -> Mask:
        """The sliding window, beyond which tokens may be forgotten."""
        return masks.sliding_window(self.window)

    @property
    def positions(self) -> Array:
        """Where the key in each slot stands, -1 in an empty one: (slots,), or (B, slots)."""
        backend, slots = backend_of(self.key), self.key.shape[-2]
        if slots == self.capacity:
            at = self._latest()
        else:
            at = lengths(self.length, self.key) - slots + backend.arange(0, slots, self.key)
        return backend.xp.where(at < 0, -1, at)

    @answers(_WHO, line="cache.append")
    def append(self, key: Array, value: Array) -> CircularCache:
        """The cache with these tokens behind its own: key (..., Hkv, n, D), value (..., Hkv, n, E), any n."""
        n = check_tokens(_WHO, key, value, self.key, self.value)
        held(_WHO, self.length, tuple(self.key.shape[:-3]))
        write = self._put if n <= self.capacity - self.window + 1 else self._behind
        return CircularCache(write(self.key, key), write(self.value, value), self.length + n, self.sizes)

    def _latest(self) -> Array:
        """The last position of each slot of the ring; negative where none came: (capacity,), or (B, capacity)."""
        last = lengths(self.length, self.key) - 1
        return last - (last - backend_of(self.key).arange(0, self.capacity, self.key)) % self.capacity

    def _read(self, old: Array, at: Array) -> Array:
        """The tokens at these positions; anything where there is none."""
        slots = old.shape[-2]
        if slots == self.capacity:
            return gather(old, at % slots)
        at = at - (lengths(self.length, old) - slots)
        return gather(old, backend_of(old).xp.where((at >= 0) & (at < slots), at, 0))

    def _ring(self, old: Array) -> Array:
        """`capacity` slots, each in its place."""
        return old if old.shape[-2] == self.capacity else self._read(old, self._latest())

    def _put(self, old: Array, new: Array) -> Array:
        """The ring with `new` in place of the oldest."""
        backend, length, ring = backend_of(old), self.length, self._ring(old)
        if new.shape[-2] == 0:
            return ring
        if new.shape[-2] == 1 and not (is_array(length) and length.ndim):
            return backend.put(ring, length % self.capacity, new, -2)
        start = lengths(length, ring)[..., 0] % self.capacity
        return scatter(ring, new, start, -2, circular=True)

    def _behind(self, old: Array, new: Array) -> Array:
        """The last window - 1 tokens, and `new`."""
        backend, kept = backend_of(old), self.window - 1
        at = lengths(self.length, old) - kept + backend.arange(0, kept, old)
        return backend.xp.concat([self._read(old, at), new], axis=-2)
