"""How far off an array is, row by row, in units of what was measured that rounding does to it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations

import numpy as np

from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = [
    "aligned",
    "axes_of",
    "elementwise",
    "error_of",
    "eta_of",
    "relative",
    "roundoff",
    "row_rms",
    "unit_of",
]


def roundoff(dtype: str) -> float:
    """That of a dtype, of float32 where it is no dtype of floats."""
    return UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["float32"])


def row_rms(x: Floats) -> Floats:
    """The root mean square over the last axis, which stays with length 1; what is not finite counts as 0."""
    wide = np.atleast_1d(np.asarray(x, np.float64))
    wide = np.where(np.isfinite(wide), wide, 0.0)
    if wide.shape[-1] == 0:
        return np.zeros((*wide.shape[:-1], 1))
    return np.asarray(np.sqrt(np.mean(wide * wide, -1, keepdims=True)))


def unit_of(value: Floats, deviations: Iterable[Floats], u: float) -> Floats:
    """The unit of every row, (..., 1): sqrt(own^2 + pooled^2 + (u rms(value))^2).

    own: the rms of the measured deviations in that row, pooled: the mean of its squares over all rows, for a row of
    few numbers may be right by luck. The last term is one rounding of the result, which every program is allowed.
    """
    own = sum((row_rms(d) ** 2 for d in deviations), np.zeros(row_rms(value).shape))
    pooled = float(np.mean(own)) if own.size else 0.0
    return np.asarray(np.sqrt(own + pooled + (u * row_rms(value)) ** 2))


def aligned(seen: Floats, value: Floats) -> Floats | None:
    """seen in the shape of value, where only axes of length 1 differ, or neighbours that are one axis on one side.

    >>> aligned(np.ones((6, 4)), np.ones((2, 3, 4))).shape
    (2, 3, 4)
    >>> aligned(np.ones((3, 2, 4)), np.ones((2, 3, 4)))
    """
    if seen.shape == value.shape:
        return seen
    if seen.size != value.size or seen.ndim == 0 or value.ndim == 0:
        return None
    ends = [set(np.cumprod(x.shape).tolist()) for x in (seen, value)]
    return seen.reshape(value.shape) if ends[0] <= ends[1] or ends[1] <= ends[0] else None


def axes_of(seen: Floats, value: Floats, unit: Floats) -> tuple[int, ...] | None:
    """The order of axes in which seen is nearest to value and has its shape, None if it has the shape as it is."""
    if seen.ndim != value.ndim or seen.ndim > 5 or seen.shape == value.shape:
        return None
    fitting = [p for p in permutations(range(seen.ndim)) if seen.transpose(p).shape == value.shape]
    return min(fitting, key=lambda p: eta_of(seen.transpose(p), value, unit), default=None)


def error_of(seen: Floats, value: Floats) -> Floats:
    """seen - value; 0 where both are the same infinity or NaN, inf where one is not finite and the other is."""
    a, b = np.asarray(seen, np.float64), np.asarray(value, np.float64)
    with np.errstate(invalid="ignore"):
        error = a - b
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf)))


def eta_of(seen: Floats, value: Floats, unit: Floats) -> float:
    """The largest over rows of rms(seen - value) / unit; inf for another shape, or what is not finite on one side alone.

    >>> eta_of(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]), np.array([[0.5]])) == 8**0.5
    True
    """
    if seen.shape != value.shape:
        return math.inf
    error = np.atleast_1d(error_of(seen, value))
    if error.size == 0:
        return 0.0
    if np.isinf(error).any():
        return math.inf
    rms = row_rms(error)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(rms == 0, 0.0, rms / unit)))


def elementwise(unit: Floats, value: Floats) -> Floats:
    """The unit of a single element, for whoever takes the largest of all: what the largest of so many normal numbers is."""
    return unit * math.sqrt(2.0 * math.log(max(value.size, 2)))


def relative(unit: Floats, value: Floats) -> float:
    """The unit over the size of what it is the unit of, over all rows."""
    size = float(np.sqrt(np.mean(row_rms(value) ** 2))) if value.size else 0.0
    noise = float(np.sqrt(np.mean(unit**2))) if unit.size else 0.0
    return noise / size if size else noise
