"""Sparsemax and 1.5-entmax: the keys far below the best have weight exactly 0, the others sum to 1.

Both are w = max(0, x - t)^p with the threshold t for which a row sums to 1. It follows from the sorted scores: the
keys above it are the first n of them, for the largest n for which the threshold of the first n lies below all of these.
Which keys they are is a constant for autodiff, since it changes nowhere but where a weight is 0; from them the threshold
is a formula, with the right derivatives of every order.
"""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array, backend_of
from polyattn.normalizers.normalizer import Normalizer
from polyattn.normalizers.softmax import largest


@dataclass(frozen=True)
class Sparsemax(Normalizer):
    """w = max(0, s - t), with t such that a row sums to 1: the point of the simplex next to the scores.

    Source: Martins and Astudillo 2016, arXiv:1602.02068, which has the derivative too.

    >>> import numpy as np
    >>> Sparsemax().weights(np.array([1.0, 0.5, -1.0, -np.inf]))
    array([0.75, 0.25, 0.  , 0.  ])
    """

    name = "sparsemax"
    formula = "w = max(0, s - t), sum w = 1"

    def weights(self, scores: Array, sinks: Array | None = None) -> Array:
        backend = backend_of(scores)
        xp = backend.xp
        x = _below_the_best(scores)
        first, n = _sorted(x)
        above = _above(x, scores, first, (backend.cumulative_sum(first, axis=-1) - 1.0) / n)
        x = xp.where(above, x, 0.0)
        count = _count(above, x)
        threshold = (xp.sum(x, axis=-1, keepdims=True) - 1.0) / count
        return xp.where(above, x - threshold, 0.0)


@dataclass(frozen=True)
class Entmax15(Normalizer):
    """w = max(0, s / 2 - t)^2, with t such that a row sums to 1: between softmax and sparsemax.

    Source: Peters, Niculae and Martins 2019, arXiv:1905.05702, algorithm 2, exact, with alpha = 1.5.

    >>> import numpy as np
    >>> Entmax15().weights(np.array([1.0, 1.0, -1.0, -np.inf])).round(4)
    array([0.5, 0.5, 0. , 0. ])
    """

    name = "entmax15"
    formula = "w = max(0, s / 2 - t)^2, sum w = 1"

    def weights(self, scores: Array, sinks: Array | None = None) -> Array:
        backend = backend_of(scores)
        xp = backend.xp
        x = _below_the_best(scores / 2.0)
        first, n = _sorted(x)
        mean = backend.cumulative_sum(first, axis=-1) / n
        # n times the variance of the first n; below 1 as long as a threshold for them exists.
        spread = backend.cumulative_sum(first * first, axis=-1) - n * mean * mean
        above = _above(x, scores, first, mean - xp.sqrt(xp.where(spread < 1.0, 1.0 - spread, 0.0) / n))
        count = _count(above, x)
        mean = xp.sum(xp.where(above, x, 0.0), axis=-1, keepdims=True) / count
        off = xp.where(above, x - mean, 0.0)
        rest = 1.0 - xp.sum(off * off, axis=-1, keepdims=True)
        threshold = xp.sqrt(xp.where(rest > 0, rest, 1.0) / count)  # below the mean
        return xp.where(above, off + threshold, 0.0) ** 2


def _below_the_best(x: Array) -> Array:
    """x less the largest of its row, and no further below it than where every weight is 0."""
    xp, top = backend_of(x).xp, largest(x)
    x = x - xp.where(top == -xp.inf, 0.0, top)
    return xp.where(x > -1.0, x, -1.0)


def _sorted(x: Array) -> tuple[Array, Array]:
    """The numbers of a row, largest first, as constants; and how many they are up to each."""
    backend = backend_of(x)
    first = -backend.xp.sort(-backend.stop_gradient(x), axis=-1)
    return first, backend.astype(backend.arange(1, x.shape[-1] + 1, x), x.dtype)


def _above(x: Array, scores: Array, first: Array, thresholds: Array) -> Array:
    """Which keys are above the threshold of their row: the largest of those that lie below all the keys they are of."""
    xp = backend_of(x).xp
    threshold = largest(xp.where(thresholds < first, thresholds, -1.0))
    return (x > threshold) & (scores != -xp.inf)


def _count(above: Array, x: Array) -> Array:
    """How many there are in a row, at least 1."""
    backend = backend_of(x)
    n = backend.xp.sum(backend.astype(above, x.dtype), axis=-1, keepdims=True)
    return backend.xp.where(n == 0, 1.0, n)
