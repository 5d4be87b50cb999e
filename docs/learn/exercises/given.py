"""What laws ask of any answer: an array that is as it should be, arguments that stay, no more memory than it needs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any

import numpy as np


def of_arrays(asked: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same law of what an answer gives as an array of NumPy: nested lists and tensors are answers too."""

    @wraps(asked)
    def judged(mine: Any) -> Any:
        return asked(lambda *given: np.asarray(mine(*given)))

    return judged


def changed(mine: Callable[..., Any], names: str = "", *arrays: Any, **more: Any) -> str:
    """Which of the arrays, or lists of arrays, that mine is given it changes, as a sentence; nothing if it leaves them."""
    given = dict(zip(names.split(), arrays, strict=True)) | more
    before = deepcopy(given)
    mine(*given.values())
    other = [name for name, now in given.items() if not _same(now, before[name])]
    return f"{' and '.join(other)} changed: what comes in has to stay, so work on a copy" if other else ""


def _same(now: Any, before: Any) -> bool:
    if isinstance(before, list | tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    return np.array_equal(now, before, equal_nan=True)


def exactly(found: Any, value: float, what: str) -> str:
    """Whether all numbers of a result are this one, to the last digit, or what the first other one is."""
    other = np.ravel(found)[np.ravel(found) != value]
    return f"{what}: the result is {other[0]:.17g}, not {value:.17g}" if other.size else ""


def memory(mine: Callable[..., Any], *given: Any) -> int:
    """The most bytes that mine(*given) takes at a time, apart from what the first call alone needs.

    NumPy and Python tell what they take; PyTorch does not, so that its tensors do not count.
    """
    mine(*given)
    alone = not tracemalloc.is_tracing()
    if alone:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        mine(*given)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if alone:
            tracemalloc.stop()
