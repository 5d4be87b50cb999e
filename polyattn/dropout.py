"""Dropout whose mask is a function: the same bits on every array library, for every tiling.

The keep-mask at (batch, head, q, kv) is a counter-based random word (Salmon 2011, "Parallel random
numbers: as easy as 1, 2, 3", section 4: Threefry-2x32, 20 rounds): nothing is stored, nothing is
sequential, and any tile can be drawn alone. Threefry rather than Philox, because it needs no
32 x 32 -> 64 bit product, so signed 32-bit integers, which every array library has, are enough.
"""

from __future__ import annotations

import math
from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.places.positions import Positions, whole

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_SIGN = -(1 << 31)


def threefry2x32(key0: Array, key1: Array, counter0: Array, counter1: Array) -> tuple[Array, Array]:
    """Two random words for every pair of counter words: 32-bit integers carried in int32, broadcasting.

    >>> import numpy as np
    >>> zero = np.zeros(1, np.int32)
    >>> [f"{int(word[0]) & 0xFFFFFFFF:08x}" for word in threefry2x32(zero, zero, zero, zero)]
    ['6b200159', '99ba4efe']
    """
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x, y = counter0 + key0, counter1 + key1
    for block in range(5):
        for r in _ROTATIONS[block % 2]:
            x = x + y
            # A logical shift of a signed integer: shift, then clear the copies of the sign.
            y = (y << r) | ((y >> (32 - r)) & ((1 << r) - 1))
            y = x ^ y
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + (block + 1)
    return x, y


def key_of(seed: int, stream: int) -> tuple[int, int]:
    """The key of an independent stream of words, as two signed 32-bit integers.

    >>> key_of(0, 0)
    (844240965, 2082719024)
    """
    # The last counter is negative, which no head index is: these words are no dropout words.
    word0, word1 = threefry2x32(seed & 0xFFFFFFFF, seed >> 32, stream, -2)  # bits above 32 never come down
    return _signed(word0), _signed(word1)


def fold_in(seed: int | Array, stream: int) -> int | Array:
    """A seed for part number `stream` of a whole that has one seed; an array for an array.

    >>> fold_in(7, 0), fold_in(7, 1)
    (681211166, 1495176585)
    """
    if isinstance(seed, int):
        return threefry2x32(seed & 0xFFFFFFFF, seed >> 32, stream, -1)[0] & 0x7FFFFFFF
    backend = backend_of(seed)
    xp = backend.xp
    low = xp.reshape(backend.astype(seed, xp.int32), (1,))
    zero = xp.zeros_like(low)
    word, _ = backend.opaque(threefry2x32)(low, zero, zero + stream, zero - 1)
    return xp.reshape(word & 0x7FFFFFFF, ())


def drop(x: Array, rate: float, seed: int | Array | None) -> Array:
    """x / (1 - rate) where kept, 0 where dropped, entry by entry; x itself without a seed or a rate.

    x: (..., L, E); the entries of leading axes, rows and columns are drawn independently.
    """
    if seed is None or rate == 0.0:
        return x
    backend = backend_of(x)
    xp = backend.xp
    rows, columns = x.shape[-2:]
    items = math.prod(x.shape[:-2])
    at = whole(backend, x, items, 1, rows, columns)
    factors = keep_factors(rate, seed, at, backend.compute_dtype(x.dtype))
    return x * backend.astype(xp.reshape(factors, x.shape), x.dtype)


def keep_factors(rate: float, seed: int | Array, at: Positions, dtype: Any) -> Array:
    """1 / (1 - rate) where a weight is kept, 0 where it is dropped: (B, H, L, S).

    A key for each (batch, head), then a word for each (q, kv); kept where the word, as an unsigned
    number, is at least rate * 2^32. The query counts by position, so a cut sequence draws the same mask.
    """
    backend = backend_of(at.kv)
    xp = backend.xp
    b, h, q, kv = (backend.astype(index, xp.int32) for index in (at.b, at.h, at.q, at.kv))
    zero = xp.zeros((1, 1, 1, 1), dtype=xp.int32, device=backend.device(kv))
    if isinstance(seed, int):
        low, high = zero + _signed(seed), zero + _signed(seed >> 32)
    else:
        low, high = zero + backend.astype(seed, xp.int32), zero
    words = backend.opaque(threefry2x32)
    word, _ = words(*words(low, high, b, h), q, kv)
    threshold = min(round(rate * 2**32), 2**32 - 1) + _SIGN
    return xp.where((word ^ _SIGN) >= threshold, 1.0 / (1.0 - rate), backend.asarray(0.0, dtype, kv))


def _signed(word: int) -> int:
    """The low 32 bits as a signed number."""
    word &= 0xFFFFFFFF
    return word + 2 * _SIGN if word >= -_SIGN else word
