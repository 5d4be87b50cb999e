"""Which of some things is which: a permutation out of the pairs that rounding allows."""

from __future__ import annotations

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["matched", "permutation_words"]


def matched(allowed: Floats) -> Floats | None:
    """For each row i of a square table of bool a column p[i] of its own with allowed[i, p[i]], or None if there is no such
    permutation (Hall 1935). Rows prefer themselves; augmenting paths (Kuhn 1955) are exact.

    >>> matched(np.array([[True, True], [True, False]])).tolist()
    [1, 0]
    >>> matched(np.array([[True, False], [True, False]])) is None
    True
    """
    n = len(allowed)
    owner = np.full(n, -1)  # the row that has a column

    def place(row: int, tried: set[int]) -> bool:
        columns = [row, *np.flatnonzero(allowed[row])]
        for column in columns:
            if allowed[row, column] and column not in tried:
                tried.add(int(column))
                if owner[column] < 0 or place(int(owner[column]), tried):
                    owner[column] = row
                    return True
        return False

    if not all(place(row, set()) for row in range(n)):
        return None
    found = np.empty(n, int)
    found[owner] = np.arange(n)
    return found


def permutation_words(p: Floats, what: str) -> str:
    """How a map of i to p[i] is said.

    >>> permutation_words(np.array([2, 1, 0]), "head")
    'in reverse order'
    >>> permutation_words(np.array([1, 2, 0]), "head")
    'each the next one (head i is head i + 1)'
    """
    n = len(p)
    i = np.arange(n)
    if (p == i[::-1]).all():
        return "in reverse order"
    shift = int(p[0])
    if (p == (i + shift) % n).all():
        if shift in (1, n - 1):
            side, sign = ("next one", "+") if shift == 1 else ("one before", "-")
            return f"each the {side} ({what} i is {what} i {sign} 1)"
        return f"rolled ({what} i is {what} i + {shift} of {n})"
    for a in range(2, n):
        if n % a == 0 and (p == i.reshape(a, n // a).T.ravel()).all():
            return f"interleaved ({what}s as {a} x {n // a}, transposed)"
    moved = np.flatnonzero(p != i)
    if len(moved) == 2:
        return f"{moved[0]} and {moved[1]} exchanged"
    listed = ", ".join(map(str, p[:16])) + (", ..." if n > 16 else "")
    return f"in the order {listed}"
