"""Softpick: a softmax that can leave a row, and of which many weights are exactly 0."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array, backend_of
from polyattn.normalizers.normalizer import Pull
from polyattn.normalizers.softmax import Partial, Softmax, grouped_matmul, largest


@dataclass(frozen=True)
class Softpick(Softmax):
    """w = relu(exp(s) - 1) / sum |exp(s) - 1|: scores of at most 0 have weight 0, and a row may sum to less than 1.

    A row whose scores are all 0 sums to 0, and so do its weights: there is no epsilon in the denominator. The sums are
    those of the softmax, in units of exp(m) with m = max(0, max s), so that they merge in the same way.

    Source: Zuhri 2025, arXiv:2504.20966, where the safe form is with m = max s.

    >>> import numpy as np
    >>> Softpick().weights(np.array([np.log(3.0), np.log(2.0), -np.log(2.0), -np.inf])).round(4)
    array([0.5714, 0.2857, 0.    , 0.    ])
    """

    name = "softpick"
    formula = "w = relu(exp(s) - 1) / sum |exp(s) - 1|"
    takes_sinks = False

    def weights(self, scores: Array, sinks: Array | None = None) -> Array:
        xp = backend_of(scores).xp
        risen = _risen(scores, _unit(scores))
        total = xp.sum(xp.abs(risen), axis=-1, keepdims=True)
        return xp.where(risen > 0, risen, 0.0) / xp.where(total == 0, 1.0, total)

    @staticmethod
    def lift(scores: Array, values: Array, keep: Array | None = None, *, consume: bool = False) -> Partial:
        xp, top = backend_of(scores).xp, _unit(scores)
        risen = _risen(scores, top)
        w = xp.where(risen > 0, risen, 0.0)
        return Partial(
            top,
            xp.sum(xp.abs(risen), axis=-1, keepdims=True),
            grouped_matmul(w if keep is None else w * keep, values),
        )

    def again(self, scores: Array, log_sum: Array, *, consume: bool = False) -> Pull:
        xp = backend_of(scores).xp
        risen = _risen(scores, log_sum)
        return Pull(xp.where(risen > 0, risen, 0.0), xp.sign(risen) * xp.exp(scores - log_sum))

    def pull(self, slope: Array, d_weights: Array, mean: Array) -> Array:
        # A score above 0 moves both sums, one below 0 the denominator alone, and in the other direction.
        return slope * (backend_of(slope).xp.where(slope > 0, d_weights, 0.0) - mean)


def _unit(scores: Array) -> Array:
    """max(0, max s), so that neither exp(s - m) nor exp(-m) is above 1."""
    xp, top = backend_of(scores).xp, largest(scores)
    return xp.where(top > 0, top, 0.0)


def _risen(scores: Array, unit: Array) -> Array:
    """(exp(s) - 1) / exp(unit); 0 where a score is hidden."""
    xp = backend_of(scores).xp
    near = xp.abs(scores) < 1.0  # where the difference of the two would cancel
    rise = xp.where(
        near,
        xp.expm1(xp.where(near, scores, 0.0)) * xp.exp(-unit),
        xp.exp(scores - unit) - xp.exp(-unit),
    )
    return xp.where(scores == -xp.inf, 0.0, rise)
