"""Was dropout left on? The traces that dropped weights leave in an output.

With inverted dropout at rate p every weight is multiplied by a factor f, 0 or 1 / (1 - p), of mean 1 and variance
r = p / (1 - p). The error of a row is then e = sum_j (f_j - 1) a_j with a_j = w_j v_j, and its covariance r sum_j a_j a_j^T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from polyattn.conventions.answers import Answer
from polyattn.truth.spec import Floats

__all__ = ["dropout_rate"]

ENOUGH = 32  # factors, or rows, that a verdict needs
LEAST, MOST = 0.02, 0.9  # the rates that are looked for
CLEAR = 10.0  # a factor is known if the two values that it may have are so many standard deviations apart
DEVIATIONS = 4.5  # at most, of anything from what it should be


def dropout_rate(
    seen: Floats,
    expected: Answer,
    unit: float,
    rows: int,
    heads: int = 8,
    *,
    trusted: Floats | None = None,
) -> float | None:
    """The rate that explains how seen differs from what was expected; None if none does.

    The factors of those weights that stand out of their row are estimated, and must be 0 or 1 / (1 - p), in the
    right proportion. rows: how many query rows to look at, of at most so many heads. trusted: which elements of seen count;
    a row with others is left out.
    """
    whole: Floats = np.ones(seen.shape[:3], bool) if trusted is None else np.all(trusted, axis=-1)
    if expected.weights.shape[2] != expected.out.shape[2]:  # attention over something else than tokens
        return None
    if not all(np.isfinite(x[whole]).all() for x in (seen, expected.out, expected.weights)):
        return None
    given = list(_telling(seen, expected, unit, (heads, rows), whole))
    if not given:
        return None
    squares = np.concatenate([part.whitened()[0].ravel() ** 2 for part in given])
    squares = squares[~np.isnan(squares)]
    if len(squares) < ENOUGH:
        return None
    variance = float(np.mean(squares))
    if not LEAST <= variance / (1.0 + variance) <= MOST:
        return None
    factors, deviations = (
        np.concatenate(x) for x in zip(*(part.factors(variance) for part in given), strict=True)
    )
    return _two_valued(factors, deviations, variance) if len(factors) >= ENOUGH else None


def _telling(
    seen: Floats, expected: Answer, unit: float, most: tuple[int, int], whole: Floats
) -> Iterator[_Rows]:
    """Rows of some heads of every item, of those that are whole."""
    batch, heads = seen.shape[:2]
    # In half precision the output is rounded, and the weights; what is between them is in float32.
    low = unit > 2.0**-24
    noise = unit * expected.rounded + 2.0**-24 * expected.condition if low else unit * expected.condition
    for b in range(batch):
        for h in _spread(heads, most[0]):
            shown = np.flatnonzero(whole[b, h])
            if len(shown):
                i = shown[_spread(len(shown), most[1])]
                terms = expected.weights[b, h, i][..., None] * expected.values[b, h]
                out = expected.out[b, h, i]
                yield _Rows(terms, seen[b, h, i] - out, out, noise[b, h, i])


def _spread(count: int, most: int) -> Floats:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


class _Rows(NamedTuple):
    """The rows of a head."""

    terms: Floats  # (rows, S, E): a_j
    error: Floats  # (rows, E)
    out: Floats
    noise: Floats

    def whitened(self) -> tuple[Floats, Floats]:
        """The error and the output over the size of the error at r = 1, in the directions of sum_j a_j a_j^T from weak
        to strong; NaN where dropping moves a row by less than rounding does."""
        values, directions = np.linalg.eigh(self.terms.mT @ self.terms)
        sigma = np.sqrt(np.maximum(values, 0.0))
        least = np.maximum(1e-3 * sigma[:, -1], 8.0 * self.noise.max(-1))
        sigma = np.where(sigma > least[:, None], sigma, np.nan)
        error, out = ((directions.mT @ x[..., None])[..., 0] / sigma for x in (self.error, self.out))
        return error, out

    def factors(self, variance: float) -> tuple[Floats, Floats]:
        """The best linear estimates of f - 1 and their standard deviations, of the weights for which that is small.

        To one weight the others are noise: with M = r sum_j a_j a_j^T + noise, and g = a^T M^-1 a, the estimate
        is a^T M^-1 e / g, of variance 1 / g - r.
        """
        covariance = self.terms.mT @ self.terms
        size = np.trace(covariance, axis1=1, axis2=2)
        shown = size > 0
        a, width = self.terms[shown], self.error.shape[1]
        # At least 1e-6, or rows with fewer keys than entries of a value are singular.
        noise = self.noise[shown] ** 2 + (1e-6**2 * size[shown])[:, None]
        within = variance * covariance[shown] + noise[..., None] * np.eye(width)
        solved = np.linalg.solve(within, np.concatenate((a.mT, self.error[shown][..., None]), -1))
        g = np.maximum(np.einsum("nse,nes->ns", a, solved[..., :-1]), 1e-300)
        deviation = np.sqrt(np.maximum(1.0 / g - variance, 0.0))
        known = deviation < (1.0 + variance) / CLEAR
        return ((a @ solved[..., -1:])[..., 0] / g)[known], deviation[known]


def _two_valued(factors: Floats, deviations: Floats, variance: float) -> float | None:
    """The rate p if every f - 1 is -1 or p / (1 - p), and the share of the first is p.

    >>> _two_valued(np.array([-1.0, 1.0, 1.0, -1.0]), np.zeros(4), 1.1)
    0.5
    """
    dropped = factors < (variance - 1.0) / 2.0
    if not dropped.any() or dropped.all():
        return None
    level = float(np.median(factors[~dropped]))
    rate = level / (1.0 + level)
    if not LEAST <= rate <= MOST:
        return None
    off = np.abs(factors - np.where(dropped, -1.0, level))
    share = abs(float(np.mean(dropped)) - rate) / math.sqrt(rate * (1.0 - rate) / len(factors))
    return (
        rate if (off <= DEVIATIONS * deviations + 0.02 * (1.0 + level)).all() and share < DEVIATIONS else None
    )
