"""Numbers rounded to a lower precision, and how far a right computation may land from that.

What is rounded was computed, mostly. If it lies between two numbers of the lower precision to within its own error, another
right computation rounds it to the other one: that is not an error of its rounding, and goes into the condition.
"""

from __future__ import annotations

import numpy as np

from polyattn.truth.measure import UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["SCALES", "Rounded", "in_bytes", "rounded", "stage_of"]

Rounded = tuple[Floats, Floats | float]

#: What is computed before it is rounded is in float32 at least.
U = UNIT_ROUNDOFF["float32"]

#: fraction bits, exponent of the smallest normal number, largest number, what is beyond
_EIGHT_BITS = {"float8_e4m3": (3, -6, 448.0, np.nan), "float8_e5m2": (2, -14, 57344.0, np.inf)}
#: Caches of bytes: over which axes of (B, H, S, D) a scale is taken, of keys and of values.
SCALES: dict[str, tuple[int | tuple[int, ...], int | tuple[int, ...]]] = {
    "int8 per token": (-1, -1),
    "int8 per channel": (-2, -2),
    "int8 keys per channel": (-2, -1),
    "int8 per tensor": ((0, 1, 2, 3), (0, 1, 2, 3)),
}


def stage_of(precision: str) -> tuple[str, str]:
    """The lower precision and what is rounded to it; two empty strings if nothing is."""
    low, _, stage = precision.partition(" ")
    return ("", "") if precision == "as stated" else (low, stage)


def rounded(x: Floats, low: str, error: Floats | float = 0.0) -> Rounded:
    """x rounded to a lower precision, and what else it may be rounded to: by how many U that is away.

    error: of x, in units of U; 0 says that x is exact.
    """
    y = _nearest(x, low)
    if np.ndim(error) == 0 and not error:
        return y, 0.0
    with np.errstate(invalid="ignore"):
        apart = np.abs(_nearest(x + U * error, low) - _nearest(x - U * error, low))
    return y, np.where(np.isfinite(apart), apart, 0.0) / U


def in_bytes(x: Floats, axes: int | tuple[int, ...], error: Floats | float) -> Rounded:
    """scale * round(x / scale) with scale = max |x| / 127 over some axes, as `rounded` gives it."""
    scale = np.abs(x).max(axes, keepdims=True, initial=0.0) / 127.0
    scale = np.where(scale == 0, x.dtype.type(1.0), scale)
    steps = x / scale
    of_scale = np.max(error, axes, keepdims=True, initial=0.0) if np.ndim(error) else error
    near = U * (4.0 * np.abs(steps) + (error + of_scale * np.abs(steps) / 127.0) / scale)
    apart = np.rint(steps + near) - np.rint(steps - near)
    return scale * np.rint(steps), scale * apart / U


def _nearest(x: Floats, low: str) -> Floats:
    if low in _EIGHT_BITS:
        bits, least, largest, beyond = _EIGHT_BITS[low]
        exponent = np.maximum(np.frexp(x)[1] - 1, least)
        y = np.ldexp(np.rint(np.ldexp(x, bits - exponent)), exponent - bits)
        return np.where(np.abs(y) > largest, np.copysign(beyond, y), y)
    # By way of float32, as in a program: a number halfway after that is halfway for it too.
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
        if low != "tf32":
            return round_to(narrow, low).astype(x.dtype)
    bits_ = narrow.view(np.uint32)
    bits_ = (bits_ + (0xFFF + ((bits_ >> 13) & 1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(narrow), bits_.view(np.float32), narrow).astype(x.dtype)
