"""Attention whose weights are divided by another sum than that over the keys."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polyattn import trace
from polyattn.parity.components.heads import Heads
from polyattn.truth.spec import Floats

__all__ = ["over_queries"]


def over_queries(heads: Heads) -> Iterator[tuple[str, Floats]]:
    """Sentences, each with the output: a softmax over the queries; and exponentials under the largest of their own row."""
    if heads.tiled or "sinks" in heads.arrays:
        return
    q, k, v = heads.projected()
    stages = {stage.name: stage.value for stage in trace(q, k, v, **heads.context())}
    scores = np.asarray(stages.get("masked", stages["scores"]))
    values = np.repeat(v, heads.heads // v.shape[1], 1)
    for axis, said in (
        (-2, "softmax over the queries, not over the keys"),
        (-1, "weights divided by their sum over the queries, not over the keys"),
    ):
        top = scores.max(axis, keepdims=True)
        weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
        total = weights.sum(-2, keepdims=True)
        yield (
            said,
            heads.joined(np.divide(weights, total, where=total > 0, out=np.zeros_like(weights)) @ values),
        )
