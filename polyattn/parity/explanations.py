"""The search among explanations: which convention, of those that implementations follow, gives an observed output.

The output is compared with what an implementation with other settings would have returned
(`polyattn.conventions.answers`), one change at a time and two at a time. What explains it must do so to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from polyattn.conventions.answers import Answer, answer, merged_rightly
from polyattn.conventions.call import Call
from polyattn.conventions.causes import CAUSES, LOW, NAMES, ROUNDINGS, Cause, settings_of, without_merge
from polyattn.conventions.dropped import dropout_rate
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.conventions.visible import allowed_keys
from polyattn.parity.findings import Diagnosis, Finding
from polyattn.truth.definition import Judged
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF, round_to, unit_of
from polyattn.truth.spec import Floats

__all__ = ["Search"]

ROWS = 16  # query rows of the first screening
LARGE = 2**22  # scores beyond which pairs of changes that need every row are not tried
SCREEN = 2.0**5  # what the screening in float32 adds to an eta at most, for an output in float32
ALIKE = 0.05  # two outputs whose difference is below this eta are the same


class _Scored(NamedTuple):
    """An explanation on a part of the output."""

    eta: float
    left: float  # rms of the error that it leaves
    causes: tuple[Cause, ...]


class Search:
    """One observed output against everything that is known."""

    def __init__(self, call: Call, seen: Floats, dtype: str) -> None:
        self.call, self.seen, self.dtype = call, seen, dtype
        largest = float(np.max(np.abs(call.v), initial=0.0, where=np.isfinite(call.v)))
        self.underflow = call.shape[3] * largest
        self.tried = 0

    def run(self, pairs: bool) -> Diagnosis:
        contract = self._answer(CONTRACT)
        ratio = self._ratio(self.seen, contract)
        stated = float(np.max(ratio, initial=0.0))
        if stated <= ACCEPTANCE:
            return Diagnosis(stated, (), (), None, 0)
        note = ""
        if (low := self._holds_lower()) is not None:
            note = f"; the output holds {NAMES[low]} numbers"
            self.dtype = low
            ratio = self._ratio(self.seen, contract)
            if (eta := float(np.max(ratio, initial=0.0))) <= ACCEPTANCE:
                settings = replace(CONTRACT, precision=f"{low} output")
                words = (f"computed or stored in {NAMES[low]}: every number of the output is one of that",)
                return Diagnosis(stated, (Finding(settings, words, eta),), (), None, 1)
        self.wrong = ratio > ACCEPTANCE
        self.before = _rms(_distance(self.seen, contract.out)[self.wrong])
        self.rows = self._telling_rows(ratio)
        part = self._cut()
        applicable = [cause for cause in CAUSES if cause.applies(self.call)]
        effective = list(self._effective(part, applicable))
        singles = self._screen(part, [(cause,) for cause in effective])
        found, nearest = self._confirm(singles)
        if not found and pairs:
            found, near = self._confirm(self._screen(part, self._compatible(effective)))
            if not found:  # some show only beside another: a key dropped that the stated mask hides
                silent = [cause for cause in applicable if cause not in effective]
                found, last = self._confirm(self._screen(part, self._compatible(effective, silent)))
                near = near or last
            nearest = near or nearest
        alike_up_to = ALIKE
        if not found:
            found = self._roundings(effective)
            alike_up_to = ACCEPTANCE  # a rounding inside is reproduced only up to ties
        if not found:
            found = self._dropout(effective)
        if low is not None:
            found = [self._stored(finding, low) for finding in found]
        best, alike = found[:1], list[Finding]()
        for other in found[1:]:
            (alike if self._same(found[0], other, alike_up_to) else best).append(other)
        for what, is_it in (("NaN", np.isnan), ("infinite", np.isinf)):
            if is_it(self.seen).any() and not is_it(contract.out).any():
                note += f"; {int(is_it(self.seen).sum())} of {self.seen.size} elements are {what}"
        return Diagnosis(stated, tuple(best), tuple(alike), nearest, self.tried, note)

    # measuring

    @property
    def unit(self) -> float:
        return UNIT_ROUNDOFF[self.dtype]

    def _holds_lower(self) -> str | None:
        """The lower precision to which every number of the output is already rounded."""
        for low in ("bfloat16", "float16"):
            if (
                LOW[low] > self.unit
                and np.count_nonzero(np.isfinite(self.seen) & (self.seen != 0)) > 16
                and np.array_equal(round_to(self.seen, low), self.seen, equal_nan=True)
            ):
                return low
        return None

    def _stored(self, finding: Finding, low: str) -> Finding:
        """The finding, and that the output was stored in a lower precision."""
        if "precision" in finding.settings.changes():
            return finding
        return replace(finding, settings=replace(finding.settings, precision=f"{low} output"))

    def _answer(self, settings: Settings, rows: Floats | None = None, call: Call | None = None) -> Answer:
        with np.errstate(all="ignore"):
            return answer(self.call if call is None else call, settings, rows)

    def _ratio(self, seen: Floats, expected: Answer) -> Floats:
        """The eta of every element; what both hold as NaN agrees."""
        judged = Judged(expected.out, expected.condition, self.underflow, expected.rounded)
        unit = unit_of(judged, self.dtype)
        with np.errstate(all="ignore"):
            ratio = np.abs(seen - expected.out) / unit
        same = (seen == expected.out) | (np.isnan(seen) & np.isnan(expected.out))
        return np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))

    def _eta(self, seen: Floats, expected: Answer) -> float:
        return float(np.max(self._ratio(seen, expected), initial=0.0))

    # screening on a part

    def _telling_rows(self, ratio: Floats) -> Floats:
        """Query rows to look at first: the most and least wrong, those that see least, and some between."""
        per_row = ratio.max(axis=(0, 1, 3))
        length = len(per_row)
        if length <= ROWS:
            return np.arange(length)
        order = np.argsort(per_row, kind="stable")
        visible = allowed_keys(self.call, CONTRACT, np.arange(length))
        blind = np.argsort(visible.sum(-1).min(axis=(0, 1)), kind="stable") if visible.shape[2] > 1 else order
        spread = np.linspace(0, length - 1, ROWS // 2).astype(int)
        quarter = ROWS // 4
        return np.unique([*order[-quarter:], *order[: quarter // 2], *blind[: quarter // 2], *spread])

    def _cut(self) -> tuple[Call, Floats, Floats]:
        """The call and the output on at most two batch items, in float32; and the output as if merged wrongly."""
        batch = self.call.shape[0]
        items = np.arange(batch)
        if batch > 2:
            ratio = self._ratio(self.seen[:, :, self.rows], self._answer(CONTRACT, self.rows))
            items = np.unique([0, int(np.argmax(ratio.max(axis=(1, 2, 3))))])

        def cut(x: Any) -> Any:
            if x is None:
                return None
            x = x[items] if x.ndim == 4 and x.shape[0] == batch else x
            return x if x.dtype == bool else x.astype(np.float32)

        names = ("q", "k", "v", "mask", "bias", "shift", "sinks")
        part = replace(self.call, **{name: cut(getattr(self.call, name)) for name in names})
        return part, self.seen[items][:, :, self.rows], merged_rightly(self.seen)[items][:, :, self.rows]

    def _effective(self, part: tuple[Call, Floats, Floats], causes: list[Cause]) -> Iterator[Cause]:
        """The causes that change anything on the part."""
        contract = self._answer(CONTRACT, self.rows, part[0])
        for cause in causes:
            if cause.field == "merge":
                yield cause
                continue
            changed = self._answer(settings_of((cause,)), self.rows, part[0])
            if not np.array_equal(changed.out, contract.out, equal_nan=True):
                yield cause

    def _compatible(self, causes: list[Cause], others: list[Cause] | None = None) -> list[tuple[Cause, ...]]:
        """Pairs of causes, or of a cause and another one, in the order of the table."""
        heavy = {"softmax"} if math.prod(self.call.shape) > LARGE else set()
        return [
            pair
            for pair in (combinations(causes, 2) if others is None else product(causes, others))
            if pair[0].field != pair[1].field and not heavy & {pair[0].field, pair[1].field}
        ]

    def _screen(
        self, part: tuple[Call, Floats, Floats], explanations: list[tuple[Cause, ...]]
    ) -> list[_Scored]:
        """Every explanation with its eta on a part, the best first."""
        call, seen, merged = part
        scored = list[_Scored]()
        for causes in explanations:
            self.tried += 1
            others, undone = without_merge(causes)
            target = merged if undone else seen
            try:
                expected = self._answer(settings_of(others), self.rows, call)
            except ValueError:  # shapes that do not fit together this way
                continue
            if expected.out.shape == target.shape:
                left = _rms(_distance(target, expected.out))
                scored.append(_Scored(self._eta(target, expected), left, causes))
        return sorted(scored, key=lambda scored: scored.eta)

    def _confirm(self, scored: list[_Scored]) -> tuple[list[Finding], Finding | None]:
        """What explains every element, and the nearest of the rest."""
        found = []
        limit = ACCEPTANCE + SCREEN * max(UNIT_ROUNDOFF["float32"] / self.unit, 1.0)
        for eta, _, causes in scored:
            if eta > limit:
                break
            expected = self._answer(settings_of(causes))
            whole = self._eta(self.seen, expected)
            if whole <= ACCEPTANCE and self._removes(expected):
                found.append(Finding(settings_of(causes), self._words(causes), whole))
        # The order of the table decides between explanations that fit equally: the usual suspects come first.
        found.sort(key=lambda finding: round(finding.eta, 1))
        nearest = None
        if not found and scored:
            eta, left, causes = min(scored, key=lambda scored: scored.left)
            if math.isfinite(left) and self._removes(self._answer(settings_of(causes))):
                nearest = Finding(settings_of(causes), self._words(causes), eta)
        return found, nearest

    def _removes(self, expected: Answer) -> bool:
        """Whether the wrong elements are much nearer than they were: where large terms cancel, rounding
        explains anything, and in 16 bits an eta of 4 is no evidence."""
        return _rms(_distance(self.seen, expected.out)[self.wrong]) <= self.before / 2

    def _words(self, causes: tuple[Cause, ...]) -> tuple[str, ...]:
        return tuple(cause.sentence(self.call) for cause in causes)

    def _same(self, a: Finding, b: Finding, up_to: float) -> bool:
        one, other = self._answer(a.settings), self._answer(b.settings)
        return self._eta(one.out, other) <= up_to

    # what cannot be reproduced to the last bit

    def _roundings(self, causes: list[Cause]) -> list[Finding]:
        """A lower precision inside: simulating it must remove most of the error, and the rest be of its size."""
        found = list[tuple[float, Finding]]()
        for tried in ((), *((cause,) for cause in causes)):
            others, undone = without_merge(tried)
            seen = (merged_rightly(self.seen) if undone else self.seen)[:, :, self.rows]
            plain = self._answer(settings_of(others), self.rows)
            if not self._eta(seen, plain) * self.unit <= ACCEPTANCE * max(LOW.values()):
                continue  # wrong by more than any rounding
            before = _rms(_distance(seen, plain.out))
            for rounding in ROUNDINGS:
                unit = LOW[rounding.choice.partition(" ")[0]]
                if unit <= self.unit:
                    continue
                self.tried += 1
                simulated = self._answer(settings_of((*others, rounding)), self.rows)
                ratio = self._ratio(seen, simulated)
                eta = float(np.max(ratio, initial=0.0))
                left = _rms(_distance(seen, simulated.out))
                if left < before / 3 and eta * self.unit <= ACCEPTANCE * unit:
                    words = self._words((*tried, rounding))
                    # Ties make a few elements wrong, whatever the rounding was: most elements decide.
                    missed = float(np.mean(np.minimum(ratio, ACCEPTANCE)))
                    found.append((missed, Finding(settings_of((*tried, rounding)), words, eta)))
        return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]

    def _dropout(self, causes: list[Cause]) -> list[Finding]:
        """Dropout left on, alone or with one other change."""
        found = list[tuple[float, Finding]]()
        for tried in ((), *((cause,) for cause in causes)):
            self.tried += 1
            others, undone = without_merge(tried)
            seen = merged_rightly(self.seen) if undone else self.seen
            part = self._answer(settings_of(others), self.rows)
            alone = not tried  # where statistics decide, they would fit too many combinations
            if dropout_rate(seen[:, :, self.rows], part, self.unit, 6, by_variance=alone) is None:
                continue
            expected = self._answer(settings_of(others))
            rate = dropout_rate(seen, expected, self.unit, 48, by_variance=alone)
            if rate is not None:
                words = (*self._words(tried), f"dropout of the weights left on (rate about {rate:.2g})")
                found.append((rate, Finding(settings_of(tried), words, self._eta(seen, expected))))
            if found and alone:
                break
        # A wrong explanation leaves more to be explained by dropping.
        return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]


def _distance(a: Floats, b: Floats) -> Floats:
    """|a - b|, 0 where both are the same infinity or both NaN."""
    with np.errstate(all="ignore"):
        error = np.abs(a - b)
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, error)


def _rms(x: Floats) -> float:
    return float(np.sqrt(np.mean(x**2))) if np.isfinite(x).all() else math.inf
