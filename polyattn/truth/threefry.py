"""The dropout factors from Threefry-2x32 (Salmon 2011) in Python integers: shares no code with the library's."""

from __future__ import annotations

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["kept"]


def kept(batch: int, heads: int, rows: int, keys: int, *, rate: float, seed: int) -> Floats:
    """0 where a weight is dropped and 1 / (1 - rate) where it is kept, (B, H, L, S)."""

    def threefry(key: tuple[int, int], x: int, y: int) -> tuple[int, int]:
        words = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
        x, y = (x + words[0]) % 2**32, (y + words[1]) % 2**32
        for i in range(20):
            r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
            x = (x + y) % 2**32
            y = ((y << r | y >> (32 - r)) % 2**32) ^ x
            if i % 4 == 3:
                n = i // 4 + 1
                x, y = (x + words[n % 3]) % 2**32, (y + words[(n + 1) % 3] + n) % 2**32
        return x, y

    keep = np.zeros((batch, heads, rows, keys))
    for b, h, i, j in np.ndindex(keep.shape):
        word, _ = threefry(threefry((seed % 2**32, seed >> 32), b, h), i, j)
        keep[b, h, i, j] = 1 / (1 - rate) if word >= rate * 2**32 else 0.0
    return keep
