"""The norm as a formula, with a switch for every convention and mistake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["Norm"]


@dataclass(frozen=True)
class Norm:
    """A norm with its conventions; called on x."""

    eps: float
    centred: bool
    weight: Floats | None = None
    bias: Floats | None = None
    plus_one: bool = False
    outside: bool = False  # sqrt(variance) + eps
    unbiased: bool = False
    summed: bool = False  # the sum of squares, not their mean
    axes: tuple[int, ...] = (-1,)
    skipped: bool = False
    again: bool = False
    low: str = ""  # the precision, and the stage behind which it rounds

    def __call__(self, x: Floats) -> Floats:
        once = self.affine(self._normal(x))
        return self.affine(self._normal(once)) if self.again else once

    def _normal(self, x: Floats) -> Floats:
        low, _, stage = self.low.partition(" ")
        if stage == "input":
            x = round_to(x, low)
        if self.skipped:
            return x
        if self.centred:
            x = x - x.mean(self.axes, keepdims=True)
        squares = x * x
        if stage == "squares":
            squares = round_to(squares, low)
        mean: Any = squares.sum if self.summed else squares.mean
        variance = mean(self.axes, keepdims=True)
        if self.unbiased:
            n = np.prod([x.shape[a] for a in self.axes])
            variance = variance * n / max(n - 1, 1)
        scale = np.sqrt(variance) + self.eps if self.outside else np.sqrt(variance + self.eps)
        x = x / scale
        return round_to(x, low) if stage == "normal" else x

    def affine(self, x: Floats) -> Floats:
        if self.weight is not None:
            x = x * (1.0 + self.weight if self.plus_one else self.weight)
        return x if self.bias is None else x + self.bias
