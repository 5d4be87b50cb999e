"""One number for agreement: eta, the error in units of what rounding alone explains."""

from __future__ import annotations

import math

import numpy as np

from polyattn.truth.judged import Judged
from polyattn.truth.spec import Floats

__all__ = ["ACCEPTANCE", "FLOOR_ACCEPTANCE", "UNIT_ROUNDOFF", "eta", "floor_ratio", "round_to", "unit_of"]

#: Largest relative error of one rounding, u = 2^-p.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

#: Smallest normal number of the dtype in which weights are carried.
_TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-126, "bfloat16": 2.0**-126}

#: Half the distance of its smallest numbers: where weights are stored in it too.
_LAST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}

#: Correct code measures 0.1 to 2.5 on any dtype and amplitude; the smallest known defect 14.
ACCEPTANCE = 4.0

#: rms error over the rms rounding error of the truth itself, in half precision: naive half gives 1.9 to 7.
FLOOR_ACCEPTANCE = 1.5


def eta(computed: Floats, judged: Judged, dtype: str) -> float:
    """max |computed - value| / unit_of(judged, dtype); at most 4 for correct code.

    inf where the computed value is NaN, has another shape, or differs where the condition is 0 or the
    value is infinite (such an element must be exact). 0 for empty arrays.

    >>> one = np.ones(1, np.longdouble)
    >>> eta(np.array([1 + 2**-52]), Judged(one, one), "float64")
    2.0
    """
    value = judged.value
    computed = np.asarray(computed, np.longdouble)
    if computed.shape != value.shape:
        return math.inf
    if computed.size == 0:
        return 0.0
    unit = unit_of(judged, dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(computed == value, 0, np.abs(computed - value))
        ratio = np.where(error == 0, 0, error / unit)
    ratio = np.where(np.isfinite(value) | (error == 0), ratio, np.inf)
    return float(np.max(np.where(np.isnan(ratio), np.inf, ratio)))


def unit_of(judged: Judged, dtype: str) -> Floats:
    """What roundings alone move, elementwise: u * condition + tiny * floor, or, in half precision and where it is known
    what a right program stores in it, u * rounded + u32 * condition + tiny * floor.

    >>> one = np.ones(1)
    >>> unit_of(Judged(one, one), "bfloat16") * 2**8
    array([1.])
    """
    value, condition, floor, rounded = judged
    condition, tiny = np.broadcast_to(condition, value.shape), _TINY[dtype]
    if rounded is None or dtype not in ("float16", "bfloat16"):
        unit = UNIT_ROUNDOFF[dtype] * condition
    else:
        unit = UNIT_ROUNDOFF[dtype] * rounded + UNIT_ROUNDOFF["float32"] * condition
        tiny = max(tiny, _LAST[dtype])
    unit = unit + tiny * floor
    # Below the normal range a rounding is absolute.
    return np.where(unit > 0, np.maximum(unit, 2.0**-25), unit) if dtype == "float16" else unit


def floor_ratio(computed: Floats, judged: Judged, dtype: str) -> float:
    """rms error over the rms error of the truth rounded to the dtype: at most 1.5 where sums are in float32.

    Meant for float16 and bfloat16; 1 if there is nothing to compare.

    >>> third = np.full(4, 1 / 3, np.longdouble)
    >>> floor_ratio(third.astype(np.float16), Judged(third, third), "float16")
    1.0
    """
    value = judged.value
    error, floor = np.asarray(computed, np.longdouble) - value, round_to(value, dtype) - value
    least = float(np.sqrt(np.mean(floor**2))) if value.size else 0.0
    return float(np.sqrt(np.mean(error**2))) / least if least else 1.0


def round_to(x: Floats, dtype: str) -> Floats:
    """x rounded to a dtype, in x's own dtype again.

    >>> round_to(np.array([1.01]), "bfloat16")
    array([1.0078125])
    """
    if dtype != "bfloat16":
        return x.astype(dtype).astype(x.dtype)
    # The upper half of a float32, rounded to nearest even.
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), bits.view(np.float32), x).astype(x.dtype)
