"""The judge of proposals: does one explain every element that was observed?

Proposals are sought on a probe, a few query rows of a few heads, where an answer costs a millisecond, and judged on everything
that was observed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from polyattn.conventions.answers import Answer, Answers
from polyattn.conventions.answers.scores import scale_of
from polyattn.conventions.call import Call
from polyattn.conventions.fits.heads import repeated
from polyattn.conventions.fits.probe import Change, Fit, Observed, Probe
from polyattn.conventions.fits.turning import turned
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Evidence"]

REMOVED = 4.0  # what was wrong is wrong by so much less, or nothing was removed
NOISE = 1.5  # rms of what rounding leaves, in units: right code measures 0.1 to 1
LEAST_TOLD = 24.0  # bits by which the output must tell a proposal from chance
MOST_TOLD = 2.0**24  # of an element, in units of rounding
FEW = 3  # observed rows that see nothing and may hold anything
ROWS = 6  # query rows of a probe
AFTER = "after the softmax"  # where a scale is that of the weights


class Evidence:
    """One observation, with what is known of it before anything is proposed."""

    def __init__(self, call: Call, seen: Observed, settings: Settings = CONTRACT) -> None:
        self.call, self.seen, self.settings = call, seen, settings
        self.rows = np.arange(call.shape[2]) if seen.rows is None else np.asarray(seen.rows)
        self.trusted = np.broadcast_to(True if seen.trusted is None else seen.trusted, seen.out.shape)
        self.ratio = self.judged(self.base)
        self.wrong = self.ratio > ACCEPTANCE
        self.by_row = self.ratio.max(-1, initial=0.0)  # (B, Hq, rows)

    @cached_property
    def base(self) -> Answer:
        """As stated."""
        return self.answer(self.call)

    @property
    def at(self) -> Floats:
        """The positions of the rows that were observed."""
        return self.rows + self.call.offset

    @property
    def by_heads(self) -> bool:
        """Whether a head of an item is answered by itself, so that a probe can be cut."""
        s = self.settings
        apart = s.layout == s.merge == s.output == s.norms == s.cache == "as stated"
        return apart and s.softmax not in ("queries", "heads", "batch items", "keys and heads")

    def answer(self, call: Call, settings: Settings | None = None) -> Answer:
        with np.errstate(all="ignore"):
            return Answers(call, self.rows)(self.settings if settings is None else settings)

    def judged(self, expected: Answer) -> Floats:
        """Every element's error in units, 0 where it does not count."""
        with np.errstate(all="ignore"):
            ratio = np.abs(self.seen.out - expected.out) / self.seen.unit(expected)
        same = (self.seen.out == expected.out) | (np.isnan(self.seen.out) & np.isnan(expected.out))
        return np.where(same | ~self.trusted, 0.0, np.where(np.isnan(ratio), np.inf, ratio))

    def explained(
        self, call: Call, settings: Settings | None = None, but: int = 0, numbers: int = 1
    ) -> list[int] | None:
        """The rows that stay unexplained, at most `but`, if the proposal explains all others; else None.

        numbers: how many were chosen to fit the output. Each may use up what the most telling element says, and of what the
        others say so much must be left that chance does not explain it.
        """
        try:
            expected = self.answer(call, settings)
        except ValueError:  # shapes that do not fit together this way
            return None
        if expected.out.shape != self.seen.out.shape:
            return None
        ratio = self.judged(expected)
        left = np.flatnonzero((ratio > ACCEPTANCE).any((0, 1, 3)))
        if len(left) > min(but, len(self.rows) // 3):
            return None
        kept = np.delete(np.arange(len(self.rows)), left)
        wrong = self.wrong[:, :, kept]
        if not wrong.any():
            return None
        ratio, error = ratio[:, :, kept], np.abs(self.seen.out - expected.out)[:, :, kept][wrong]
        before = np.abs(self.seen.out - self.base.out)[:, :, kept][wrong]
        finite = np.isfinite(before)  # where both are NaN nothing is left
        removed = _rms(error[finite]) * REMOVED <= _rms(before[finite])
        with np.errstate(all="ignore"):
            bits = np.log2((1.0 + np.minimum(self.ratio[:, :, kept], MOST_TOLD)) / (1.0 + ratio))
        told = float(np.sum(bits)) - numbers * float(np.max(bits))
        enough = told >= LEAST_TOLD and self._free(wrong, kept) >= 2 * numbers
        return left.tolist() if removed and _rms(ratio) <= NOISE and enough else None

    def _free(self, wrong: Floats, kept: Floats) -> float:
        """How many numbers the wrong rows could hold: a row that sees n keys, n - 1 at most."""
        weights = self.base.weights
        if weights.shape[:3] != self.seen.out.shape[:3]:
            return math.inf
        keys = np.maximum((weights[:, :, kept] != 0).sum(-1), 2)
        return float((np.minimum(keys - 1, wrong.shape[-1]) * wrong.any(-1)).sum())

    def masking(self, field: str, sentence: str, call: Call) -> Iterator[Fit]:
        """A proposal about a mask: rows that then see nothing may hold what programs put there."""
        found = list(self.fit(field, sentence, call))
        if not found and self.settings.empty_rows == "zero" and not self.answer(call).weights.any(-1).all():
            for fate in ("mean of all values", "as if unmasked", "NaN"):
                found = list(self.fit(field, sentence, call, replace(self.settings, empty_rows=fate)))
                if found:
                    break
            else:
                found = list(self.fit(field, sentence, call, but=FEW))
        yield from found

    def fit(
        self,
        field: str,
        sentence: str,
        call: Call,
        settings: Settings | None = None,
        *,
        but: int = 0,
        numbers: int = 1,
    ) -> Iterator[Fit]:
        """The proposal, if it explains what was observed."""
        left = self.explained(call, settings, but, numbers)
        if left is None:
            return
        if left:
            rows = ", ".join(str(self.rows[i]) for i in left)
            sentence += f"; all but row{'s' * (len(left) > 1)} {rows}"
        yield Fit(field, sentence, call, self.settings if settings is None else settings)

    def first(self, field: str, proposals: Iterable[tuple[str, Change]], but: int = 0) -> Iterator[Fit]:
        """The first of some changes that explains what was observed; each is tried on the probe before."""
        for sentence, change in proposals:
            if self.raw.explained(change(self.raw.call), but > 0):
                found = list(self.fit(field, sentence, change(self.call), but=but))
                if found:
                    yield from found
                    return

    # probes

    @cached_property
    def worst(self) -> list[tuple[int, int]]:
        """(item, head) pairs, those with most wrong rows first."""
        wrong = (self.by_row > ACCEPTANCE).sum(-1)
        order = np.argsort(-wrong, axis=None, kind="stable")
        return [(int(i // wrong.shape[1]), int(i % wrong.shape[1])) for i in order]

    @cached_property
    def probe(self) -> Probe:
        """Rows of the head that is most wrong."""
        item, head = self.worst[0]
        return self.cut([item], [head], self.telling(item, head))

    @cached_property
    def raw(self) -> Probe:
        """The same rows, queries and keys not turned."""
        item, head = self.worst[0]
        return self.cut([item], [head], self.telling(item, head), turn=False)

    @cached_property
    def whole(self) -> Probe:
        """Everything that was observed."""
        call = turned(
            self.call, self.settings, self.rows if self.call.order is None else self.call.order[self.rows]
        )
        return Probe(call, self.settings, self.rows, self.seen.out, self.trusted, self.seen.unit)

    def telling(self, item: int, head: int, most: int = ROWS) -> Floats:
        """Indices among the observed rows: first, last and middle ones of those that are wrong, and one that is not."""
        wrong = self.by_row[item, head] > ACCEPTANCE
        some, right = np.flatnonzero(wrong), np.flatnonzero(~wrong)
        picked = some[np.unique(np.linspace(0, len(some) - 1, min(most - 1, len(some))).astype(int))]
        rows: Floats = np.unique([*picked, *right[-1:]]).astype(int)
        return rows

    def cut(self, items: list[int], heads: list[int], rows: Floats, turn: bool = True) -> Probe:
        """A probe of items, heads and observed rows; of everything where heads are not answered by themselves.

        turn: with the rotary already applied, which what changes nothing of it is tried without.
        """
        if not self.by_heads:
            return Probe(self.call, self.settings, self.rows, self.seen.out, self.trusted, self.seen.unit)
        settings = replace(self.settings, heads="grouped")
        if settings.scale != AFTER:
            settings = replace(settings, scale="as stated")
        at = np.ix_(np.asarray(items), np.asarray(heads), rows)
        return Probe(
            self.cut_call(self.call, items, heads, self.rows[rows] if turn else None),
            settings,
            self.rows[rows],
            self.seen.out[at],
            self.trusted[at],
            self.seen.unit,
        )

    def cut_call(self, call: Call, items: list[int], heads: list[int], rows: Floats | None = None) -> Call:
        """Some heads of some items of a call; with query rows, turned as far as those need."""
        batch, count = call.shape[:2]

        def part(x: Floats | None) -> Floats | None:
            if x is None:
                return None
            x = x[items] if x.shape[0] == batch > 1 else x
            return x[:, heads] if x.shape[1] == count > 1 else x

        k, v = (x[items][:, heads] for x in repeated(call, self.settings.heads))
        parts: dict[str, Any] = {
            name: part(getattr(call, name)) for name in ("mask", "shift", "bias", "temperature", "added")
        }
        if call.positions is not None:
            parts["positions"] = tuple(
                x[items] if x.ndim > 1 and x.shape[0] == batch > 1 else x for x in call.positions
            )
        cut = replace(
            call,
            q=call.q[items][:, heads],
            k=k,
            v=v,
            sinks=None if call.sinks is None else call.sinks[heads],
            scale=call.scale if self.settings.scale == AFTER else scale_of(call, self.settings.scale),
            **parts,
        )
        if rows is None:
            return cut
        return turned(cut, self.settings, rows if call.order is None else call.order[rows])


def _rms(x: Floats) -> float:
    return (
        float(np.sqrt(np.mean(x**2)))
        if x.size and np.isfinite(x).all()
        else (0.0 if not x.size else math.inf)
    )
