"""Exercises of the chapter on the softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, law

POWERS = np.log(2) * np.array([3.0, 2.0, 2.0])  # of which exp is 8, 4 and 4


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@law
def a_weight_is_a_share_of_the_powers(softmax: Any) -> str:
    """exp gives 8, 4 and 4, whose sum is 16: 1/2, 1/4, 1/4."""
    return apart(softmax(POWERS.copy()), [0.5, 0.25, 0.25], "of scores log(2) * [3 2 2]")


@law
def every_row_has_its_own_sum(softmax: Any) -> str:
    """Three equal scores are a third each, whatever the other rows hold."""
    rows = np.stack([POWERS, np.zeros(3)])
    return apart(softmax(rows), [[0.5, 0.25, 0.25], [1 / 3] * 3], "of rows log(2) * [3 2 2] and [0 0 0]")


@law
def large_scores_do_no_harm(softmax: Any) -> str:
    """1000 more for every score changes nothing, and 1000 less neither."""
    for c in (1000.0, -1000.0):
        if found := apart(softmax(POWERS + c), [0.5, 0.25, 0.25], f"with {c:g} added to log(2) * [3 2 2]"):
            return found
    return ""


@law
def every_row_has_its_own_maximum(softmax: Any) -> str:
    """A row of equal scores far below those of another has equal weights too."""
    return apart(
        softmax(np.array([[0.0, 0.0], [-2000.0, -2000.0]])),
        np.full((2, 2), 0.5),
        "of rows [0 0] and [-2000 -2000]",
    )


@law
def scores_may_be_far_apart(softmax: Any) -> str:
    """A score of 2000 beside one of 0 takes all: less the largest they are 0 and -2000."""
    return apart(softmax(np.array([2000.0, 0.0])), [1.0, 0.0], "of scores [2000 0]")


@law
def nothing_is_added_to_the_sum(softmax: Any) -> str:
    """One score alone has the weight 1 exactly."""
    found = float(np.reshape(softmax(np.array([3.0])), ()))
    return "" if found == 1 else f"of the score [3] alone: the weight is 1 - {1 - found:.3g}, not 1"


@law
def the_powers_are_added(lse: Any) -> str:
    """exp gives 8, 4 and 4, whose sum is 16: log 16 = 2.7726."""
    return apart(lse(POWERS.copy()), np.log(16.0), "of scores log(2) * [3 2 2]")


@law
def it_moves_with_the_scores(lse: Any) -> str:
    """1000 more for every score is 1000 more, and 1000 less is 1000 less."""
    for c in (1000.0, -1000.0):
        if found := apart(lse(POWERS + c), c + np.log(16.0), f"with {c:g} added to log(2) * [3 2 2]"):
            return found
    return ""


@law
def every_row_has_its_own(lse: Any) -> str:
    """An array (2, 1, 3) has 2 x 1 rows, and a number for each."""
    rows = np.stack([POWERS, np.zeros(3)])[:, None]
    return apart(
        lse(rows), [[np.log(16.0)], [np.log(3.0)]], "of rows log(2) * [3 2 2] and [0 0 0], (2, 1, 3)"
    )


@law
def every_row_has_its_own_largest(lse: Any) -> str:
    """Rows [0 0], [-2000 -2000] and [2000 0], however far below another row: log 2, log 2 - 2000 and 2000."""
    rows = np.array([[0.0, 0.0], [-2000.0, -2000.0], [2000.0, 0.0]])
    expected = [np.log(2.0), np.log(2.0) - 2000, 2000.0]
    return apart(lse(rows), expected, "of rows [0 0], [-2000 -2000] and [2000 0]")


@law
def a_temperature_of_one_changes_nothing(tempered: Any) -> str:
    """At T = 1 the weights are those that came."""
    w = np.array([[0.5, 0.25, 0.25], [0.25, 0.125, 0.625]])
    return apart(tempered(w.copy(), 1.0), w, "of 1/2, 1/4, 1/4 and of 1/4, 1/8, 5/8 at T = 1")


@law
def half_the_temperature_squares(tempered: Any) -> str:
    """1/2, 1/4 and 1/4 become as 1/4, 1/16 and 1/16 at T = 1/2: 2/3, 1/6, 1/6."""
    return apart(
        tempered(np.array([0.5, 0.25, 0.25]), 0.5), [2 / 3, 1 / 6, 1 / 6], "of 1/2, 1/4, 1/4 at T = 1/2"
    )


@law
def near_zero_the_largest_takes_all(tempered: Any) -> str:
    """At T = 1/2000 a weight of 1/2 beside two of 1/4 becomes 1."""
    return apart(
        tempered(np.array([0.5, 0.25, 0.25]), 1 / 2000), [1.0, 0.0, 0.0], "of 1/2, 1/4, 1/4 at T = 1/2000"
    )


@law
def every_row_keeps_its_own_largest(tempered: Any) -> str:
    """At T = 1/2000 the larger of two weights takes all, in rows .9 .1 and .4 .6 alike."""
    rows = np.array([[0.9, 0.1], [0.4, 0.6]])
    return apart(tempered(rows, 1 / 2000), [[1.0, 0.0], [0.0, 1.0]], "of rows .9 .1 and .4 .6 at T = 1/2000")


@law
def equal_weights_stay_equal(tempered: Any) -> str:
    """At any T 1/2 and 1/2 are 1/2 and 1/2."""
    return apart(tempered(np.array([0.5, 0.5]), 1 / 2000), [0.5, 0.5], "of 1/2, 1/2 at T = 1/2000")


def _one_hot(w: Any, t: float) -> Any:
    if t < 0.01:
        return np.eye(w.shape[-1])[w.argmax(-1)]
    return _of_powers(w ** (1 / t))


def _of_powers(powers: Any) -> Any:
    return powers / powers.sum(-1, keepdims=True)


EXERCISES = (
    Exercise(
        (
            a_weight_is_a_share_of_the_powers,
            every_row_has_its_own_sum,
            large_scores_do_no_harm,
            every_row_has_its_own_maximum,
            scores_may_be_far_apart,
            nothing_is_added_to_the_sum,
        ),
        {
            "a_weight_is_a_share_of_the_powers": lambda x: x / x.sum(-1, keepdims=True),
            "every_row_has_its_own_sum": lambda x: np.exp(x) / np.exp(x).sum(),
            "large_scores_do_no_harm": lambda x: _of_powers(np.exp(x)),
            "every_row_has_its_own_maximum": lambda x: _of_powers(np.exp(x - x.max())),
            "scores_may_be_far_apart": lambda x: _of_powers(np.exp(x - x.mean(-1, keepdims=True))),
            "nothing_is_added_to_the_sum": lambda x: (
                np.exp(x - x.max(-1, keepdims=True))
                / (np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True) + 1e-9)
            ),
        },
    ),
    Exercise(
        (
            the_powers_are_added,
            it_moves_with_the_scores,
            every_row_has_its_own,
            every_row_has_its_own_largest,
        ),
        {
            "the_powers_are_added": lambda x: np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)),
            "it_moves_with_the_scores": lambda x: np.log(np.exp(x).sum(-1)),
            "every_row_has_its_own": lambda x: x.max() + np.log(np.exp(x - x.max()).sum()),
            "every_row_has_its_own_largest": lambda x: x.max() + np.log(np.exp(x - x.max()).sum(-1)),
        },
    ),
    Exercise(
        (
            a_temperature_of_one_changes_nothing,
            half_the_temperature_squares,
            near_zero_the_largest_takes_all,
            every_row_keeps_its_own_largest,
            equal_weights_stay_equal,
        ),
        {
            "a_temperature_of_one_changes_nothing": lambda w, t: _softmax(w / t),
            "half_the_temperature_squares": lambda w, t: _of_powers(w**t),
            "near_zero_the_largest_takes_all": lambda w, t: _of_powers(w ** (1 / t)),
            "every_row_keeps_its_own_largest": lambda w, t: _of_powers((w / w.max()) ** (1 / t)),
            "equal_weights_stay_equal": _one_hot,
        },
    ),
)
