"""Attention by three nested loops, `math.fsum` and `math.exp`: slow, and beyond doubt.

Shares no code with what it judges. It vouches for `polyattn.truth.definition`, which is fast.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from polyattn.truth.spec import Floats, Spec

__all__ = ["OracleResult", "oracle"]


class OracleResult(NamedTuple):
    out: Floats  # (B, Hq, L, E) float64
    lse: Floats  # (B, Hq, L) over the keys alone
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
                total = math.fsum(math.exp(s - top) for s in scores.values())
                lse[b, h, i] = top + math.log(total)
                if spec.sinks is not None:
                    # With the sink, relative to whichever is larger.
                    sink = float(spec.sinks[h])
                    peak = max(top, sink)
                    total = total * math.exp(top - peak) + math.exp(sink - peak)
                    top = peak
                for j, s in scores.items():
                    weights[b, h, i, j] = math.exp(s - top) / total
                for e in range(out_width):
                    out[b, h, i, e] = math.fsum(
                        weights[b, h, i, j]
                        * (1.0 if spec.keep is None else at(spec.keep, b, h, i, j))
                        * float(v[h // group, j, e])
                        for j in scores
                    )
    return OracleResult(out, lse, weights)
