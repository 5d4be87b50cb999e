"""What was observed, what is proposed, and a part of the observation on which a proposal is tried in a millisecond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from polyattn.conventions.answers import Answer, answer
from polyattn.conventions.call import Call
from polyattn.conventions.fits.turning import turned
from polyattn.conventions.settings import Settings
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Change", "Fit", "Observed", "Probe"]

Change = Callable[[Call], Call]


class Observed(NamedTuple):
    """An output, or a part of it, and what rounding explains of it."""

    out: Floats  # (B, Hq, rows, E) float64
    rows: Floats | None  # which query rows they are, None = all
    trusted: Floats | None  # bool, broadcasting to out: the elements that count, None = all
    unit: Callable[[Answer], Floats]  # elementwise, as `polyattn.truth.measure.unit_of`


class Fit(NamedTuple):
    """An explanation whose number was found."""

    field: str  # what it changes; it does not combine with causes of the same field
    sentence: str
    call: Call  # as the implementation seems to have taken it
    settings: Settings


@dataclass(frozen=True)
class Probe:
    """A few rows of a few heads, as a call of its own: every head has its own key and value."""

    call: Call
    settings: Settings
    rows: Floats
    out: Floats  # (items, heads, rows, E)
    trusted: Floats
    unit: Callable[[Answer], Floats]

    def residual(self, call: Call) -> Floats:
        """(items, heads, rows, E): error in units, 0 where it does not count."""
        try:
            with np.errstate(all="ignore"):
                rows = self.rows if call.order is None else call.order[self.rows]
                expected = answer(turned(call, self.settings, rows), self.settings, self.rows)
                error = (self.out - expected.out) / self.unit(expected)
        except ValueError:  # shapes that do not fit together this way
            return np.full(self.out.shape, np.inf)
        agrees = (self.out == expected.out) | (np.isnan(self.out) & np.isnan(expected.out)) | ~self.trusted
        return np.where(agrees, 0.0, np.where(np.isnan(error), np.inf, error))

    def explained(self, call: Call, mostly: bool = False) -> bool:
        """Whether rounding explains what is left in every row, or mostly, in more than half of them."""
        rows = np.abs(self.residual(call)).max((0, 1, 3), initial=0.0) <= ACCEPTANCE
        return bool(rows.mean() > 0.5 if mostly else rows.all())
