"""Factors with which a few of many arrays sum to another: least squares on their products, which are formed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["Sums", "simple"]

SIMPLE = (0.0, 1.0, -1.0, 2.0, 0.5, -2.0, np.sqrt(2.0), np.sqrt(0.5))
NEAR = 1e-4  # a factor that is as near to a simple number is that
WORST = 1e8  # condition from which on terms depend on each other
LEFT = 1e-3  # what a sum may leave of a target, as a share of its size, to be looked at
WIDEST = {1: 512, 2: 64, 3: 16}  # of so many terms at most are so many tried at once


def simple(a: float) -> float:
    """A factor, as the simple number that it is within rounding."""
    near = min(SIMPLE, key=lambda s: abs(s - a))
    return near if abs(near - a) < NEAR else float(a)


class Sums:
    """Arrays by name, and their products with each other."""

    def __init__(self, terms: Mapping[str, Floats]) -> None:
        self.names = tuple(terms)
        self.flat = [x.ravel() for x in terms.values()]
        self.size = np.sqrt([float(x @ x) for x in self.flat])
        self.gram = np.array([[a @ b for b in self.flat] for a in self.flat]) / np.outer(self.size, self.size)

    def factors(self, target: Floats) -> dict[str, float] | None:
        """Those of all terms; None where these depend on each other."""
        found = self._solved(self._products(target), range(len(self.names)))
        return None if found is None else {name: simple(a) for name, a in zip(self.names, found, strict=True)}

    def of(self, target: Floats, count: int) -> Iterator[dict[str, float]]:
        """Factors of that many terms at a time, where their sum comes near the target and none is 0."""
        if len(self.names) > WIDEST[count]:
            return
        flat = target.ravel()
        whole, products = float(flat @ flat), self._products(target)
        for chosen in combinations(range(len(self.names)), count):
            found = self._solved(products, chosen)
            if found is None:
                continue
            left = whole - float(np.dot(found * self.size[list(chosen)], products[list(chosen)]))
            told = {self.names[i]: simple(a) for i, a in zip(chosen, found, strict=True)}
            if left <= LEFT**2 * whole and all(told.values()):
                yield told

    def _products(self, target: Floats) -> Floats:
        flat = target.ravel()
        return np.array([a @ flat for a in self.flat]) / self.size

    def _solved(self, products: Floats, chosen: Sequence[int]) -> Floats | None:
        at = list(chosen)
        gram = self.gram[np.ix_(at, at)]
        if not np.isfinite(gram).all() or np.linalg.cond(gram) > WORST:
            return None
        return np.linalg.solve(gram, products[at]) / self.size[at]
