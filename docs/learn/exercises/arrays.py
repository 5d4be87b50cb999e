"""What laws of the cards of mistakes need to be asked of a student's answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np


def of_arrays(asked: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same law of what an answer gives as an array of NumPy: nested lists and tensors are answers too."""

    @wraps(asked)
    def judged(mine: Any) -> Any:
        return asked(lambda *given: np.asarray(mine(*given)))

    return judged


def changed(mine: Any, names: str, *given: Any) -> str:
    """Which of the arrays that an answer was given is another afterwards, or nothing."""
    before = [x.copy() for x in given]
    mine(*given)
    for name, now, was in zip(names.split(), given, before, strict=True):
        if not np.array_equal(now, was, equal_nan=True):
            at = tuple(map(int, np.argwhere((now != was) & ~(np.isnan(now) & np.isnan(was)))[0]))
            return f"{name} at {at} was {was[at]:.3g} and is {now[at]:.3g} afterwards: whoever gave it has lost it"
    return ""


def exactly(found: Any, value: float, what: str) -> str:
    """Whether all numbers of a result are this one, to the last digit, or what the first other one is."""
    other = np.ravel(found)[np.ravel(found) != value]
    return f"{what}: the result is {other[0]:.17g}, not {value:.17g}" if other.size else ""
