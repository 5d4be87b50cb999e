"""Numbers that the library computes in float64, as the fractions that they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from polyattn import trace

__all__ = ["LN2", "exact", "fractions", "of_row", "said", "said_all"]

#: With scale = ln 2 the softmax is made of powers of two: exp(s ln 2) = 2^s.
LN2 = math.log(2.0)


def exact(x: float, most: int = 64) -> Fraction:
    """The fraction x with a denominator of at most `most`; two such are 1/4096 apart, so that 2^-40 decides which it is.

    ValueError for a number that is none.

    >>> exact(0.1 + 0.2)
    Fraction(3, 10)
    """
    found = Fraction(float(x)).limit_denominator(most)
    if abs(found - Fraction(float(x))) > Fraction(1, 2**40):
        raise ValueError(
            f"expected a fraction with a denominator of at most {most}, got {x!r}; choose other numbers"
        )
    return found


def fractions(x: Any) -> list[Fraction]:
    """All entries of an array, in order."""
    return [exact(entry) for entry in np.ravel(x)]


def said(x: Fraction | int) -> str:
    """A fraction as it is printed."""
    x = Fraction(x)
    if x.denominator == 1:
        return str(x.numerator).replace("-", "\u2212")
    return rf"${'-' if x < 0 else ''}\frac{{{abs(x.numerator)}}}{{{x.denominator}}}$"


def said_all(x: Iterable[Fraction]) -> list[str]:
    """Each of them."""
    return [said(entry) for entry in x]


def of_row(query: Any, key: Any, value: Any, **options: Any) -> dict[str, list[Fraction]]:
    """Every stage of attention with scale = ln 2, as fractions: scores, powers of two, their sum, weights, the output."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    steps = {stage.name: np.asarray(stage.value)[0, 0] for stage in trace(q, k, v, scale=LN2, **options)}
    scores = steps["biased" if "bias" in options else "scores"]
    return {
        "scores": fractions(scores / LN2),
        "powers": fractions(np.exp(scores)),
        "sum": fractions(np.exp(steps["lse"])),
        "weights": fractions(steps["weights"]),
        "parts": fractions(steps["weights"][..., None] * v),
        "out": fractions(steps["output"]),
    }
