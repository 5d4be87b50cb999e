"""Which batch items, heads and rows, in words."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["ranges", "where_of"]

MOST = 4  # ranges that are written out


def ranges(name: str, which: Floats) -> str:
    """Indices as ranges.

    >>> ranges("row", np.array([3]))
    'row 3'
    >>> ranges("row", np.array([0, 1, 2, 7]))
    'rows 0-2, 7'
    >>> ranges("row", np.arange(1, 40, 4))
    'rows 1, 5, ..., 37'
    >>> ranges("row", np.array([0, 2, 3, 5, 9, 14]))
    'rows 0, 2-3, 5, 9 and 1 more'
    """
    which = np.sort(which)
    if len(which) == 1:
        return f"{name} {which[0]}"
    steps = set(np.diff(which).tolist())
    if len(which) > MOST and len(steps) == 1 and steps != {1}:
        return f"{name}s {which[0]}, {which[1]}, ..., {which[-1]}"
    ends = [-1, *np.flatnonzero(np.diff(which) > 1).tolist(), len(which) - 1]
    parts = [(which[a + 1], which[b]) for a, b in pairwise(ends)]
    said = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts[:MOST])
    more = sum(int(b - a) + 1 for a, b in parts[MOST:])
    return f"{name}s {said}" + (f" and {more} more" if more else "")


def where_of(marked: Floats, rows: Floats) -> str:
    """Where the rows (B, H, rows) are that are marked; rows: what the last axis counts.

    >>> marked = np.zeros((2, 4, 9), bool)
    >>> marked[0, 2, 5:] = True
    >>> where_of(marked, np.arange(9))
    'batch 0, head 2, rows 5-8'
    """
    said = []
    for axis, name in enumerate(("batch", "head", "row")):
        others = tuple(i for i in range(3) if i != axis)
        some = np.flatnonzero(marked.any(others))
        if len(some) < marked.shape[axis]:
            text = ranges(name, rows[some] if axis == 2 else some)
            said.append(text.replace("batchs", "batch items"))
    return ", ".join(said) if said else "some rows of every head"
