"""Exercises of the chapter on the online softmax."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from math import log
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law

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


def _folded(pairs: Any, *, forgets: bool = False, shifts: bool = True, guards: bool = True) -> float:
    m, total, acc = -np.inf, 0.0, 0.0
    for s, v in pairs:
        if guards and s == -np.inf:
            continue
        top = max(m, s) if shifts else 0.0
        old = 1.0 if forgets or not shifts else np.exp(m - top)
        m, total, acc = top, total * old + np.exp(s - top), acc * old + np.exp(s - top) * v
    return acc / total if total else 0.0


def _collected(pairs: Any) -> float:
    seen = [(s, v) for s, v in pairs if s > -np.inf]
    m = max((s for s, _ in seen), default=0.0)
    total = sum(np.exp(s - m) for s, _ in seen)
    return sum(np.exp(s - m) * v for s, v in seen) / total if seen else 0.0


# ---- exercise 3: what was finished ----

ROWS, E = 3, 2


@law
def shares_are_of_the_sums(joined: Any) -> str:
    """Sums of 3 and 1 have the shares 3/4 and 1/4, and together log 4."""
    out, both = joined(np.array([[8.0]]), np.log([3.0]), np.array([[4.0]]), np.log([1.0]))
    found = apart(out, [[7.0]], "of the averages 8 and 4, with log-sums log 3 and log 1")
    return found or apart(both, np.log([4.0]), "the log-sum of log 3 and log 1")


@law
def every_row_has_its_own_shares(joined: Any) -> str:
    """Row i is joined by the log-sums of row i."""
    a, b, x, y = draw(ROWS, E, seed=1), draw(ROWS, E, seed=2), draw(ROWS, seed=3), draw(ROWS, seed=4)
    share = 1 / (1 + np.exp(y - x))[:, None]
    return apart(joined(a, x, b, y)[0], share * a + (1 - share) * b, "of three rows")


@law
def large_sums_are_no_harder(joined: Any) -> str:
    """With 1000 added to both log-sums the shares are the same."""
    out, both = joined(np.array([[8.0]]), 1000 + np.log([3.0]), np.array([[4.0]]), np.array([1000.0]))
    found = apart(out, [[7.0]], "with 1000 added to both log-sums")
    return found or apart(both, 1000 + np.log([4.0]), "the log-sum with 1000 added to both")


@law
def who_saw_nothing_says_nothing(joined: Any) -> str:
    """A log-sum of -inf leaves the other as it was; two of them give 0 and -inf."""
    inf = np.array([-np.inf])
    out, both = joined(np.array([[0.0]]), inf, np.array([[4.0]]), np.log([3.0]))
    found = apart(out, [[4.0]], "with a log-sum of -inf") or apart(both, np.log([3.0]), "its log-sum")
    out, both = joined(np.array([[0.0]]), inf, np.array([[0.0]]), inf)
    found = found or apart(out, [[0.0]], "with two log-sums of -inf")
    return found or ("" if both[0] == -np.inf else f"the log-sum of -inf and -inf is {both[0]:.3g}, not -inf")


def _with_shares(a: Any, x: Any, b: Any, y: Any) -> Any:
    both = np.logaddexp(x, y)
    return np.exp(x - both)[:, None] * a + np.exp(y - both)[:, None] * b, both


def _with_the_first_row(a: Any, x: Any, b: Any, y: Any) -> Any:
    out, _ = _with_shares(a, x[:1], b, y[:1])
    return out, np.logaddexp(x, y)


def _with_sums(a: Any, x: Any, b: Any, y: Any) -> Any:
    x, y = np.exp(x), np.exp(y)
    return (x[:, None] * a + y[:, None] * b) / (x + y)[:, None], np.log(x + y)


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
            no_pair_is_kept,
        ),
        {
            "a_new_maximum_shrinks_what_came_before": lambda pairs: _folded(pairs, forgets=True),
            "scores_of_a_thousand_are_scores": lambda pairs: _folded(pairs, shifts=False),
            "hidden_keys_are_not_there": lambda pairs: _folded(pairs, guards=False),
            "no_pair_is_kept": _collected,
        },
    ),
    Exercise(
        (
            shares_are_of_the_sums,
            every_row_has_its_own_shares,
            large_sums_are_no_harder,
            who_saw_nothing_says_nothing,
        ),
        {
            "shares_are_of_the_sums": lambda a, x, b, y: ((a + b) / 2, np.logaddexp(x, y)),
            "every_row_has_its_own_shares": _with_the_first_row,
            "large_sums_are_no_harder": _with_sums,
            "who_saw_nothing_says_nothing": _with_shares,
        },
    ),
)
