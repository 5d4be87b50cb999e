"""The angle of a position, reduced to one turn without an error that grows with the position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.places import brought_near

LIMB, DIGIT = 2**10, 2**12  # 3 (2^10 - 1) 2^11 < 2^24: three products and their sum are float32 numbers


def angles(positions: Array, frequencies: Sequence[float], dtype: Any) -> Array:
    """position * frequency in radians, reduced to [-pi, pi]: positions (..., 1) or (..., n), frequencies n numbers.

    A position p is cut into limbs of 10 bits, p = p0 + 2^10 p1 + 2^20 p2; what each of them turns per step, less whole
    turns, into two digits of 12 bits and a rest:

        p f = sum_k p_k f_k,   f_k = 2^(10 k) f mod 1 = 2^-12 a_k + 2^-24 b_k + 2^-24 r_k,   |a_k|, |b_k| <= 2^11, |r_k| <= 1/2

    Sums of p_k a_k and of p_k b_k are exact in float32, and so are whole turns taken from them; only the rests round, at
    2^-38 of a turn. So float32 has every angle as well as it has numbers up to pi, for positions up to 2^20 and beyond: up
    to 2^30 there is nothing but the rounding of the frequency itself, 2^-53 of it, times the position.
    Positions that are no integers are whole ones and a rest that multiplies f.

    >>> import numpy as np
    >>> angles(np.array([[1], [2**20]]), [1.0], np.float32).round(4)
    array([[1.    ],
           [0.3368]], dtype=float32)
    """
    backend = backend_of(positions)
    xp = backend.xp
    turns = tuple(f / (2 * math.pi) for f in frequencies)
    if backend.isdtype(positions.dtype, "integral"):
        whole, beyond = brought_near(positions), None
    else:
        floor = xp.floor(positions)
        whole = backend.astype(floor, xp.int32)
        beyond = backend.astype(positions - floor, dtype) * backend.asarray(turns, dtype, positions)
    limbs = [backend.astype(p, dtype) for p in (whole % LIMB, whole // LIMB % LIMB, whole // LIMB**2)]
    digits = backend.asarray(
        (_digits if backend.may_remember() else _digits.__wrapped__)(turns), dtype, positions
    )
    first, second, third = (p[..., None, :] * digits[k, ...] for k, p in enumerate(limbs))
    total = first + second + third  # (..., 3, n)
    upper, lower, rest = (total[..., i, :] for i in range(3))
    upper = upper * DIGIT**-1
    turn = (upper - xp.round(upper)) + lower * DIGIT**-2
    turn = (turn - xp.round(turn)) + rest * DIGIT**-2
    return 2 * math.pi * (turn if beyond is None else turn + beyond)


@lru_cache(maxsize=64)
def _digits(turns: tuple[float, ...]) -> list[list[list[float]]]:
    """Of each limb a, b and r: three lists of three rows."""
    found: list[list[list[float]]] = []
    for k in range(3):
        upper, lower, rest = [], [], []
        for f in turns:
            f *= LIMB**k
            f = (f - round(f)) * DIGIT
            upper.append(float(round(f)))
            f = (f - round(f)) * DIGIT
            lower.append(float(round(f)))
            rest.append(f - round(f))
        found.append([upper, lower, rest])
    return found
