"""One output beside what was meant: what is wrong with it, and what would explain that."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from polyattn.conventions.answers import Answer
from polyattn.conventions.call import Call
from polyattn.conventions.causes import Cause, settings_of
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.conventions.visible import at_rows
from polyattn.parity.diagnosis.answering import answered
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.seen import Seen, rms
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["REMAINS", "Case", "Explanation"]

#: What was wrong may be at most such a part as wrong with an explanation. Right ones leave up to 0.09 of it.
REMAINS = 1 / 8
#: Two explanations are the same on the inputs if they differ by such a part of what rounding leaves, or of an eta.
ALIKE = 0.1


class Explanation(NamedTuple):
    """A call with settings that would answer something else, in words."""

    call: Call
    settings: Settings
    words: tuple[str, ...]
    causes: tuple[Cause, ...] = ()
    loose: Floats | None = None  # how far each score may be off

    @classmethod
    def of(cls, call: Call, causes: tuple[Cause, ...]) -> Explanation:
        """Of listed causes."""
        return cls(call, settings_of(causes), tuple(cause.sentence(call) for cause in causes), causes)


class Case:
    """An observed output and the call that it should have answered."""

    def __init__(self, call: Call, seen: Seen) -> None:
        self.call, self.seen = call, seen
        self.contract = answered(call, CONTRACT, seen.rows)
        self.tried = 0
        self.untried: list[str] = []
        self.measure(seen)

    def measure(self, seen: Seen) -> None:
        """How wrong the output is as stated."""
        self.seen = seen
        self.ratio = seen.ratio(self.contract)
        self.stated = float(np.max(self.ratio, initial=0.0))
        self.wrong: Floats = self.ratio > ACCEPTANCE
        self.before = rms(seen.gap(self.contract.out)[self.wrong])

    def answer(self, what: Explanation) -> Answer:
        found = answered(what.call, what.settings, self.seen.rows)
        if what.loose is None:
            return found
        # An error of a score moves its own weight by as much, and all others by its weight times that.
        moved = np.abs(found.weights) * at_rows(what.loose, self.seen.which)
        mass = np.abs(found.weights) @ np.abs(found.values)
        spread = moved @ np.abs(found.values) + moved.sum(-1, keepdims=True) * mass
        return replace(found, condition=found.condition + spread / UNIT_ROUNDOFF["float32"])

    def left(self, expected: Answer) -> float:
        """How wrong, of what was wrong, an explanation leaves it: the part of the rms error that remains."""
        left = rms(self.seen.gap(expected.out)[self.wrong])
        if not np.isfinite(left):
            return np.inf
        return left / self.before if self.before else 0.0

    def finding(self, what: Explanation, most: float = REMAINS) -> Finding | None:
        """The explanation with its eta, if every element is explained and of what was wrong at most such a part is left."""
        try:
            expected = self.answer(what)
        except ValueError:  # shapes that do not fit together this way
            return None
        eta = self.seen.eta(expected)
        if eta > ACCEPTANCE or self.left(expected) > most:
            return None
        return Finding(what.settings, what.words, eta, what.call)

    def leave_out(self, what: str) -> None:
        """Remember what was not tried."""
        if what not in self.untried:
            self.untried.append(what)

    def noise(self, finding: Finding) -> Floats:
        """The eta of every element beside an explanation; infinite where no call answers so."""
        if finding.call is None:
            return np.full(self.seen.out.shape, np.inf)
        return self.seen.ratio(answered(finding.call, finding.settings, self.seen.rows))

    def same(self, a: Finding, b: Finding, up_to: float | None = None) -> bool:
        """Whether two explanations differ by no more than can be seen beside what rounding leaves."""
        if a.call is None or b.call is None:
            return False
        one, other = (answered(call, x.settings, self.seen.rows) for call, x in ((a.call, a), (b.call, b)))
        apart = replace(self.seen, out=one.out, half=2 * self.seen.half).ratio(other)
        if up_to is not None:
            return float(np.max(apart, initial=0.0)) <= up_to
        return rms(apart) <= ALIKE * max(rms(self.seen.ratio(one)), ALIKE)
