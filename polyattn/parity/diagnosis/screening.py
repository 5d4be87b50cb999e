"""Many explanations, tried on a few telling rows in float32; the best of them confirmed on the whole output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from polyattn.conventions.answers import Answer
from polyattn.conventions.call import Call
from polyattn.conventions.causes import Cause, settings_of, without_merge
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.parity.diagnosis.answering import Answers, visible
from polyattn.parity.diagnosis.case import Case, Explanation
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.seen import Seen, rms
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["Scored", "Screen", "telling_rows"]

ROWS, GLANCE = 16, 4  # query rows of the screening, and of the first look at pairs
SCREEN = 2.0**5  # the eta, in float32, that computing the screening in float32 adds at most
CLOSE = (
    0.5  # what an explanation that rounding or single rows stand beside may leave of the error on the part
)


class Scored(NamedTuple):
    """An explanation on a part of the output."""

    eta: float  # less what screening in float32 may add
    left: float  # the part of the rms error that it leaves
    share: float  # of the rows that were wrong: those that it explains
    what: Explanation


class Screen:
    """The telling part of a case."""

    def __init__(self, case: Case, glance: bool = False) -> None:
        self.case = case
        self.index = telling_rows(case, GLANCE if glance else ROWS)
        batch = case.call.shape[0]
        worst = int(np.argmax(case.ratio.max(axis=(1, 2, 3)))) if case.ratio.size else 0
        self.items = np.arange(batch) if batch <= 2 else np.unique([0, worst])
        self.items = np.array([worst]) if glance else self.items
        self.seen = case.seen.at(self.index).items(self.items)
        unmerged = case.seen.unmerged()
        if case.seen.rows is None and case.seen.trusted is None:
            unmerged = unmerged.at(self.index)
        elif unmerged.out.shape[2] > ROWS:
            unmerged = unmerged.at(np.linspace(0, unmerged.out.shape[2] - 1, ROWS).astype(int))
        self.unmerged = unmerged.items(self.items)
        self._kept: list[Call] = []
        self._answers: dict[tuple[int, bool, bool], Answers] = {}
        self.wrong = case.wrong[self.items][:, :, self.index]
        self.before = rms(self.seen.gap(case.contract.out[self.items][:, :, self.index])[self.wrong])

    def answered(self, call: Call, settings: Settings, unmerged: bool = False, whole: bool = False) -> Answer:
        """What the call gives on the batch items of the part, in float32; whole: where an item depends on the others."""
        key = (id(call), unmerged, whole)
        if key not in self._answers:
            rows = (self.unmerged if unmerged else self.seen).rows
            every = np.arange(call.shape[0])
            self._answers[key] = Answers(_cut(call, every if whole else self.items), rows)
            self._kept.append(call)  # or another one gets its id
        found = self._answers[key](settings)
        return found.moved(lambda x: x[self.items]) if whole and len(found.out) == call.shape[0] else found

    def effective(self, call: Call, causes: Iterable[Cause]) -> Iterator[Cause]:
        """The causes that change anything on the part."""
        contract = self.answered(call, CONTRACT)
        for cause in causes:
            if cause.field == "merge":
                yield cause
                continue
            changed = self.answered(call, settings_of((cause,)), whole=cause.whole_batch)
            if not np.array_equal(changed.out, contract.out, equal_nan=True):
                yield cause

    def scored(self, explanations: Iterable[Explanation]) -> list[Scored]:
        """Every explanation on the part, the best first."""
        found = [scored for what in explanations if (scored := self._score(what)) is not None]
        self.case.tried += len(found)
        return sorted(found, key=lambda scored: scored.eta)

    def glanced(self, explanations: Iterable[Explanation]) -> list[Scored]:
        """The same of many, most of which a few rows of one batch item are enough to refuse."""
        found = []
        for scored in self.glance.scored(explanations):
            if scored.eta <= ACCEPTANCE or scored.left <= CLOSE or scored.share >= CLOSE:
                again = self._score(scored.what)
                found += [] if again is None else [again]
        return sorted(found, key=lambda scored: scored.eta)

    @cached_property
    def glance(self) -> Screen:
        return Screen(self.case, glance=True)

    def _score(self, what: Explanation) -> Scored | None:
        _, undone = without_merge(what.causes)
        seen = self.unmerged if undone else self.seen
        settings = replace(what.settings, merge=CONTRACT.merge) if undone else what.settings
        try:
            whole = any(cause.whole_batch for cause in what.causes)
            expected = self.answered(what.call, settings, undone, whole)
        except ValueError:  # shapes that do not fit together this way
            return None
        if expected.out.shape != seen.out.shape:
            return None
        gap, unit = seen.gap(expected.out), seen.unit_at(expected)
        with np.errstate(all="ignore"):
            ratio = np.where(gap == 0, 0.0, gap / unit - self._slack(seen, expected.condition, unit))
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        if undone:  # the wrong elements lie elsewhere
            return Scored(float(ratio.max(initial=0.0)), 1.0, 0.0, what)
        left = rms(gap[self.wrong])
        rows = self.wrong.any(-1)
        share = float(np.mean((ratio.max(-1) <= ACCEPTANCE)[rows])) if rows.any() else 0.0
        return Scored(
            float(ratio.max(initial=0.0)), left / self.before if self.before else math.inf, share, what
        )

    def _slack(self, seen: Seen, condition: Floats, unit: Floats) -> Floats:
        """The eta that the screening itself may be wrong by."""
        return SCREEN * UNIT_ROUNDOFF["float32"] * condition / unit

    def confirmed(self, scored: Iterable[Scored]) -> list[Finding]:
        """What explains every element, the best first."""
        found = []
        for eta, _, _, what in scored:
            if eta > ACCEPTANCE:
                break
            if (finding := self.case.finding(what)) is not None:
                found.append(finding)
        return found


def telling_rows(case: Case, most: int = ROWS) -> Floats:
    """Rows of the output to look at first, by their place: the most and least wrong, those that see least, and some between."""
    per_row = case.ratio.max(axis=(0, 1, 3))
    length = len(per_row)
    if length <= most:
        return np.arange(length)
    order = np.argsort(per_row, kind="stable")
    sees = visible(case.call, case.seen.which).sum(-1).min(axis=(0, 1))
    blind = np.argsort(sees, kind="stable") if len(sees) > 1 else order
    spread = np.linspace(0, length - 1, most // 2).astype(int)
    quarter = most // 4
    half = -(-quarter // 2)
    return np.unique([*order[-quarter:], *order[:half], *blind[:half], *spread])


def _cut(call: Call, items: Floats) -> Call:
    """The call on some batch items, in float32."""
    batch = call.shape[0]

    def cut(x: Any) -> Any:
        x = x[items] if x.ndim == 4 and x.shape[0] == batch else x
        return x.astype(np.float32) if x.dtype.kind == "f" else x

    arrays = {f.name: getattr(call, f.name) for f in fields(call)}
    offsets = None if call.offsets is None else tuple(call.offsets[i] for i in items)
    parts = {name: cut(x) for name, x in arrays.items() if isinstance(x, np.ndarray)}
    if call.positions is not None:
        q_at, k_at = (x[items] if x.ndim == 2 and x.shape[0] == batch else x for x in call.positions)
        return replace(call, **parts, offsets=offsets, positions=(q_at, k_at))
    return replace(call, **parts, offsets=offsets)
