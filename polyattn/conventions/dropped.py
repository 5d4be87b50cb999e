"""Was dropout left on? The traces that dropped weights leave in an output.

With inverted dropout at rate p every weight is multiplied by a factor f, 0 or 1 / (1 - p), of mean 1 and variance
r = p / (1 - p). The error of a row is then e = sum_j (f_j - 1) a_j with a_j = w_j v_j, and its covariance r sum_j a_j a_j^T.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from polyattn.conventions.answers import Answer
from polyattn.truth.spec import Floats

__all__ = ["dropout_rate"]

ENOUGH = 32  # factors, or rows, that a verdict needs
LEAST, MOST = 0.02, 0.9  # the rates that are looked for
CLEAR = 10.0  # a factor is known if the two values that it may have are so many standard deviations apart
DEVIATIONS = 4.5  # at most, of anything from what it should be
EVEN = (0.6, 1.6)  # between these the quotient of two mean squares is called 1


def dropout_rate(
    seen: Floats, expected: Answer, unit: float, rows: int, *, by_variance: bool = False
) -> float | None:
    """The rate that explains how seen differs from what was expected; None if none does.

    The factors of those weights that stand out of their row are estimated, and must be 0 or 1 / (1 - p), in the
    right proportion. by_variance: where no weight stands out, let the statistics of the errors decide.
    rows: how many query rows to look at, of at most 8 heads.
    """
    if not all(np.isfinite(x).all() for x in (seen, expected.out, expected.weights)):
        return None
    if expected.weights.shape[2] != expected.out.shape[2]:  # attention over something else than tokens
        return None
    (_, heads, length, _), w = seen.shape, expected.weights
    some = np.ix_(
        *(np.unique(np.linspace(0, n - 1, min(n, m)).astype(int)) for n, m in ((heads, 8), (length, rows)))
    )
    w, v = w[:, some[0], some[1]], expected.values[:, some[0][:, 0]]
    out, condition = expected.out[:, some[0], some[1]], expected.condition[:, some[0], some[1]]
    error = seen[:, some[0], some[1]] - out
    # An output in 16 bits was rounded once; what was before it is in float32.
    noise = unit * np.abs(out) + min(unit, 2.0**-24) * condition
    given = [
        _Rows(w[b, h][..., None] * v[b, h], error[b, h], out[b, h], noise[b, h])
        for b, h in np.ndindex(*w.shape[:2])
    ]
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
    if len(factors) >= ENOUGH:
        return _two_valued(factors, deviations, variance)
    return variance / (1.0 + variance) if by_variance and _even(given) else None


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


def _even(given: list[_Rows]) -> bool:
    """Whether the whitened error is as large in strong as in weak directions, and in rows that weigh few keys as in
    those that weigh many, and has no mean along the output: a systematic error fails."""
    strong, weak, along, sizes, squares = [], [], [], [], []
    for part in given:
        for z, to, terms in zip(*part.whitened(), part.terms, strict=True):
            kept = ~np.isnan(z)
            if kept.sum() < 4:
                continue
            z, to = z[kept], to[kept]
            half = len(z) // 2
            weak.append(np.mean(z[:half] ** 2))
            strong.append(np.mean(z[half:] ** 2))
            along.append(float(z @ to) / max(float(np.linalg.norm(to)), 1e-300))
            sizes.append(float(np.sum(terms**2)))
            squares.append(np.mean(z**2))
    if len(squares) < ENOUGH:
        return False
    few, many = (np.mean(np.asarray(squares)[part]) for part in np.array_split(np.argsort(sizes)[::-1], 2))
    quotients = (np.mean(strong) / max(np.mean(weak), 1e-300), few / max(many, 1e-300))
    centred = abs(np.mean(along)) < DEVIATIONS * math.sqrt(np.mean(squares) / len(along))
    return bool(centred and all(EVEN[0] < quotient < EVEN[1] for quotient in quotients))
