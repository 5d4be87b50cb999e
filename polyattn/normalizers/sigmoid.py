"""The sigmoid as a normaliser: every key is weighed by its own score alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from polyattn.arrays import Array, backend_of
from polyattn.calls import answers, number
from polyattn.normalizers.normalizer import Foldable, Pull
from polyattn.normalizers.softmax import grouped_matmul

MOST = 2.0**60  # of a bias: a score added to it is a number of every compute dtype


class Weighed(NamedTuple):
    """What some keys give: a sum, which is its own merge."""

    sum: Array  # (..., L, 1) of the weights
    acc: Array  # (..., L, E) of the weighted values


@answers("polyattn.normalizers.Sigmoid", "settings")
@dataclass(frozen=True)
class Sigmoid(Foldable):
    """w = 1 / (1 + exp(-(s + bias))): no key takes from another, and the weights of a row sum to anything.

    bias: a number, 0 by default. Since S weights of about a half are a large sum, models begin with -log S, which makes
    the sum of a row of small scores about 1: Sigmoid(-math.log(S)).

    Source: Ramapuram 2024, arXiv:2409.04431, for the definition, and for the bias.

    >>> import numpy as np
    >>> Sigmoid().weights(np.array([0.0, np.log(3.0), -np.inf]))
    array([0.5 , 0.75, 0.  ])
    """

    name = "sigmoid"
    formula = "w = 1 / (1 + exp(-s - bias))"

    bias: float = 0.0

    def __post_init__(self) -> None:
        who = "polyattn.normalizers.Sigmoid"
        bias = float(number(who, "bias", self.bias, "one for each head goes to bias= of attention"))
        if not -MOST < bias < MOST:
            raise ValueError(
                f"{who}: expected a bias between -2**60 and 2**60, got {bias!r}; models begin with -log(S)"
            )
        object.__setattr__(self, "bias", bias)

    def weights(self, scores: Array, sinks: Array | None = None) -> Array:
        return self._both(scores)[0]

    def nothing(self, rows: Array, width: int) -> Weighed:
        backend, shape = backend_of(rows), rows.shape[:-1]
        xp, where = backend.xp, {"dtype": rows.dtype, "device": backend.device(rows)}
        return Weighed(xp.zeros((*shape, 1), **where), xp.zeros((*shape, width), **where))

    def lift(
        self, scores: Array, values: Array, keep: Array | None = None, *, consume: bool = False
    ) -> Weighed:
        xp, w = backend_of(scores).xp, self.weights(scores)
        return Weighed(
            xp.sum(w, axis=-1, keepdims=True), grouped_matmul(w if keep is None else w * keep, values)
        )

    def merge(self, a: Weighed, b: Weighed) -> Weighed:
        return Weighed(a.sum + b.sum, a.acc + b.acc)

    def finish(self, seen: Weighed) -> Array:
        # Chosen: a row that sees nothing hears of no value, whatever that is.
        return backend_of(seen.sum).xp.where(seen.sum == 0, 0.0, seen.acc)

    def log_sum(self, seen: Weighed) -> Array:
        xp = backend_of(seen.sum).xp
        some = seen.sum != 0
        return xp.where(some, xp.log(xp.where(some, seen.sum, 1.0)), -xp.inf)[..., 0]

    def again(self, scores: Array, log_sum: Array, *, consume: bool = False) -> Pull:
        w, left = self._both(scores)
        return Pull(w, w * left)

    def pull(self, slope: Array, d_weights: Array, mean: Array) -> Array:
        d_weights *= slope
        return d_weights

    def _both(self, scores: Array) -> tuple[Array, Array]:
        """The weights, and what they leave of 1, each as exact as it is small."""
        xp = backend_of(scores).xp
        x = scores + self.bias
        below = x < 0
        e = xp.exp(xp.where(below, x, -x))  # exp(-|x|), with a derivative at 0
        return xp.where(below, e, 1.0) / (1.0 + e), xp.where(below, 1.0, e) / (1.0 + e)
