"""Explanations that hold for all rows but a few, which are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from polyattn.parity.diagnosis.case import REMAINS, Case, Explanation
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.places import where_of
from polyattn.parity.diagnosis.screening import Scored
from polyattn.parity.diagnosis.seen import rms
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["partly"]

OVERWHELMING = 0.9  # the share of all rows, and of those that were wrong, that it must explain
ENOUGH = 16  # rows that were wrong and are explained, at least
HOPEFUL = 0.3  # the share of the wrong rows that it explains among the telling ones, where the worst are
TRIED = 8  # explanations that are looked at whole

Again = Callable[[Case], list[Finding]]


def partly(case: Case, scored: Iterable[Scored], again: Again) -> list[Finding]:
    """The explanation of almost all rows; `again` is asked about the remaining ones on their own."""
    hopeful = sorted((x for x in scored if x.share >= HOPEFUL), key=lambda x: -x.share)
    for candidate in hopeful[:TRIED]:
        if (found := _of_most(case, candidate.what, again)) is not None:
            return [found]
    return []


def _of_most(case: Case, what: Explanation, again: Again) -> Finding | None:
    expected = case.answer(what)
    ratio, counted = case.seen.ratio(expected), case.seen.counts.any(-1)
    explained, wrong = (ratio.max(-1) <= ACCEPTANCE) & counted, np.any(case.wrong, axis=-1)
    hit = explained & wrong
    if (
        hit.sum() < max(ENOUGH, OVERWHELMING * wrong.sum())
        or explained.sum() < OVERWHELMING * counted.sum()
        or not _removed(case, expected.out, hit)
    ):
        return None
    missed = counted & ~explained
    part = f"explains {explained.sum()} of {counted.sum()} rows; not: {where_of(missed, case.seen.which)}"
    eta = float(np.max(ratio[explained], initial=0.0))
    return replace(
        Finding(what.settings, what.words, eta, what.call), part=part + _rest(case, missed, wrong, again)
    )


def _removed(case: Case, expected: Floats, hit: Floats) -> bool:
    """Whether what was wrong in these rows is all but gone."""
    there = case.wrong & hit[..., None]
    before, after = (rms(case.seen.gap(x)[there]) for x in (case.contract.out, expected))
    return after <= REMAINS * before


def _rest(case: Case, missed: Floats, wrong: Floats, again: Again) -> str:
    """What explains the remaining rows, if anything does."""
    if not (missed & wrong).any():
        return ", which are as stated"
    rest = Case(case.call, case.seen.only(missed[..., None]))
    found = again(rest)
    case.tried += rest.tried
    return f", where it is {' and '.join(found[0].sentences)} (eta {found[0].eta:.2g})" if found else ""
