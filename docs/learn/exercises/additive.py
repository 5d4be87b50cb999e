"""Exercises of the chapter on a network for a score."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed

U = np.log(3) / 2  # tanh of n U: 0, 1/2, 4/5, 13/14


@law
def queries_may_disagree(attend: Any) -> str:
    """Two queries may disagree about which key is the best."""
    q, k, v = draw(6, 8, seed=1), draw(5, 8, seed=2), draw(8, seed=3)
    order = np.asarray(attend(q, k, np.eye(5), v)).argsort(axis=-1)[:, ::-1]
    if (order != order[0]).any():
        return ""
    return f"6 different queries order 5 keys alike, the best first: {' '.join(map(str, order[0]))}"


# ---- the score ----


@law
def tanh_of_half_log_three_is_a_half(scores: Any) -> str:
    """tanh(log(3) / 2) = (3 - 1) / (3 + 1) = 1/2."""
    found = scores(np.array([[U]]), np.array([[0.0]]), np.array([1.0]))
    return apart(found, [[0.5]], "of q = log(3) / 2, k = 0 and v = 1")


@law
def every_entry_is_bent_by_itself(scores: Any) -> str:
    """Two sums of log(3) / 2 give 1/2 + 1/2 = 1, not tanh(log 3) = 4/5."""
    found = scores(np.array([[U, 0.0]]), np.array([[0.0, U]]), np.array([1.0, 1.0]))
    return apart(found, [[1.0]], "of q = [log(3)/2 0], k = [0 log(3)/2] and v = [1 1]")


@law
def entries_are_weighed_by_v(scores: Any) -> str:
    """v = [2 -1] makes 2 · 1/2 - 1/2 = 1/2 of them."""
    found = scores(np.array([[U, 0.0]]), np.array([[0.0, U]]), np.array([2.0, -1.0]))
    return apart(found, [[0.5]], "of q = [log(3)/2 0], k = [0 log(3)/2] and v = [2 -1]")


@law
def rows_are_queries(scores: Any) -> str:
    """3 queries and 4 keys give 3 rows and 4 columns."""
    q, k, v = draw(3, 2, seed=1), draw(4, 2, seed=2), draw(2, seed=3)
    expected = [[np.tanh(a + b) @ v for b in k] for a in q]
    return apart(scores(q, k, v), expected, "of 3 queries with 4 keys")


@law
def there_may_be_any_number_of_entries(scores: Any) -> str:
    """Five sums of log(3) / 2 with v = 1, 2, 3, 4, 5 give 15/2."""
    found = scores(np.full((1, 5), U), np.zeros((1, 5)), np.arange(1.0, 6.0))
    return apart(found, [[7.5]], "of five entries, q = log(3)/2, k = 0 and v = [1 2 3 4 5]")


@law
def sums_may_be_large(scores: Any) -> str:
    """tanh of 1000 is 1, and of -1000 is -1, though exp(1000) is no number."""
    found = scores(np.array([[1000.0], [-1000.0]]), np.zeros((1, 1)), np.ones(1))
    return apart(found, [[1.0], [-1.0]], "of q = 1000 and -1000, k = 0 and v = 1")


@law
def what_comes_in_is_left_as_it_is(scores: Any) -> str:
    """q, k and v are the same afterwards."""
    return changed(scores, "q k v", draw(3, 2, seed=1), draw(4, 2, seed=2), draw(2, seed=3))


def _in_place(q: Any, k: Any, v: Any) -> Any:
    found = np.tanh(q[:, None] + k) @ v
    q += k[0]
    return found


def _by_powers(q: Any, k: Any, v: Any) -> Any:
    powers = np.exp(2 * (q[:, None] + k))
    return (powers - 1) / (powers + 1) @ v


# ---- concat ----


def _joined(x: Any, context: Any, w: Any, v: Any) -> Any:
    pairs = np.concatenate(
        [np.repeat(x[:, None], len(context), 1), np.repeat(context[None], len(x), 0)], axis=-1
    )
    return np.tanh(pairs @ w) @ v


def _drawn() -> tuple[Any, ...]:
    return draw(6, 3, seed=1), draw(7, 5, seed=2), draw(8, 2, seed=3), draw(2, seed=4)


@law
def a_pair_of_numbers_is_joined(concat: Any) -> str:
    """x = 1, c = 2 and w = log(3)/2 times [1 0 | 0 1/2] are tanh of log(3)/2 twice: 1/2 + 1/2 = 1."""
    w = np.array([[U, 0.0], [0.0, U / 2]])
    return apart(
        concat(np.array([[1.0]]), np.array([[2.0]]), w, np.ones(2)), [[1.0]], "of x = 1, c = 2 and v = [1 1]"
    )


@law
def the_first_rows_are_of_x(concat: Any) -> str:
    """With x 3 wide and the context 5 wide, the first 3 rows of w are those of x."""
    return apart(concat(*_drawn()), _joined(*_drawn()), "with x 3 wide and the context 5 wide")


@law
def the_last_rows_may_be_fewer(concat: Any) -> str:
    """With x 5 wide and the context 3 wide, the last 3 rows of w are those of the context."""
    context, x, w, v = _drawn()
    return apart(concat(x, context, w, v), _joined(x, context, w, v), "with x 5 wide and the context 3 wide")


@law
def no_array_is_larger_than_the_sums(concat: Any) -> str:
    """20 queries, 30 keys, A = 2, E = C = 50: sums are 1200 numbers (10 kB), vectors [x, c] 60000 (480 kB)."""
    given = draw(20, 50, seed=1), draw(30, 50, seed=2), draw(100, 2, seed=3), draw(2, seed=4)
    concat(*given)  # what is loaded at a first call is no array
    tracemalloc.start()
    try:
        concat(*given)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    what = "20 queries, 30 keys, A = 2, E = C = 50"
    return (
        "" if most < 240_000 else f"{what}: {most // 1000} kB are there at once, 20 · 30 · 2 numbers are 10"
    )


# ---- near ----


def _by_distance(near: Any, first: int = 0) -> Any:
    """Scores (9, 9) of the places 0 to 8, or of nine others, by the network."""
    w_q, w_k, v = map(np.asarray, near())
    place = first + np.arange(9.0)[:, None]
    q, k = np.concatenate([place, np.ones_like(place)], axis=1) @ w_q, place @ w_k
    return np.tanh(q[:, None] + k[None]) @ v


@law
def the_best_key_is_at_the_place(near: Any) -> str:
    """The query at place 4 scores the key at place 4 highest, and so do all."""
    s = _by_distance(near)
    best = s.argmax(axis=-1)
    if (best == np.arange(9)).all():
        return ""
    wrong = int((best != np.arange(9)).argmax())
    return f"the query at place {wrong} likes best the key at place {best[wrong]}"


@law
def both_sides_are_alike(near: Any) -> str:
    """The query at place 4 scores 3 and 5 alike."""
    s = _by_distance(near)[4]
    return apart(s[:4], s[:4:-1], "of the query at place 4 with the keys 0 to 3, and 8 to 5")


@law
def it_falls_with_every_step(near: Any) -> str:
    """At place 4 the scores of 4, 5, 6, 7, 8 fall."""
    s = _by_distance(near)[4, 4:]
    step = np.diff(s)
    if (step < 0).all():
        return ""
    at = int((step >= 0).argmax())
    return f"the score {at} steps away is {s[at]:.3g}, {at + 1} steps away {s[at + 1]:.3g}: it does not fall"


@law
def only_the_distance_counts(near: Any) -> str:
    """At the places 1000 to 1008 it is as at 0 to 8."""
    return apart(_by_distance(near, 1000), _by_distance(near), "at the places 1000 to 1008, beside 0 to 8")


def _two(steep: float, lean: float = 1.0) -> Any:
    return lambda: (
        steep * np.array([[-1.0, -1.0], [0.5, -0.5]]),
        steep * np.ones((1, 2)),
        np.array([1.0, -lean]),
    )


EXERCISES = (
    Exercise(
        (
            tanh_of_half_log_three_is_a_half,
            every_entry_is_bent_by_itself,
            entries_are_weighed_by_v,
            rows_are_queries,
            there_may_be_any_number_of_entries,
            sums_may_be_large,
            what_comes_in_is_left_as_it_is,
        ),
        {
            "tanh_of_half_log_three_is_a_half": lambda q, k, v: (q[:, None] + k) @ v,
            "every_entry_is_bent_by_itself": lambda q, k, v: np.tanh((q[:, None] + k) @ v),
            "entries_are_weighed_by_v": lambda q, k, v: np.tanh(q[:, None] + k).sum(-1),
            "rows_are_queries": lambda q, k, v: np.tanh(q[None] + k[:, None]) @ v,
            "there_may_be_any_number_of_entries": lambda q, k, v: (np.tanh(q[:, None] + k) * v)[..., :2].sum(
                -1
            ),
            "sums_may_be_large": _by_powers,
            "what_comes_in_is_left_as_it_is": _in_place,
        },
    ),
    Exercise(
        (
            a_pair_of_numbers_is_joined,
            the_first_rows_are_of_x,
            the_last_rows_may_be_fewer,
            no_array_is_larger_than_the_sums,
        ),
        {
            "a_pair_of_numbers_is_joined": lambda x, c, w, v: (
                ((x @ w[: x.shape[1]])[:, None] + c @ w[x.shape[1] :]) @ v
            ),
            "the_first_rows_are_of_x": lambda x, c, w, v: (
                np.tanh((x @ w[: len(w) // 2])[:, None] + c @ w[len(w) // 2 :]) @ v
            ),
            "the_last_rows_may_be_fewer": lambda x, c, w, v: (
                np.tanh((x[:, :3] @ w[: x.shape[1]][:3])[:, None] + c @ w[x.shape[1] :]) @ v
            ),
            "no_array_is_larger_than_the_sums": _joined,
        },
    ),
    Exercise(
        (
            the_best_key_is_at_the_place,
            both_sides_are_alike,
            it_falls_with_every_step,
            only_the_distance_counts,
        ),
        {
            "the_best_key_is_at_the_place": lambda: (
                np.array([[-1.0], [0.0]]),
                np.array([[1.0]]),
                np.array([1.0]),
            ),
            "both_sides_are_alike": _two(2.0, 0.9),
            "it_falls_with_every_step": _two(100.0),
            "only_the_distance_counts": lambda: (
                np.array([[0.001 - 1, 0.001 - 1], [0.496, -0.504]]),
                np.ones((1, 2)),
                np.array([1.0, -1.0]),
            ),
        },
    ),
)
