"""What an answer is given belongs to who asks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np


def changed(mine: Callable[..., Any], **given: Any) -> str:
    """Which arrays, or lists of arrays, mine(*given.values()) changes, as a sentence; nothing if it leaves them."""
    before = deepcopy(given)
    mine(*given.values())
    names = [name for name, now in given.items() if not _same(now, before[name])]
    return f"{' and '.join(names)} changed: what comes in has to stay, so work on a copy" if names else ""


def _same(now: Any, before: Any) -> bool:
    if isinstance(before, list | tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    return np.array_equal(now, before)


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
