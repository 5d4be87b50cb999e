"""Random bits as a function of a counter: the same words on every array library, in any order.

Threefry-2x32, 20 rounds (Salmon 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4): nothing is stored,
nothing is sequential. Threefry rather than Philox, because it needs no 32 x 32 -> 64 bit product, so signed 32-bit
integers, which every array library has, are enough.
"""

from __future__ import annotations

from polyattn.arrays.discovery import backend_of
from polyattn.arrays.numbers import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
SIGN = -(1 << 31)


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
    return signed(word0), signed(word1)


def fold_in(seed: int | Array, stream: int) -> int | Array:
    """A seed for part number `stream` of a whole that has one seed; an array for an array.

    >>> fold_in(7, 0), fold_in(7, 1)
    (681211166, 1495176585)
    """
    if isinstance(seed, int):
        return threefry2x32(seed & 0xFFFFFFFF, seed >> 32, stream, -1)[0] & 0x7FFFFFFF
    backend = backend_of(seed)
    xp = backend.xp
    low, high = words_of(seed)
    low = xp.reshape(low, (1,))
    zero = xp.zeros_like(low)
    word, _ = backend.opaque(threefry2x32)(low, zero + high, zero + stream, zero - 1)
    return xp.reshape(word & 0x7FFFFFFF, ())


def words_of(seed: int | Array) -> tuple[int | Array, int | Array]:
    """The low and the high 32 bits of a seed, as signed numbers."""
    if isinstance(seed, int):
        return signed(seed), signed(seed >> 32)
    backend = backend_of(seed)
    xp = backend.xp
    if xp.iinfo(seed.dtype).bits <= 32:
        return backend.astype(seed, xp.int32), 0
    seed = backend.astype(seed, xp.int64)  # PyTorch shifts no unsigned numbers
    # Shifted up and down first: what does not fit is cut off rather than left to the library.
    return backend.astype((seed << 32) >> 32, xp.int32), backend.astype(seed >> 32, xp.int32)


def signed(word: int) -> int:
    """The low 32 bits as a signed number."""
    word &= 0xFFFFFFFF
    return word + 2 * SIGN if word >= -SIGN else word
