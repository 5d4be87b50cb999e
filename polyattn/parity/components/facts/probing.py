"""What a module computes, found by asking it: its class name alone proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from polyattn.parity.components.facts.record import Facts, Number
from polyattn.parity.components.formula import Norm
from polyattn.parity.components.functions import FUNCTIONS
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["function_of", "norm_facts"]

#: Roundings that an answer may be off, of those of its dtype: the sums of a norm, and the powers of an activation.
ROOM = 64


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
    x = np.random.default_rng(0).normal(size=(4, width)) + 0.5
    seen = call(x.astype(np.float32))
    wide = [None if a is None else a.astype(np.float64) for a in (weight, bias)]
    plain = Norm(eps, True, *wide)
    variants = [(centred, plus) for centred in (True, False) for plus in (False, True)]
    for centred, plus in variants:
        norm = replace(plain, centred=centred, plus_one=plus)
        if (plus and weight is None) or not _agrees(seen, norm(x), dtype):
            continue
        arrays = {name: a for name, a in (("weight", weight), ("bias", bias)) if a is not None}
        numbers: dict[str, Number] = {"eps": eps, "subtracts_mean": centred, "weight_plus_one": plus}
        return Facts("norm", arrays, numbers)
    return Facts("other")


def function_of(call: Callable[[Floats], Floats]) -> str | None:
    """The name of the activation function that a module computes elementwise in float32, None for an unknown one."""
    x = np.linspace(-8.0, 8.0, 321)
    seen = call(x.astype(np.float32))
    if seen.shape != x.shape:
        return None
    return next((name for name, f in FUNCTIONS.items() if _agrees(seen, f(x), "float32")), None)


def _agrees(seen: Floats, expected: Floats, dtype: str) -> bool:
    room = ROOM * UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["float32"])
    return seen.shape == expected.shape and bool(
        (np.abs(seen - expected) <= room * (1 + np.abs(expected))).all()
    )
