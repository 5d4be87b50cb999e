"""What a module computes, found by asking it: its class name alone proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from polyattn.parity.components.facts.record import Facts, Number
from polyattn.parity.components.formula import Norm
from polyattn.parity.components.functions import FUNCTIONS
from polyattn.truth.measure import UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["function_of", "norm_facts"]

#: Roundings that an answer may be off, of those of its dtype: the sums of a norm, and the powers of an activation.
ROOM = 64
#: How many times worse every other norm must be.
DISTINCT = 4


def norm_facts(
    call: Callable[[Floats], Floats],
    weight: Floats | None,
    bias: Floats | None,
    eps: float,
    dtype: str,
    width: int,
) -> Facts:
    """Facts of a norm whose conventions its answer shows; "other" where none of those that are known gives it.

    call: the module, on NumPy. eps: as it says; dtype: what it computes in.
    """
    x = round_to(np.random.default_rng(0).normal(size=(4, width)) + 0.5, "bfloat16")  # exact in every dtype
    seen = call(x.astype(np.float32))
    wide = [None if a is None else a.astype(np.float64) for a in (weight, bias)]
    scored = []
    for centred, plus in product((True, False), (False, True)):
        if not plus or weight is not None:
            norm = Norm(eps, centred, wide[0], wide[1], plus)
            scored.append((_error(seen, norm(x), dtype), centred, plus))
    (best, centred, plus), (second, *_) = sorted(scored)[:2]
    if best > ROOM or second <= max(DISTINCT * best, 1.0):
        return Facts("other")
    arrays = {name: a for name, a in (("weight", weight), ("bias", bias)) if a is not None}
    numbers: dict[str, Number] = {"eps": eps, "subtracts_mean": centred, "weight_plus_one": plus}
    return Facts("norm", arrays, numbers)


def function_of(call: Callable[[Floats], Floats]) -> str | None:
    """The name of the activation function that a module computes elementwise in float32, None for an unknown one."""
    x = np.linspace(-8.0, 8.0, 321)
    seen = call(x.astype(np.float32))
    if seen.shape != x.shape:
        return None
    return next((name for name, f in FUNCTIONS.items() if _error(seen, f(x), "float32") <= ROOM), None)


def _error(seen: Floats, expected: Floats, dtype: str) -> float:
    """The largest error in roundings of the dtype."""
    if seen.shape != expected.shape or not np.isfinite(seen).all():
        return np.inf
    unit = UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["float32"])
    return float(np.max(np.abs(seen - expected) / (unit * (1 + np.abs(expected))), initial=0.0))
