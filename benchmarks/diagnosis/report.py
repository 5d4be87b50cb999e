"""Tables, figures and targets of many trials."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from .trial import Trial

#: At least so many of a hundred are named.
TARGETS = {"singles": 95.0, "pairs": 85.0}

#: At most so many of a hundred are accused of what they have not.
ACCUSED = {"float32": 0.0, "bfloat16": 0.1, "float16": 0.1}

GOOD = {
    "singles": ("first", "alike"),
    "pairs": ("first", "alike"),
    "right": ("agrees", "rounding", "none"),
    "unknown": ("none", "true"),
}


class Line(NamedTuple):
    """A figure and whether its target is reached."""

    text: str
    reached: bool


def percent(part: int, whole: int) -> float:
    return 100 * part / max(whole, 1)


def _times(trials: list[Trial]) -> str:
    seconds = [t.seconds for t in trials]
    return f"{statistics.median(seconds):.2f} s per diagnosis, at most {max(seconds):.2f} s"


def _counts(trials: list[Trial]) -> dict[str, int]:
    verdicts = [t.verdict for t in trials]
    return {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}


def named(what: str, trials: list[Trial], target: float | None) -> Line:
    """How many were named."""
    count = _counts(trials).get
    first, alike = count("first", 0), count("alike", 0)
    share = percent(first + alike, len(trials))
    reached = target is None or share >= target
    aim = "" if target is None else f" (target {target:g} %: {'reached' if reached else 'missed'})"
    return Line(
        f"{what}: {first} named first, {alike} alike on these inputs, {count('wrong', 0)} wrongly, "
        f"{count('none', 0)} not, {count('passed', 0)} taken for right, of {len(trials)}: {share:.1f} %{aim}; "
        f"{_times(trials)}",
        reached,
    )


def accused(dtype: str, trials: list[Trial]) -> Line:
    """What was said that is not so, of every kind of output."""
    wrong = sum(t.verdict == "wrong" for t in trials)
    reached = percent(wrong, len(trials)) <= ACCUSED[dtype]
    aim = f"target {ACCUSED[dtype]:g} %: {'reached' if reached else 'missed'}"
    return Line(f"false accusations, {dtype}: {wrong} of {len(trials)} ({aim})", reached)


def right(trials: list[Trial]) -> Line:
    count = _counts(trials).get
    wrong = count("wrong", 0)
    return Line(
        f"right outputs: {wrong} accused of {len(trials)} (target 0: {'missed' if wrong else 'reached'}); "
        f"{count('agrees', 0)} agree, {count('rounding', 0)} round inside and are told so, {count('none', 0)} "
        f"not explained; {_times(trials)}",
        not wrong,
    )


def unknown(trials: list[Trial]) -> Line:
    count = _counts(trials).get
    wrong, passed = count("wrong", 0), count("passed", 0)
    return Line(
        f"unknown errors: {wrong} accused of {len(trials)} (target 0: {'missed' if wrong else 'reached'}); "
        f"{count('true', 0)} told what is so, {passed} taken for right; {_times(trials)}",
        not wrong,
    )


def passed(trials: list[Trial]) -> Line:
    """Wrong outputs that were taken for right, though the effect of the defect exceeds rounding."""
    found = [t for t in trials if t.verdict == "passed"]
    return Line(
        f"wrong outputs taken for right: {len(found)} of {len(trials)} (target 0: {'missed' if found else 'reached'})",
        not found,
    )


def figures(trials: list[Trial]) -> list[Line]:
    """All figures of the kinds that there are."""
    kinds = {kind: [t for t in trials if t.task.kind == kind] for kind in GOOD}
    dtypes = list(dict.fromkeys(t.task.dtype for t in trials))
    lines: list[Line] = []
    for kind, target in TARGETS.items():
        if not (of_kind := kinds[kind]):
            continue
        for dtype in dtypes:
            mine = [t for t in of_kind if t.task.dtype == dtype]
            lines += [named(f"{kind}, {dtype}", mine, target)] if mine else []
            for group in sorted({t.group for t in mine}) if kind == "pairs" else ():
                lines.append(named(f"  {group}, {dtype}", [t for t in mine if t.group == group], None))
        lines.append(named(f"all {kind}", of_kind, target))
    lines += [right(kinds["right"])] if kinds["right"] else []
    lines += [unknown(kinds["unknown"])] if kinds["unknown"] else []
    wrong = [t for t in trials if t.task.kind != "right"]
    lines += [passed(wrong)] if wrong else []
    return lines + [accused(dtype, [t for t in trials if t.task.dtype == dtype]) for dtype in dtypes]


def table(title: str, trials: list[Trial], of: str) -> list[str]:
    """A row for each name or group: how many were well judged, in each dtype."""
    dtypes = list(dict.fromkeys(t.task.dtype for t in trials))
    rows: dict[str, list[Trial]] = {}
    for t in trials:
        rows.setdefault(t.task.name if of == "name" else t.group, []).append(t)
    lines = [f"{title:<66}" + "".join(f"{dtype:>13}" for dtype in dtypes) + f"{'median':>11}"]
    for name, mine in rows.items():
        cells = []
        for dtype in dtypes:
            those = [t for t in mine if t.task.dtype == dtype]
            good = sum(t.verdict in GOOD[t.task.kind] for t in those)
            cells.append(f"{good} of {len(those)}" if those else "-")
        seconds = statistics.median(t.seconds for t in mine)
        lines.append(f"{name:<66}" + "".join(f"{cell:>13}" for cell in cells) + f"{seconds:9.2f} s")
    return lines


def again(t: Trial) -> str:
    """The words that run it again, and what was said."""
    task = t.task
    said = t.said.replace("\n", "\n    ")
    return (
        f"- {t.verdict}: --kinds {task.kind} --only {task.name!r} --dtype {task.dtype} --seed {task.seed} "
        f"(off by {t.moved:.2g} units)\n    {said}"
    )


def samples(trials: Iterable[Trial], most: int) -> list[str]:
    """False accusations first, then what passed, then what has no name; one seed of each name and dtype."""
    order = {"wrong": 0, "passed": 1, "none": 2}
    bad = [t for t in trials if t.verdict not in GOOD[t.task.kind]]
    one = {(t.task.name, t.task.dtype, t.verdict): t for t in reversed(bad)}
    ranked = sorted(one.values(), key=lambda t: order.get(t.verdict, 3))
    left = len(ranked) - most
    return [again(t) for t in ranked[:most]] + ([f"... and {left} more"] if left > 0 else [])
