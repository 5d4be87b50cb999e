"""The cache of a recurrent layer: a state of constant size in place of keys and values."""

from __future__ import annotations

from typing import NamedTuple

from polyattn.arrays import Array
from polyattn.caches.tokens import zeros
from polyattn.calls import answers, real, size

__all__ = ["RecurrentCache"]


class RecurrentCache(NamedTuple):
    """What a layer of linear attention remembers of a text of any length.

        out, state = linear_attention(q, k, v, ..., state=cache.state)     # polyattn.linear
        seen = concat([cache.tail, x])                                     # what a short convolution looks back to
        cache = RecurrentCache(state, seen[:, n:], cache.length + n)          # x has n tokens

    It has no slots: nothing overflows, and no token can be read again or taken back.

    >>> import numpy as np
    >>> cache = RecurrentCache.empty(2, 4, 8, kernel_size=4, channels=32, like=np.zeros(()))
    >>> cache.state.shape, cache.tail.shape, cache.length
    ((2, 4, 8, 8), (2, 3, 32), 0)
    """

    state: Array  # (..., Hkv, D, E) in the compute dtype
    tail: Array  # (..., kernel_size - 1, channels) the latest inputs of a short convolution
    length: int | Array = 0  # how many tokens came; 0-d, or one for each batch item

    @classmethod
    @answers("polyattn.caches.RecurrentCache.empty", line="RecurrentCache.empty")
    def empty(
        cls,
        batch: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        kernel_size: int = 1,
        channels: int = 0,
        like: Array,
    ) -> RecurrentCache:
        """A cache without tokens, for inputs of the library and dtype and on the device of `like`."""
        who = "polyattn.caches.RecurrentCache.empty"
        value_dim = head_dim if value_dim is None else value_dim
        state = zeros(who, like, batch=batch, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim)
        kept = size(who, "kernel_size", kernel_size, 1) - 1
        backend = real(who, "like", like)
        return cls(
            backend.astype(state, backend.compute_dtype(like.dtype)),
            zeros(who, like, batch=batch, kept=kept, channels=channels),
        )
