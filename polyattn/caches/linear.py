"""The linear cache: slots that are filled one after the other."""

from __future__ import annotations

from typing import NamedTuple

from polyattn import masks
from polyattn.arrays import Array, backend_of
from polyattn.caches.scatter import behind
from polyattn.caches.tokens import check_tokens, held, lengths, room_for, standing, zeros
from polyattn.calls import answers
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
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity}
        value_dim = head_dim if value_dim is None else value_dim
        return cls(
            zeros(who, like, **sizes, head_dim=head_dim), zeros(who, like, **sizes, value_dim=value_dim)
        )

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
        return standing(backend, at, lengths(self.length, self.key))

    @answers(_WHO, line="cache.append")
    def append(self, key: Array, value: Array) -> KVCache:
        """The cache with these tokens behind its own: key (..., Hkv, n, D), value (..., Hkv, n, E).

        ValueError if they do not fit. If a compiler traces `length`, that cannot be known: what does not fit
        then reads as NaN, and so does everything that attends to it.
        """
        n = check_tokens(_WHO, key, value, self.key, self.value)
        room_for(_WHO, n, held(_WHO, self.length, tuple(self.key.shape[:-3])), self.capacity)
        return KVCache(
            behind(self.key, key, self.length), behind(self.value, value, self.length), self.length + n
        )
