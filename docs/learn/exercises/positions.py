"""Exercises of the chapter on positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed


@law
def moving_all_changes_nothing(attend: Any) -> str:
    """All positions 7 further give the same result: only distances count."""
    q, k, v = (draw(2, 6, 8, seed=seed) for seed in (1, 2, 3))
    at = np.arange(6)
    return apart(attend(q, k, v, at + 7), attend(q, k, v, at), "with all positions 7 further")


# ---- slopes ----


@law
def the_own_key_costs_nothing(alibi: Any) -> str:
    """On the diagonal 0 is added."""
    found = np.asarray(alibi(np.array([0.5, 0.25]), 4))
    return apart(found[:, range(4), range(4)], np.zeros((2, 4)), "on the diagonal, for slopes of 1/2 and 1/4")


@law
def a_step_costs_the_slope(alibi: Any) -> str:
    """With a slope of 1/2 keys 3, 2 and 1 steps back get -3/2, -1 and -1/2."""
    return apart(
        np.asarray(alibi(np.array([0.5]), 4))[0, 3], [-1.5, -1.0, -0.5, 0.0], "row 3 with a slope of 1/2"
    )


@law
def later_keys_are_hidden(alibi: Any) -> str:
    """What comes later gets -inf."""
    found = np.asarray(alibi(np.array([0.5, 0.25]), 4))[:, *np.triu_indices(4, 1)]
    return "" if (found == -np.inf).all() else f"a key that comes later gets {found.max():.3g}, not -inf"


@law
def heads_have_slopes_of_their_own(alibi: Any) -> str:
    """Head h has slope h."""
    found = np.asarray(alibi(np.array([0.5, 0.25]), 3))
    if found.shape != (2, 3, 3):
        return f"slopes of 2 heads give an array (2, 3, 3), not {found.shape}"
    return apart(found[:, 2, 0], [-1.0, -0.5], "two steps back, of heads with slopes of 1/2 and 1/4")


@law
def heads_and_keys_may_be_more(alibi: Any) -> str:
    """Three heads, in any order: with slopes 1/4, 2 and 1/2 a key 5 steps back gets -5/4, -10 and -5/2."""
    found = np.asarray(alibi(np.array([0.25, 2.0, 0.5]), 6))
    if found.shape != (3, 6, 6):
        return f"slopes of 3 heads and a length of 6 give an array (3, 6, 6), not {found.shape}"
    return apart(found[:, 5, 0], [-1.25, -10.0, -2.5], "five steps back, of slopes 1/4, 2 and 1/2")


def _bias(slopes: Any, length: int, *, own: int = 0, sign: float = -1.0, later: float = -np.inf) -> Any:
    back = np.arange(length)[:, None] - np.arange(length)
    kept = sign * slopes[:, None, None] * (back + own)
    return np.where(back < 0, later, kept)


# ---- turning ----


@law
def position_0_is_left_as_it_is(rotary: Any) -> str:
    """At position 0 nothing turns."""
    x = draw(1, 8)
    return apart(rotary(x, np.array([0]), 100.0), x, "at position 0")


@law
def a_quarter_turn_is_to_the_left(rotary: Any) -> str:
    """At position pi/2 the first pair makes a quarter turn: (1, 0) becomes (0, 1), and (0, 1) becomes (-1, 0)."""
    at = np.array([np.pi / 2])
    return apart(rotary(np.array([[1.0, 0.0]]), at, 100.0), [[0.0, 1.0]], "(1, 0) at position pi/2") or apart(
        rotary(np.array([[0.0, 1.0]]), at, 100.0), [[-1.0, 0.0]], "(0, 1) at position pi/2"
    )


@law
def pairs_are_half_a_width_apart(rotary: Any) -> str:
    """Of four entries 0 and 2 are a pair: [1 0 0 0] becomes [0 0 1 0] by a quarter turn."""
    found = rotary(np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([np.pi / 2]), 16.0)
    return apart(found, [[0.0, 0.0, 1.0, 0.0]], "[1 0 0 0] at position pi/2")


@law
def later_pairs_turn_slower(rotary: Any) -> str:
    """With base 16 and width 4 pair 1 turns at 1/4: [0 1 0 0] at position 2 pi becomes [0 0 0 1]."""
    found = rotary(np.array([[0.0, 1.0, 0.0, 0.0]]), np.array([2 * np.pi]), 16.0)
    return apart(found, [[0.0, 0.0, 0.0, 1.0]], "[0 1 0 0] at position 2 pi with base 16")


@law
def every_row_has_its_own_position(rotary: Any) -> str:
    """(1, 0) at pi/2, at pi and at -pi/2 becomes (0, 1), (-1, 0) and (0, -1)."""
    x, at = np.array([[1.0, 0.0]] * 3), np.array([np.pi / 2, np.pi, -np.pi / 2])
    return apart(rotary(x, at, 16.0), [[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], "(1, 0) at pi/2, pi, -pi/2")


@law
def the_width_may_be_any(rotary: Any) -> str:
    """With base 16 and width 8 pair 3 turns at 1/8: entry 3 at position 4 pi becomes entry 7."""
    unit = np.eye(8)
    return apart(rotary(unit[3:4], np.array([4 * np.pi]), 16.0), unit[7:], "entry 3 of 8 at position 4 pi")


@law
def what_comes_in_is_left_as_it_is(rotary: Any) -> str:
    """x and the positions are the same afterwards."""
    return changed(lambda x, at: rotary(x, at, 100.0), "x at", draw(3, 8), np.array([1, 2, 3]))


@law
def only_the_distance_counts(rotary: Any) -> str:
    """q at 12 and k at 10 have the score of q at 2 and k at 0, and 15 and 13 that of 5 and 3."""
    q, k, at = draw(3, 8, seed=1), draw(3, 8, seed=2), np.array([2, 5, 10])
    scores = [
        np.sum(np.asarray(rotary(q, at + n, 100.0)) * np.asarray(rotary(k, at + n - 2, 100.0)), -1)
        for n in (10, 0)
    ]
    return apart(scores[0], scores[1], "q at 12, 15, 20 with k two before, beside q at 2, 5, 10")


def _turn_in_place(x: Any, at: Any, base: float) -> Any:
    x[:] = _turn(x, at, base)
    return x


def _turn(
    x: Any, at: Any, base: float, *, late: int = 0, sign: float = 1.0, slow: float = 2.0, again: bool = False
) -> Any:
    half = x.shape[-1] // 2
    t = sign * (at[:, None] + late) * base ** (-slow * np.arange(half) / (2 * half))
    a, b = x[:, :half], x[:, half:]
    first = a * np.cos(t) - b * np.sin(t)
    second = (first if again else a) * np.sin(t) + b * np.cos(t)
    return np.concatenate([first, second], axis=-1)


def _neighbours(x: Any, at: Any, base: float) -> Any:
    turned = _turn(np.concatenate([x[:, 0::2], x[:, 1::2]], axis=-1), at, base)
    half = x.shape[-1] // 2
    return np.stack([turned[:, :half], turned[:, half:]], axis=-1).reshape(x.shape)


# ---- a step as a matrix ----


def _waves(at: Any, dim: int) -> Any:
    t = np.asarray(at, float)[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    return np.stack([np.sin(t), np.cos(t)], axis=-1).reshape(len(t), dim)


@law
def it_goes_forward(step: Any) -> str:
    """M (0, 1) = (sin n, cos n): position 0 goes to n."""
    return apart(
        np.asarray(step(1, 2)) @ _waves([0], 2)[0], _waves([1], 2)[0], "one step from position 0, dim 2"
    )


@law
def every_position_goes_as_far(step: Any) -> str:
    """The same matrix takes 0 to 3, 1 to 4 and 2 to 5."""
    found = _waves([0, 1, 2], 2) @ np.asarray(step(3, 2)).T
    return apart(found, _waves([3, 4, 5], 2), "three steps from positions 0, 1 and 2, dim 2")


@law
def every_pair_has_its_pace(step: Any) -> str:
    """With dim 8 there are four pairs, at 1, 1/10, 1/100 and 1/1000."""
    found = _waves([0, 1, 2], 8) @ np.asarray(step(3, 8)).T
    return apart(found, _waves([3, 4, 5], 8), "three steps from positions 0, 1 and 2, dim 8")


@law
def widths_and_steps_may_be_any(step: Any) -> str:
    """With dim 6 the paces are 1, 10000^(-1/3) and 10000^(-2/3), and -50 steps go from 60, 61 to 10, 11."""
    found = _waves([60, 61], 6) @ np.asarray(step(-50, 6)).T
    return apart(found, _waves([10, 11], 6), "50 steps back from positions 60 and 61, dim 6")


def _step(n: int, dim: int, *, sign: float = 1.0, one_pace: bool = False) -> Any:
    found = np.zeros((dim, dim))
    for m in range(0, dim, 2):
        t = n * (1.0 if one_pace else 10000.0 ** (-m / dim))
        found[m : m + 2, m : m + 2] = [[np.cos(t), sign * np.sin(t)], [-sign * np.sin(t), np.cos(t)]]
    return found


EXERCISES = (
    Exercise(
        (
            the_own_key_costs_nothing,
            a_step_costs_the_slope,
            later_keys_are_hidden,
            heads_have_slopes_of_their_own,
            heads_and_keys_may_be_more,
        ),
        {
            "the_own_key_costs_nothing": lambda slopes, length: _bias(slopes, length, own=1),
            "a_step_costs_the_slope": lambda slopes, length: _bias(slopes, length, sign=1.0),
            "later_keys_are_hidden": lambda slopes, length: _bias(slopes, length, later=0.0),
            "heads_have_slopes_of_their_own": lambda slopes, length: _bias(
                np.full(len(slopes), slopes[0]), length
            ),
            "heads_and_keys_may_be_more": lambda slopes, length: _bias(np.sort(slopes)[::-1], length),
        },
    ),
    Exercise(
        (
            position_0_is_left_as_it_is,
            a_quarter_turn_is_to_the_left,
            pairs_are_half_a_width_apart,
            later_pairs_turn_slower,
            every_row_has_its_own_position,
            the_width_may_be_any,
            what_comes_in_is_left_as_it_is,
            only_the_distance_counts,
        ),
        {
            "position_0_is_left_as_it_is": lambda x, at, base: _turn(x, at, base, late=1),
            "a_quarter_turn_is_to_the_left": lambda x, at, base: _turn(x, at, base, again=True),
            "pairs_are_half_a_width_apart": _neighbours,
            "later_pairs_turn_slower": lambda x, at, base: _turn(x, at, base, slow=1.0),
            "every_row_has_its_own_position": lambda x, at, base: _turn(x, at[:1], base),
            "the_width_may_be_any": lambda x, at, base: _turn(x, at, base, slow=x.shape[-1] / 2),
            "what_comes_in_is_left_as_it_is": _turn_in_place,
            "only_the_distance_counts": lambda x, at, base: _turn(x, np.minimum(at, 13), base),
        },
    ),
    Exercise(
        (it_goes_forward, every_position_goes_as_far, every_pair_has_its_pace, widths_and_steps_may_be_any),
        {
            "it_goes_forward": lambda n, dim: _step(n, dim, sign=-1.0),
            "every_position_goes_as_far": lambda n, dim: (
                np.outer(_waves([n], dim)[0], _waves([0], dim)[0]) / (dim / 2)
            ),
            "every_pair_has_its_pace": lambda n, dim: _step(n, dim, one_pace=True),
            "widths_and_steps_may_be_any": lambda n, dim: _step(abs(n), dim),
        },
    ),
)
