"""The third exercise of the chapter on attention tile by tile: backward."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed
from exercises.tiles import attention


@law
def weights_are_of_the_whole_row(gradient: Any) -> str:
    """One query that weighs four keys alike: each value hears 1/4 of 8, also of a tile of two keys."""
    found = gradient(np.zeros((1, 4)), np.zeros((2, 4)), np.log([4.0]), np.array([[8.0]]))
    return apart(found, [[2.0], [2.0]], "of 2 keys among 4 that weigh the same, d_out = 8")


@law
def the_scale_is_that_of_the_forward_pass(gradient: Any) -> str:
    """Scores are q . k / sqrt(D) here too: 2 log 2 / sqrt(4) = log 2, so of log 8 this key has 2/8."""
    q, k = np.array([[2 * np.log(2), 0.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0, 0.0]])
    return apart(
        gradient(q, k, np.log([8.0]), np.array([[8.0]])), [[2.0]], "of a score of log 2 among sums of 8"
    )


@law
def a_value_hears_all_queries(gradient: Any) -> str:
    """What two queries send back to a value is added."""
    found = gradient(np.zeros((2, 4)), np.zeros((1, 4)), np.log([2.0, 4.0]), np.array([[8.0], [8.0]]))
    return apart(found, [[6.0]], "of weights 1/2 and 1/4, d_out = 8 for both")


@law
def who_saw_nothing_sends_nothing(gradient: Any) -> str:
    """A row with a log-sum of -inf sends 0 back."""
    found = gradient(
        np.zeros((2, 4)), np.zeros((1, 4)), np.array([np.log(2), -np.inf]), np.array([[8.0], [8.0]])
    )
    return apart(found, [[4.0]], "of a weight 1/2, and of a row that saw nothing")


@law
def log_sums_may_be_large(gradient: Any) -> str:
    """A score of 2000 under a log-sum of 2000 + log 2 has the weight 1/2, and -2000 under -2000 + log 2 too: 4 + 4 = 8."""
    found = gradient(
        np.array([[2000.0], [-2000.0]]),
        np.ones((1, 1)),
        np.log(2) + np.array([2000.0, -2000.0]),
        np.full((2, 1), 8.0),
    )
    return apart(found, [[8.0]], "of scores 2000 and -2000, each log 2 below its log-sum, d_out = 8")


@law
def the_width_of_heads_may_be_any(gradient: Any) -> str:
    """Of width 9 scores are divided by 3: 3 log 2 / 3 = log 2, so of log 8 this key has 2/8, and 1/4 of 8 and 4."""
    q, k = np.full((1, 9), np.log(2)), np.eye(1, 9) * 3
    return apart(
        gradient(q, k, np.log([8.0]), np.array([[8.0, 4.0]])), [[2.0, 1.0]], "of width 9 and d_out = 8, 4"
    )


@law
def what_is_given_is_left_as_it_is(gradient: Any) -> str:
    """q, k, log_sum and d_out are the same afterwards."""
    log_sum = np.array([2.0, -np.inf, 3.0])
    return changed(gradient, "q k log_sum d_out", draw(3, 4), draw(2, 4), log_sum, draw(3, 2))


def _over_log_sum(q: Any, k: Any, log_sum: Any, d_out: Any) -> Any:
    d_out[log_sum == -np.inf] = 0
    log_sum[log_sum == -np.inf] = 0
    return _plainly(q, k, log_sum, d_out)


def _of_those_who_saw(q: Any, k: Any, log_sum: Any, d_out: Any, *, width: int = 0) -> Any:
    seen = log_sum > -np.inf
    q = q * (q.shape[-1] / width) ** 0.5 if q.shape[-1] > width > 0 else q
    return _plainly(q[seen], k, log_sum[seen], d_out[seen])


def _divided(q: Any, k: Any, log_sum: Any, d_out: Any) -> Any:
    seen = log_sum > -np.inf
    powers = np.exp(q @ k.T / np.sqrt(q.shape[-1]))[seen]
    return (powers / np.exp(log_sum[seen])[:, None]).T @ d_out[seen]


def _plainly(q: Any, k: Any, log_sum: Any, d_out: Any) -> Any:
    return np.exp(q @ k.T / np.sqrt(q.shape[-1]) - log_sum[:, None]).T @ d_out


BACKWARD = Exercise(
    (
        weights_are_of_the_whole_row,
        the_scale_is_that_of_the_forward_pass,
        a_value_hears_all_queries,
        who_saw_nothing_sends_nothing,
        the_width_of_heads_may_be_any,
        log_sums_may_be_large,
        what_is_given_is_left_as_it_is,
    ),
    {
        "weights_are_of_the_whole_row": lambda q, k, log_sum, d_out: (
            attention(q, k, np.eye(len(k))).T @ d_out
        ),
        "the_scale_is_that_of_the_forward_pass": lambda q, k, log_sum, d_out: (
            np.exp(q @ k.T - log_sum[:, None]).T @ d_out
        ),
        "a_value_hears_all_queries": lambda q, k, log_sum, d_out: _plainly(q, k, log_sum, d_out) / len(q),
        "who_saw_nothing_sends_nothing": _plainly,
        "log_sums_may_be_large": _divided,
        "the_width_of_heads_may_be_any": lambda *given: _of_those_who_saw(*given, width=4),
        "what_is_given_is_left_as_it_is": _over_log_sum,
    },
)
