"""Weights in extended precision, with their conditions and derivatives: what is right under each normaliser.

Each takes scores (-inf where hidden) with their own conditions `sabs`, and follows an error of u * sabs in them to first
order. Thresholds are found by sorting here, in `polyattn.truth.loops` by bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["NORMALIZERS", "Weighing"]


class Pulled(NamedTuple):
    """The gradient for the scores, and its condition."""

    value: Floats
    condition: Floats
    mean: Floats  # what a row subtracts from the gradient of a weight, (..., L, 1)
    mean_condition: Floats
    along: (
        Floats | float
    )  # how much of an error of that mean the gradient takes, where programs form it from the output


class Weighing(NamedTuple):
    """Weights, their conditions, (d_weights, its condition) -> the gradient for the scores; and what a sink takes."""

    weights: Floats
    condition: Floats
    pull: Callable[[Floats, Floats], Pulled]
    sink: Floats | float = 0.0


def softmax(s: Floats, sabs: Floats, sink: Floats, parameter: float) -> Weighing:
    peak = np.maximum(s.max(axis=-1, keepdims=True, initial=-np.inf), sink)
    peak = np.where(peak == -np.inf, 0, peak)
    expo = np.exp(s - peak)
    total = _or_one(_sum(expo) + np.exp(sink - peak))
    w, w_sink = expo / total, np.exp(sink - peak) / total
    spread = 1 + sabs + _sum(w * sabs) + w_sink * np.abs(np.where(np.isfinite(sink), sink, 0))

    def pull(dp: Floats, dp_abs: Floats) -> Pulled:
        mean, mean_abs = _sum(w * dp), _sum(w * (dp_abs + spread * np.abs(dp)))
        condition = w * (spread * np.abs(dp - mean) + dp_abs + mean_abs)
        return Pulled(w * (dp - mean), condition, mean, mean_abs, w)

    return Weighing(w, w * spread, pull, w_sink)


def sigmoid(s: Floats, sabs: Floats, sink: Floats, bias: float) -> Weighing:
    """An error of the score moves the weight by w (1 - w), and that slope by |1 - 2 w| of itself."""
    x = s + bias
    sabs = sabs + np.where(s == -np.inf, 0, np.abs(bias) + np.abs(x))
    w, left = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    slope = w * left

    def pull(dp: Floats, dp_abs: Floats) -> Pulled:
        none = np.zeros_like(w[..., :1])
        condition = slope * ((1 + np.abs(left - w) * sabs) * np.abs(dp) + dp_abs)
        return Pulled(slope * dp, condition, none, none, 0.0)

    return Weighing(w, w * (1 + left * sabs), pull)


def softpick(s: Floats, sabs: Floats, sink: Floats, parameter: float) -> Weighing:
    """An error of the score moves exp(s) - 1 by exp(s), above and below the line."""
    unit = np.maximum(s.max(axis=-1, keepdims=True, initial=0), 0)
    visible = s != -np.inf
    near = np.abs(s) < 1  # where the difference of the two would cancel
    expo, sign = np.exp(s - unit), np.where(visible, np.sign(s), 0)
    rise = np.where(near, np.expm1(np.where(near, s, 0)) * np.exp(-unit), expo - np.exp(-unit))
    rise = np.where(visible, rise, 0)
    total = _or_one(_sum(np.abs(rise)))
    w, slope = np.where(sign > 0, rise, 0) / total, expo / total
    loss = 1 + _sum(slope * sabs)  # relative, of the denominator
    condition = np.where(sign > 0, slope * sabs + w * (1 + loss), 0)

    def pull(dp: Floats, dp_abs: Floats) -> Pulled:
        up, up_abs = np.where(sign > 0, dp, 0), np.where(sign > 0, dp_abs, 0)
        mean, mean_abs = _sum(w * dp), _sum(w * dp_abs + condition * np.abs(dp))
        error = np.abs(sign) * slope * ((1 + sabs + loss) * np.abs(up - mean) + up_abs + mean_abs)
        return Pulled(sign * slope * (up - mean), error, mean, mean_abs, np.abs(sign) * slope)

    return Weighing(w, condition, pull)


def sparsemax(s: Floats, sabs: Floats, sink: Floats, parameter: float) -> Weighing:
    """On the support a weight moves as its score, less the mean of them all."""
    first = -np.sort(-s, axis=-1)
    n = np.arange(1, s.shape[-1] + 1)
    finite = np.where(np.isfinite(first), first, 0)
    threshold = np.where(np.isfinite(first), (finite.cumsum(-1) - 1) / n, -np.inf)
    threshold = threshold.max(axis=-1, keepdims=True, initial=-np.inf)  # that of the support is the largest
    on = (s > threshold) & (s != -np.inf)
    count = _or_one(_sum(on))
    w = np.where(on, s - np.where(np.isfinite(threshold), threshold, 0), 0)

    def pull(dp: Floats, dp_abs: Floats) -> Pulled:
        mean, mean_abs = _sum(on * dp) / count, _sum(on * (dp_abs + np.abs(dp))) / count
        condition = on * (np.abs(dp - mean) + dp_abs + mean_abs)
        return Pulled(on * (dp - mean), condition, mean, mean_abs, 0.0)

    return Weighing(w, on * (1 + sabs + _sum(on * sabs) / count), pull)


def entmax15(s: Floats, sabs: Floats, sink: Floats, parameter: float) -> Weighing:
    """A weight is the square of y = s / 2 - threshold, and the mean of errors is weighed by y."""
    top = s.max(axis=-1, keepdims=True, initial=-np.inf)
    x = np.where(s == -np.inf, -np.inf, s - np.where(np.isfinite(top), top, 0)) / 2
    first = -np.sort(-x, axis=-1)
    n = np.arange(1, x.shape[-1] + 1)
    finite = np.where(np.isfinite(first), first, 0)
    mean = finite.cumsum(-1) / n
    rest = (1 - (finite**2).cumsum(-1) + n * mean**2) / n
    threshold = np.where((rest >= 0) & np.isfinite(first), mean - np.sqrt(np.maximum(rest, 0)), -np.inf)
    threshold = np.where(threshold <= first, threshold, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    y = np.where(x > threshold, x - np.where(np.isfinite(threshold), threshold, 0), 0)
    total = _or_one(_sum(y))
    y_abs = (y > 0) * (1 + sabs / 2 + _sum(y * sabs / 2) / total)

    def pull(dp: Floats, dp_abs: Floats) -> Pulled:
        mean = _sum(y * dp) / total
        mean_abs = _sum(y_abs * np.abs(dp - mean) + y * (dp_abs + np.abs(dp))) / total
        condition = y_abs * np.abs(dp - mean) + (y > 0) * y * (dp_abs + mean_abs)
        return Pulled(y * (dp - mean), condition, mean, mean_abs, 0.0)

    return Weighing(y**2, 2 * y * y_abs + y**2, pull)


def top_k(s: Floats, sabs: Floats, sink: Floats, k: float) -> Weighing:
    """The softmax of the scores that are not below the k-th of their row."""
    if s.shape[-1] > k:
        s = np.where(s >= -np.sort(-s, axis=-1)[..., int(k) - 1, None], s, -np.inf)
    return softmax(s, np.where(s == -np.inf, 0, sabs), sink, 0.0)


NORMALIZERS = {f.__name__: f for f in (softmax, sigmoid, softpick, sparsemax, entmax15, top_k)}


def _sum(x: Floats) -> Floats:
    return np.asarray(x.sum(axis=-1, keepdims=True))


def _or_one(total: Floats) -> Floats:
    return np.where(total == 0, 1, total)
