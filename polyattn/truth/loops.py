"""Attention by three nested loops, `math.fsum` and `math.exp`: slow, and beyond doubt.

Shares no code with what it judges. It vouches for `polyattn.truth.definition`, which is fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyattn.truth.spec import Floats, Spec

__all__ = ["OracleResult", "oracle"]


class OracleResult(NamedTuple):
    out: Floats  # (B, Hq, L, E) float64
    lse: Floats  # (B, Hq, L) over the keys alone; of the softmax
    weights: Floats  # (B, Hq, L, S)


def oracle(spec: Spec) -> OracleResult:
    """The definition, element by element.

    >>> x = np.array([[[[0.0], [1.0]]]])
    >>> oracle(Spec(x, x, x, scale=1.0)).out.ravel().round(6).tolist()
    [0.5, 0.731059]
    """
    batch, heads, rows, keys = spec.shape
    width, out_width = spec.q.shape[-1], spec.v.shape[-1]
    group = heads // spec.k.shape[1] if spec.k.shape[1] else 1
    out = np.zeros((batch, heads, rows, out_width))
    lse = np.full((batch, heads, rows), -math.inf)
    weights = np.zeros((batch, heads, rows, keys))

    def at(array: Floats, b: int, h: int, i: int, j: int) -> float:
        index = tuple(x if n > 1 else 0 for x, n in zip((b, h, i, j), array.shape, strict=True))
        return float(array[index])

    for b in range(batch):
        for h in range(heads):
            q, k, v = (x[b if x.shape[0] > 1 else 0] for x in (spec.q, spec.k, spec.v))
            for i in range(rows):
                scores: dict[int, float] = {}
                for j in range(keys):
                    if not at(spec.allowed, b, h, i, j):
                        continue
                    s = float(spec.scales[h]) * math.fsum(
                        float(q[h, i, d]) * float(k[h // group, j, d]) for d in range(width)
                    )
                    if spec.softcap is not None:
                        s = spec.softcap * math.tanh(s / spec.softcap)
                    for term in (spec.shift, spec.bias):
                        if term is not None:
                            s += at(term, b, h, i, j)
                    if s > -math.inf:
                        scores[j] = s
                if not scores:
                    continue
                top = max(scores.values())
                lse[b, h, i] = top + math.log(math.fsum(math.exp(s - top) for s in scores.values()))
                sink = -math.inf if spec.sinks is None else float(spec.sinks[h])
                for j, w in _WEIGHTS[spec.normalizer](scores, sink, spec.parameter).items():
                    weights[b, h, i, j] = w
                for e in range(out_width):
                    out[b, h, i, e] = math.fsum(
                        weights[b, h, i, j]
                        * (1.0 if spec.keep is None else at(spec.keep, b, h, i, j))
                        * float(v[h // group, j, e])
                        for j in scores
                    )
    return OracleResult(out, lse, weights)


Row = dict[int, float]  # a number for each key that is seen


def _softmax(scores: Row, sink: float, parameter: float) -> Row:
    peak = max(*scores.values(), sink)  # relative to whichever is larger
    total = math.fsum([*(math.exp(s - peak) for s in scores.values()), math.exp(sink - peak)])
    return {j: math.exp(s - peak) / total for j, s in scores.items()}


def _sigmoid(scores: Row, sink: float, bias: float) -> Row:
    return {j: 1 / (1 + math.exp(-s - bias)) for j, s in scores.items()}


def _softpick(scores: Row, sink: float, parameter: float) -> Row:
    """Relative to exp(top) where that is large: exp(s) - 1 over exp(top) is exp(s - top) - exp(-top)."""
    top = max(0.0, *scores.values())

    def rise(s: float) -> float:
        return math.expm1(s) if top < 1 else math.exp(s - top) - math.exp(-top)

    total = math.fsum(abs(rise(s)) for s in scores.values())
    return {j: max(0.0, rise(s)) / total if total else 0.0 for j, s in scores.items()}


def _entmax(scores: Row, alpha: float) -> Row:
    """max(0, (alpha - 1) s - t)^(1 / (alpha - 1)), with the t for which they sum to 1 found by halving an interval."""
    top = max(scores.values())
    x = {j: (alpha - 1) * (s - top) for j, s in scores.items()}

    def raised(t: float) -> Row:
        return {j: max(0.0, one - t) ** (1 / (alpha - 1)) for j, one in x.items()}

    low, high = -1.0, 0.0
    for _ in range(100):
        t = (low + high) / 2
        low, high = (t, high) if math.fsum(raised(t).values()) >= 1 else (low, t)
    return raised(low)


def _top_k(scores: Row, sink: float, k: float) -> Row:
    least = sorted(scores.values(), reverse=True)[: int(k)][-1]
    return _softmax({j: s for j, s in scores.items() if s >= least}, sink, 0.0)


_WEIGHTS: dict[str, Callable[[Row, float, float], Row]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "softpick": _softpick,
    "sparsemax": lambda scores, sink, parameter: _entmax(scores, 2.0),
    "entmax15": lambda scores, sink, parameter: _entmax(scores, 1.5),
    "top_k": _top_k,
}
