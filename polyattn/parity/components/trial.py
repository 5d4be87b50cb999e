"""A component on trial: what it was given, what came out on both sides, and how a supposed cause is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from polyattn.parity.components.facts.record import Facts
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["BETTER", "FEW", "Candidate", "Case", "best_of", "factor_of", "holds", "rms", "roundoff_of"]

ROWS = 96  # on so many is a cause screened
BETTER = 3.0  # how many times less wrong a cause must leave it
ROUNDINGS = 2  # so many of a result are no noise too small to be believed
FEW = 4  # numbers that are too few to find a factor from
ALIKE = 2.0  # of causes that fit within this factor the first in order is said


@dataclass(frozen=True)
class Case:
    """One component, and one call of it on both sides, in float64."""

    facts: Facts
    port: Facts | None
    inputs: tuple[Floats, ...]
    expected: Floats
    seen: Floats
    unit: Floats
    roundoff: float  # of the numbers that were seen
    cuttable: bool = False

    @property
    def x(self) -> Floats:
        """The first input."""
        return self.inputs[0]

    def ratio(self, predicted: Floats, of: Floats | None = None) -> float:
        """max |seen - predicted| in units; what is NaN or infinite on both sides agrees."""
        return float(np.max(self._ratios(predicted, self.seen if of is None else of), initial=0.0))

    def _ratios(self, predicted: Floats, seen: Floats) -> Floats:
        grown = max(1.0, rms(predicted) / least) if (least := rms(self.expected)) else 1.0
        with np.errstate(all="ignore"):
            unit = np.maximum(self.unit * grown, ROUNDINGS * self.roundoff * np.abs(predicted))
            ratio = np.abs(seen - predicted) / unit
        same = (seen == predicted) | (np.isnan(seen) & np.isnan(predicted))
        return np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))

    def per_row(self) -> Floats:
        """How wrong each row is, (rows,)."""
        width = self.expected.shape[-1]
        ratios: Floats = self._ratios(self.expected, self.seen).reshape(-1, width).max(-1, initial=0.0)
        return ratios

    def reproduces(self, predicted: Floats) -> bool:
        """Whether a formula is what the reference computed."""
        fits = predicted.shape == self.expected.shape
        return fits and self.ratio(predicted, self.expected) <= ACCEPTANCE

    def cut(self) -> Case:
        """The same on few rows: the most and the least wrong, and some between. Leading axes become one."""
        lead = self.expected.shape[:-1]
        if not self.cuttable or np.prod(lead, dtype=int) <= ROWS:
            return self
        order = np.argsort(self.per_row(), kind="stable")
        third = ROWS // 3
        spread = np.linspace(0, len(order) - 1, third).astype(int)
        rows = np.unique([*order[-third:], *order[:third], *spread])

        def of(x: Floats) -> Floats:
            if x.shape[: len(lead)] != lead:
                return x
            return x.reshape(-1, *x.shape[len(lead) :])[rows]

        return replace(
            self,
            inputs=tuple(of(x) for x in self.inputs),
            expected=of(self.expected),
            seen=of(self.seen),
            unit=of(self.unit),
        )


class Candidate(NamedTuple):
    """A cause, and what the component would have given if it were so."""

    sentence: str
    predict: Callable[[Case], Floats]
    rowwise: bool = True  # whether rows can be looked at apart


def factor_of(case: Case) -> float | None:
    """The factor on what was expected that comes nearest to what was seen; None where too little is there to tell."""
    size = float((case.expected**2).sum())
    if np.count_nonzero(case.expected) < FEW or not np.isfinite(size) or not np.isfinite(case.seen).all():
        return None
    return float((case.expected * case.seen).sum() / size) or None


def rms(x: Floats) -> float:
    """The root mean square of what is finite."""
    return float(np.sqrt(np.mean(x**2, where=np.isfinite(x)))) if np.isfinite(x).any() else 0.0


def holds(x: Floats, dtype: str) -> bool:
    """Whether every number of x, of which there are some, is one of the dtype."""
    with np.errstate(all="ignore"):
        return bool(np.count_nonzero(x) > 8 and np.array_equal(round_to(x, dtype), x, equal_nan=True))


def roundoff_of(x: Floats) -> float:
    """What one rounding of the numbers of x may change, as a share of them."""
    return UNIT_ROUNDOFF["float32" if holds(x, "float32") else "float64"]


def best_of(case: Case, tiers: Iterable[Iterator[Candidate]]) -> str | None:
    """The first of the candidates that explain what was seen; later tiers only where earlier ones have none."""
    stated = case.ratio(case.expected)
    part = case.cut()
    for tier in tiers:
        scored = [(_score(case, part, candidate), candidate) for candidate in tier]
        good = [(ratio, c) for ratio, c in scored if ratio <= ACCEPTANCE]
        for ratio, candidate in _in_order(good):
            whole = ratio if part is case or not candidate.rowwise else _score(case, case, candidate)
            if whole <= ACCEPTANCE and whole * BETTER <= stated:
                return candidate.sentence
    return None


def _in_order(good: list[tuple[float, Candidate]]) -> list[tuple[float, Candidate]]:
    """Those that fit about as well as the best as they came, the others after them."""
    if not good:
        return []
    bound = max(ALIKE * min(ratio for ratio, _ in good), 1.0)
    return [pair for pair in good if pair[0] <= bound] + [pair for pair in good if pair[0] > bound]


def _score(case: Case, part: Case, candidate: Candidate) -> float:
    on = part if candidate.rowwise else case
    with np.errstate(all="ignore"):
        predicted = candidate.predict(on)
    return on.ratio(predicted) if predicted.shape == on.seen.shape else np.inf
