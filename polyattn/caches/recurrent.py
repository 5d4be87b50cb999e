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
    >>> cache = RecurrentCache.empty(1, 2, 4, tail=(3, 24), like=np.zeros((), np.float16))
    >>> cache.state.shape, cache.state.dtype, cache.tail.shape, cache.length
    ((1, 2, 4, 4), dtype('float32'), (1, 3, 24), 0)
    """

    state: Array  # (..., H, D, E) in the compute dtype: that of `polyattn.linear.linear_attention`
    tail: Array | None = None  # (..., k - 1, C): the last inputs of a convolution, None where there is none
    length: int | Array = 0  # how many tokens came

    @classmethod
    @answers("polyattn.caches.RecurrentCache.empty", line="RecurrentCache.empty")
    def empty(
        cls,
        batch: int,
        heads: int,
        head_dim: int,
        value_dim: int | None = None,
        *,
        tail: tuple[int, int] | None = None,
        like: Array,
    ) -> RecurrentCache:
        """A cache before the first token, on the device of `like`; tail: so many tokens of so many channels."""
        who = "polyattn.caches.RecurrentCache.empty"
        backend = real(who, "like", like, "which gives the library, the dtype and the device")
        given = {"batch": batch, "heads": heads, "head_dim": head_dim, "value_dim": value_dim}
        shape = tuple(size(who, name, head_dim if n is None else n) for name, n in given.items())

        def zeros(shape: tuple[int, ...], dtype: object) -> Array:
            return backend.xp.zeros(shape, dtype=dtype, device=backend.device(like))

        state = zeros(shape, backend.compute_dtype(like.dtype))
        if tail is None:
            return cls(state)
        return cls(state, zeros((shape[0], *(size(who, "tail", n) for n in tail)), like.dtype))
