"""Dropout whose mask is a function: the same bits on every array library, for every tiling.

The keep-mask at (batch, head, q, kv) is a counter-based random word (`polyattn.arrays.random`), so any tile can be
drawn alone, on any device of many.
"""

from __future__ import annotations

import math
from typing import Any

from polyattn.arrays import Array, backend_of, is_array
from polyattn.arrays.random import SIGN, fold_in, key_of, threefry2x32, words_of
from polyattn.calls import answers, number, real, seed_like
from polyattn.places import Positions, positions

__all__ = ["drop", "fold_in", "keep_factors", "key_of", "threefry2x32"]


@answers("polyattn.dropout.drop")
def drop(x: Array, rate: float, seed: int | Array | None) -> Array:
    """x / (1 - rate) where kept, 0 where dropped, entry by entry; x itself without a seed or a rate.

    x: (..., L, E); the entries of leading axes, rows and columns are drawn independently.
    """
    who = "polyattn.dropout.drop"
    rate = number(who, "rate", rate)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{who}: expected 0 <= rate < 1, got {rate!r}; it is the share of numbers dropped")
    if seed is None or rate == 0.0:
        return x
    seed, backend = seed_like(who, "seed", seed), real(who, "x", x)
    if x.ndim < 2:
        raise ValueError(f"{who}: expected x of shape (..., L, E), got {tuple(x.shape)}; give it two axes")
    if is_array(seed) and backend_of(seed) is not backend:
        raise TypeError(
            f"{who}: expected seed of the library of x, got one of {backend_of(seed).name}; convert it"
        )
    xp = backend.xp
    rows, columns = x.shape[-2:]
    items = math.prod(x.shape[:-2])
    at = positions(backend, x, (items, 1, rows, columns))
    factors = keep_factors(rate, seed, at, backend.compute_dtype(x.dtype))
    return x * backend.astype(xp.reshape(factors, x.shape), x.dtype)


def keep_factors(rate: float, seed: int | Array, at: Positions, dtype: Any) -> Array:
    """1 / (1 - rate) where a weight is kept, 0 where it is dropped: (B, H, L, S).

    A key for each (batch, head), then a word for each (q, kv); kept where the word, as an unsigned
    number, is at least rate * 2^32. Rows and keys count by position, items and heads by their number in the
    whole, so any part of a problem draws its part of the mask.
    """
    backend = backend_of(at.kv)
    xp = backend.xp
    b, h, q, kv = (backend.astype(index, xp.int32) for index in (at.b, at.h, at.q, at.kv))
    low, high = (xp.zeros_like(b) + word for word in words_of(seed))
    words = backend.opaque(threefry2x32)
    word, _ = words(*words(low, high, b, h), q, kv)
    threshold = min(round(rate * 2**32), 2**32 - 1) + SIGN
    return xp.where((word ^ SIGN) >= threshold, 1.0 / (1.0 - rate), backend.asarray(0.0, dtype, kv))
