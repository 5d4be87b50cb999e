"""The recurrent cache: what a layer with a state remembers of earlier tokens, however many there were."""

from __future__ import annotations

from typing import NamedTuple

from polyattn.arrays import Array
from polyattn.calls import answers, real, size

__all__ = ["RecurrentCache"]


class RecurrentCache(NamedTuple):
    """The state of a recurrent layer, of the same size after one token and after a million.

        cache = layer.empty_cache(batch, capacity, like=x)
        out, cache, _ = layer.run(params, x, cache=cache)   # any number of tokens at a time

    A NamedTuple, hence a pytree; the old one stays when a new one comes.

    >>> import numpy as np
    >>> cache = RecurrentCache.empty(1, 2, 4, kernel_size=4, channels=24, like=np.zeros((), np.float16))
    >>> cache.state.shape, cache.state.dtype, cache.tail.shape, cache.length
    ((1, 2, 4, 4), dtype('float32'), (1, 3, 24), 0)
    """

    state: Array  # (..., H, D, E) in the compute dtype: that of `polyattn.linear.linear_attention`
    tail: Array  # (..., kernel_size - 1, channels): the last inputs of a convolution, of size 0 where there is none
    length: int | Array = 0  # how many tokens came

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
        """A cache before the first token, for inputs of the library and dtype and on the device of `like`."""
        who = "polyattn.caches.RecurrentCache.empty"
        backend = real(who, "like", like, "which gives the library, the dtype and the device")
        given = {"batch": batch, "kv_heads": kv_heads, "head_dim": head_dim, "value_dim": value_dim}
        state = tuple(size(who, name, head_dim if n is None else n) for name, n in given.items())
        tail = (state[0], size(who, "kernel_size", kernel_size, 1) - 1, size(who, "channels", channels))
        shapes = ((state, backend.compute_dtype(like.dtype)), (tail, like.dtype))
        return cls(*(backend.xp.zeros(s, dtype=dtype, device=backend.device(like)) for s, dtype in shapes))
