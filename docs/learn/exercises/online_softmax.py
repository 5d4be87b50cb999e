"""Exercises of the chapter on the online softmax."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from math import log
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import exactly
from exercises.joined_averages import JOINED

LEFT, RIGHT, BOTH = (2 * log(2), 1.25, 6.0), (log(2), 1.5, 16.0), (2 * log(2), 2.0, 14.0)
NOTHING = (-np.inf, 0.0, 0.0)

# ---- exercise 1: states ----


@law
def sums_are_brought_to_one_maximum(merge: Any) -> str:
    """(2 log 2, 5/4, 6) and (log 2, 3/2, 16) are (2 log 2, 5/4 + 3/4, 6 + 8)."""
    return apart(merge(LEFT, RIGHT), BOTH, "of (2 log 2, 5/4, 6) and (log 2, 3/2, 16)")


@law
def the_larger_maximum_may_come_second(merge: Any) -> str:
    """(log 2, 3/2, 16) and (2 log 2, 5/4, 6) are the same."""
    return apart(merge(RIGHT, LEFT), BOTH, "of (log 2, 3/2, 16) and (2 log 2, 5/4, 6)")


@law
def large_scores_are_no_harder(merge: Any) -> str:
    """With 1000 added to both maxima l and o are the same, though exp(1000) is no number."""
    moved = [(m + 1000, *sums) for m, *sums in (LEFT, RIGHT)]
    return apart(merge(*moved), (BOTH[0] + 1000, *BOTH[1:]), "with 1000 added to all scores")


@law
def nothing_changes_nothing(merge: Any) -> str:
    """A state of no keys leaves the other as it was, also if that is of no keys."""
    found = apart(merge(NOTHING, LEFT), LEFT, "of (-inf, 0, 0) and (2 log 2, 5/4, 6)")
    m, total, acc = merge(NOTHING, NOTHING)
    if found or (m == -np.inf and total == acc == 0):
        return found
    return (
        f"of (-inf, 0, 0) and (-inf, 0, 0): the result is ({m:.3g}, {total:.3g}, {acc:.3g}), not (-inf, 0, 0)"
    )


def _added(a: Any, b: Any) -> Any:
    return max(a[0], b[0]), a[1] + b[1], a[2] + b[2]


def _under_the_first(a: Any, b: Any) -> Any:
    from_b = np.exp(b[0] - a[0])
    return max(a[0], b[0]), a[1] + b[1] * from_b, a[2] + b[2] * from_b


def _written_out(a: Any, b: Any) -> Any:
    m, (x, y) = max(a[0], b[0]), np.exp([a[0], b[0]])
    return m, (a[1] * x + b[1] * y) / np.exp(m), (a[2] * x + b[2] * y) / np.exp(m)


def _without_a_case_for_nothing(a: Any, b: Any) -> Any:
    m = max(a[0], b[0])
    x, y = np.exp(a[0] - m), np.exp(b[0] - m)
    return m, a[1] * x + b[1] * y, a[2] * x + b[2] * y


# ---- exercise 2: a stream ----


def _pairs(scores: Any, values: Any) -> Iterator[tuple[float, float]]:
    return zip(map(float, scores), map(float, values), strict=True)


@law
def a_new_maximum_shrinks_what_came_before(average: Any) -> str:
    """Scores 0, 2, 1, 0 times log 2 and values 8, 4, 16, 0: (8 + 16 + 32 + 0) / 8 = 7."""
    pairs = _pairs(np.log(2) * np.array([0, 2, 1, 0]), [8, 4, 16, 0])
    return apart(average(pairs), 7.0, "of scores 0, 2, 1, 0 times log 2 and values 8, 4, 16, 0")


@law
def scores_of_a_thousand_are_scores(average: Any) -> str:
    """With 1000 added to all scores the average is the same."""
    pairs = _pairs(1000 + np.log(2) * np.array([0, 2, 1, 0]), [8, 4, 16, 0])
    return apart(average(pairs), 7.0, "with 1000 added to all scores")


@law
def hidden_keys_are_not_there(average: Any) -> str:
    """Keys of score -inf change nothing, also if they come first, and nothing else gives 0."""
    inf, two = float("-inf"), float(np.log(2))
    found = apart(average(_pairs([inf, two, 0, inf], [9, 6, 3, 9])), 5.0, "with hidden keys first and last")
    found = found or apart(average(_pairs([inf, inf], [9, 9])), 0.0, "with hidden keys alone")
    return found or apart(average(iter(())), 0.0, "without any key")


@law
def scores_may_be_very_low(average: Any) -> str:
    """With 1000 or 10^10 taken from all scores, log 2 and 0 have the average 2/3 * 6 + 1/3 * 3 = 5, and equal scores 9/2."""
    low = apart(average(_pairs([log(2) - 1000, -1000], [6, 3])), 5.0, "of scores log(2) - 1000 and -1000")
    return low or apart(average(_pairs([-1e10, -1e10], [6, 3])), 4.5, "of scores -10^10 and -10^10")


@law
def scores_may_rise_and_fall(average: Any) -> str:
    """Scores 0, 2000, 0 leave the value of 2000, 4, and -2000, 0, -2000 too."""
    rises = apart(average(_pairs([0, 2000, 0], [8, 4, 8])), 4.0, "of scores 0, 2000, 0 and values 8, 4, 8")
    return rises or apart(average(_pairs([-2000, 0, -2000], [8, 4, 8])), 4.0, "of scores -2000, 0, -2000")


@law
def what_is_hidden_may_be_anything(average: Any) -> str:
    """A hidden value of NaN changes nothing: 4."""
    pairs = _pairs([0, -np.inf, 0], [6, np.nan, 2])
    return apart(average(pairs), 4.0, "of values 6 and 2, with NaN hidden between them")


@law
def one_key_weighs_exactly_one(average: Any) -> str:
    """One key of value 4 gives 4 to the last digit: nothing is added to the sum."""
    return exactly(average(_pairs([1], [4])), 4.0, "of one key, whose value is 4")


@law
def no_pair_is_kept(average: Any) -> str:
    """A stream of 20000 pairs takes no more memory than one of 20."""
    scores = draw(20000)
    tracemalloc.start()
    try:
        average((float(s), 1.0) for s in scores)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return "" if most < 200_000 else f"a stream of 20000 pairs took {most // 1000} kB: pairs were kept"


def _folded(
    pairs: Any,
    *,
    forgets: bool = False,
    shifts: bool = True,
    guards: bool = True,
    first: float = -np.inf,
    higher: Any = max,
    added: float = 0.0,
) -> float:
    m, total, acc = first, 0.0, 0.0
    for s, v in pairs:
        if guards and s == -np.inf:
            continue
        top = higher(m, s) if shifts else 0.0
        old = 1.0 if forgets or not shifts else np.exp(m - top)
        m, total, acc = top, total * old + np.exp(s - top), acc * old + np.exp(s - top) * v
    return acc / (total + added) if total else 0.0


def _skipping_nothing_but_the_first(pairs: Any) -> float:
    """What is hidden weighs exp(-inf) = 0, and 0 times NaN is NaN."""
    m, total, acc = -np.inf, 0.0, 0.0
    for s, v in pairs:
        top = max(m, s)
        if top > -np.inf:
            old, new = np.exp(m - top), np.exp(s - top)
            m, total, acc = top, total * old + new, acc * old + new * v
    return acc / total if total else 0.0


def _collected(pairs: Any) -> float:
    seen = [(s, v) for s, v in pairs if s > -np.inf]
    m = max((s for s, _ in seen), default=0.0)
    total = sum(np.exp(s - m) for s, _ in seen)
    return sum(np.exp(s - m) * v for s, v in seen) / total if seen else 0.0


EXERCISES = (
    Exercise(
        (
            sums_are_brought_to_one_maximum,
            the_larger_maximum_may_come_second,
            large_scores_are_no_harder,
            nothing_changes_nothing,
        ),
        {
            "sums_are_brought_to_one_maximum": _added,
            "the_larger_maximum_may_come_second": _under_the_first,
            "large_scores_are_no_harder": _written_out,
            "nothing_changes_nothing": _without_a_case_for_nothing,
        },
    ),
    Exercise(
        (
            a_new_maximum_shrinks_what_came_before,
            scores_of_a_thousand_are_scores,
            hidden_keys_are_not_there,
            scores_may_be_very_low,
            scores_may_rise_and_fall,
            what_is_hidden_may_be_anything,
            one_key_weighs_exactly_one,
            no_pair_is_kept,
        ),
        {
            "a_new_maximum_shrinks_what_came_before": lambda pairs: _folded(pairs, forgets=True),
            "scores_of_a_thousand_are_scores": lambda pairs: _folded(pairs, shifts=False),
            "hidden_keys_are_not_there": lambda pairs: _folded(pairs, guards=False),
            "scores_may_be_very_low": lambda pairs: _folded(pairs, first=0.0),
            "scores_may_rise_and_fall": lambda pairs: _folded(pairs, higher=lambda m, s: s),
            "what_is_hidden_may_be_anything": _skipping_nothing_but_the_first,
            "one_key_weighs_exactly_one": lambda pairs: _folded(pairs, added=1e-9),
            "no_pair_is_kept": _collected,
        },
    ),
    JOINED,
)
