"""Where an output is wrong: which items, heads, rows and entries, how that grows, and in which direction."""

from __future__ import annotations

import numpy as np

from polyattn.parity.diagnosis.case import Case
from polyattn.parity.diagnosis.direction import direction
from polyattn.parity.diagnosis.places import ranges
from polyattn.parity.diagnosis.profile import Profile
from polyattn.parity.diagnosis.seen import rms
from polyattn.truth.spec import Floats

__all__ = ["profile_of"]

GROWS, TIMES = (
    0.8,
    2.0,
)  # a rank correlation, and the last third over the first, from which the error is said to grow


def profile_of(case: Case) -> Profile:
    """The profile of what is wrong with an output as stated."""
    etas, wrong = case.ratio.max(-1, initial=0.0), case.wrong
    said = [_which("batch", np.any(wrong, axis=(1, 2, 3))), _which("head", np.any(wrong, axis=(0, 2, 3)))]
    said.append(_rows(case, np.any(wrong, axis=(0, 1, 3))))
    said.append(_which("entry", np.any(wrong, axis=(0, 1, 2))))
    said.append(direction(case))
    return Profile(f"wrong: {'; '.join(x for x in said if x)}", etas, case.seen.which)


def _which(name: str, wrong: Floats) -> str:
    """Which of them are wrong, "" where there is nothing to say."""
    some, count = np.flatnonzero(wrong), len(wrong)
    if count == 1 or (name == "entry" and len(some) == count):
        return ""
    plural = {"batch": "batch items", "head": "heads", "entry": "entries"}[name]
    if len(some) == count:
        return f"all {plural}"
    text = ranges(name, some).replace(f"{name}s", plural)
    return f"{text} only" if len(some) == 1 else f"{text} of {count}"


def _rows(case: Case, wrong: Floats) -> str:
    rows = case.seen.which
    some, count = np.flatnonzero(wrong), len(wrong)
    text = "all rows" if len(some) == count else f"{ranges('row', rows[some])} of {count}"
    if len(some) < 5:
        return text
    with np.errstate(all="ignore"):
        size = np.sqrt(np.mean(case.seen.gap(case.contract.out) ** 2, axis=(0, 1, 3)))[some]
    if not np.isfinite(size).all():
        return text
    rank = np.argsort(np.argsort(size, kind="stable"), kind="stable")
    trend = float(np.corrcoef(rank, np.arange(len(some)))[0, 1])
    third = len(some) // 3
    times = float(rms(size[-third:]) / rms(size[:third]))
    if trend > GROWS and times > TIMES:
        return f"{text}, growing with the row"
    return f"{text}, shrinking with the row" if trend < -GROWS and times < 1 / TIMES else text
