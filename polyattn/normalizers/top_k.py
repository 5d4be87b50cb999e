"""The softmax over the largest scores of a row alone."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array, backend_of
from polyattn.calls import answers, integer
from polyattn.normalizers.normalizer import Normalizer
from polyattn.normalizers.softmax import SOFTMAX

MOST = 2**30  # more keys than there can be


@answers("polyattn.normalizers.TopK", "settings")
@dataclass(frozen=True)
class TopK(Normalizer):
    """w = softmax(s where s is among the k largest of its row, else -inf).

    Scores as large as the k-th are all kept, so that there may be more than k: which keys a row reads depends on their
    scores and not on their order. A row that sees at most k keys is that of the softmax. With a sink, which is no key,
    the softmax has that too.

    Source: Gupta 2021, arXiv:2106.06899.

    >>> import numpy as np
    >>> TopK(2).weights(np.array([0.0, np.log(3.0), -1.0, -np.inf]))
    array([0.25, 0.75, 0.  , 0.  ])
    """

    name = "top_k"
    formula = "w = softmax of the k largest s"
    takes_sinks = True

    k: int

    def __post_init__(self) -> None:
        advice = "it is how many keys a row reads"
        k = integer("polyattn.normalizers.TopK", "k", self.k, 1, advice)
        object.__setattr__(self, "k", min(k, MOST))

    def weights(self, scores: Array, sinks: Array | None = None) -> Array:
        if scores.shape[-1] == 0:
            return scores
        backend = backend_of(scores)
        xp = backend.xp
        falling = -backend.stop_gradient(scores)
        index = backend.arange(0, scores.shape[-1], scores)
        # The k-th by its place; where there are fewer, nothing is below the least. No length is compared with k,
        # because an exporter has it as a symbol.
        ranked = xp.where(index >= self.k - 1, xp.sort(falling, axis=-1), xp.inf)
        kth = -xp.min(ranked, axis=-1, keepdims=True)
        return SOFTMAX.weights(xp.where(scores >= kth, scores, -xp.inf), sinks)
