"""Explanations with a number of their own: another scale, another offset, that the output itself tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from polyattn.conventions.call import Call
from polyattn.conventions.causes import Cause, settings_of, without_merge
from polyattn.conventions.fits import Fit, Observed, fits
from polyattn.conventions.settings import CONTRACT
from polyattn.parity.diagnosis.case import Case, Explanation
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.screening import Scored, Screen
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["fitted"]


def fitted(
    case: Case, screen: Screen, call: Call, causes: tuple[Cause, ...], close: list[Scored]
) -> list[Finding]:
    """What explains every element with a number fitted, beside listed causes or alone. What explains the telling rows
    and not all goes to `close`."""
    if call.offsets is not None:
        case.leave_out("fitted numbers, as each batch item has an offset of its own,")
        return []
    _, undone = without_merge(causes)
    seen = case.seen.unmerged() if undone else case.seen.at(screen.index)
    observed = Observed(
        seen.out, seen.rows, seen.trusted, lambda expected: seen.unit_at(expected) + seen.half / ACCEPTANCE
    )
    words = tuple(cause.sentence(call) for cause in causes)
    found = []
    for fit in _proposed(case, call, observed, causes):
        case.tried += 1
        settings = replace(fit.settings, merge=settings_of(causes).merge if undone else CONTRACT.merge)
        what = Explanation(fit.call, settings, (*words, fit.sentence), causes)
        if (finding := case.finding(what)) is not None:
            found.append(finding)
        else:
            close.append(Scored(math.inf, 1.0, 1.0, what))
    return found


def _proposed(case: Case, call: Call, observed: Observed, causes: tuple[Cause, ...]) -> Iterator[Fit]:
    """The proposals, as far as what is altered beside them has shapes that fit together."""
    others, _ = without_merge(causes)
    try:
        yield from fits(call, observed, settings_of(others))
    except ValueError:
        beside = " and ".join(cause.sentence(call) for cause in causes) or "nothing else"
        case.leave_out(f"some fitted numbers beside {beside}")
