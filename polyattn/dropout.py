"""Dropout whose mask is a function: the same bits on every array library, for every tiling.

The keep-mask at (batch, head, q, kv) is a counter-based random word (Salmon 2011, "Parallel random
numbers: as easy as 1, 2, 3", section 4: Threefry-2x32, 20 rounds): nothing is stored, nothing is
sequential, and any tile can be drawn alone. Threefry rather than Philox, because it needs no
32 x 32 -> 64 bit product, so signed 32-bit integers, which every array library has, are enough.
"""

from __future__ import annotations

from typing import Any

from polyattn.backend import Array, backend_of
from polyattn.positions import Positions

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
