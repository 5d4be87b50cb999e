"""The third exercise of the chapter on the online softmax: what two machines have finished."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed, exactly

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


@law
def rows_may_be_far_apart(joined: Any) -> str:
    """Averages 8 and 4 with log-sums 2000 and 0, 0 and 2000, 0 and 0 give 8, 4 and 6."""
    x, y = np.array([2000.0, 0.0, 0.0]), np.array([0.0, 2000.0, 0.0])
    out, both = joined(np.full((3, 1), 8.0), x, np.full((3, 1), 4.0), y)
    found = apart(out, [[8.0], [4.0], [6.0]], "of rows with log-sums 2000 and 0, 0 and 2000, 0 and 0")
    return found or apart(both, [2000.0, 2000.0, log(2)], "their log-sums")


@law
def one_machine_is_heard_exactly(joined: Any) -> str:
    """Beside a log-sum of -inf an average of 4 is 4 to the last digit: nothing is added to the sums."""
    out, _ = joined(np.zeros((1, 1)), np.array([-np.inf]), np.array([[4.0]]), np.zeros(1))
    return exactly(out, 4.0, "of an average of 4, beside a log-sum of -inf")


@law
def what_was_sent_is_left_as_it_is(joined: Any) -> str:
    """Averages and log-sums are the same afterwards."""
    names = "out_a log_sum_a out_b log_sum_b"
    return changed(joined, names, draw(3, 2), draw(3), draw(3, 2, seed=1), np.array([0.0, -np.inf, 1.0]))


def _joined(a: Any, x: Any, b: Any, y: Any, *, top: Any = np.maximum, added: float = 0.0) -> Any:
    """Right, unless it is given what is wrong."""
    m = top(x, y)
    m = np.where(m == -np.inf, 0.0, m)
    from_a, from_b = np.exp(x - m), np.exp(y - m)
    total = from_a + from_b
    out = (from_a[:, None] * a + from_b[:, None] * b) / (np.where(total == 0, 1.0, total) + added)[:, None]
    return out, np.where(total == 0, -np.inf, m + np.log(total))


def _over_a(a: Any, x: Any, b: Any, y: Any) -> Any:
    out, both = _joined(a, x, b, y)
    a[:] = out
    return a, both


def _with_shares(a: Any, x: Any, b: Any, y: Any) -> Any:
    both = np.logaddexp(x, y)
    return np.exp(x - both)[:, None] * a + np.exp(y - both)[:, None] * b, both


def _with_the_first_row(a: Any, x: Any, b: Any, y: Any) -> Any:
    out, _ = _with_shares(a, x[:1], b, y[:1])
    return out, np.logaddexp(x, y)


def _with_sums(a: Any, x: Any, b: Any, y: Any) -> Any:
    x, y = np.exp(x), np.exp(y)
    return (x[:, None] * a + y[:, None] * b) / (x + y)[:, None], np.log(x + y)


JOINED = Exercise(
    (
        shares_are_of_the_sums,
        what_was_sent_is_left_as_it_is,
        every_row_has_its_own_shares,
        large_sums_are_no_harder,
        who_saw_nothing_says_nothing,
        rows_may_be_far_apart,
        one_machine_is_heard_exactly,
    ),
    {
        "shares_are_of_the_sums": lambda a, x, b, y: ((a + b) / 2, np.logaddexp(x, y)),
        "every_row_has_its_own_shares": _with_the_first_row,
        "large_sums_are_no_harder": _with_sums,
        "who_saw_nothing_says_nothing": _with_shares,
        "rows_may_be_far_apart": lambda *sent: _joined(
            *sent, top=lambda x, y: np.full_like(x, max(x.max(), y.max()))
        ),
        "one_machine_is_heard_exactly": lambda *sent: _joined(*sent, added=1e-9),
        "what_was_sent_is_left_as_it_is": _over_a,
    },
)
