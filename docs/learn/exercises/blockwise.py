"""Exercises of the chapter on attention tile by tile, and the law that its mistake breaks."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law


def _attention(q: Any, k: Any, v: Any, seen: Any = True) -> Any:
    s = np.where(seen, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
    w = np.exp(s - s.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True) @ v


@law
def sizes_of_tiles_are_nothing(attend: Any) -> str:
    """However the scores are cut, the result is the same.

    `attend(q, k, v, rows, keys)` is causal attention of matrices in tiles of that size.
    """
    q, k, v = (draw(7, 4, seed=seed) for seed in (1, 2, 3))
    whole = _attention(q, k, v, np.tri(7, dtype=bool))
    for rows, keys in ((7, 7), (2, 2), (1, 3), (2, 3), (3, 2), (4, 1)):
        what = f"in tiles of {rows} queries and {keys} keys"
        if found := apart(attend(q, k, v, rows, keys), whole, what):
            return found
    return ""


# ---- exercise 1: what a causal mask makes of a tile ----


def _answers(kind: Any, *asked: tuple[range, range, str]) -> str:
    for rows, keys, expected in asked:
        if (found := kind(rows, keys)) != expected:
            where = f"queries {rows[0]} to {rows[-1]} and keys {keys[0]} to {keys[-1]}"
            return f"{where}: {expected} was expected, {found} came"
    return ""


@law
def keys_that_are_all_later_are_empty(kind: Any) -> str:
    """Queries 0 to 3 see none of the keys 4 to 7."""
    return _answers(
        kind, (range(4), range(4, 8), "EMPTY"), (range(1), range(1, 2), "EMPTY"), (range(4), range(9, 12), "EMPTY")
    )  # fmt: skip


@law
def keys_that_are_all_earlier_are_full(kind: Any) -> str:
    """Queries 4 to 7 see all of the keys 0 to 3, and query 4 sees key 4."""
    return _answers(
        kind, (range(4, 8), range(4), "FULL"), (range(4, 8), range(5), "FULL"), (range(4, 5), range(4, 5), "FULL")
    )  # fmt: skip


@law
def where_the_border_runs_it_is_partial(kind: Any) -> str:
    """Of queries 0, 1, 2 and keys 2, 3 query 2 sees key 2, and no one else anything."""
    return _answers(
        kind, (range(3), range(2, 4), "PARTIAL"), (range(4), range(4), "PARTIAL"), (range(4, 8), range(6), "PARTIAL")
    )  # fmt: skip


def _by_first_ends(rows: range, keys: range) -> str:
    if keys[0] > rows[0]:
        return "EMPTY"
    return "FULL" if keys[-1] <= rows[0] else "PARTIAL"


def _strictly_earlier(rows: range, keys: range) -> str:
    if keys[0] > rows[-1]:
        return "EMPTY"
    return "FULL" if keys[-1] < rows[0] else "PARTIAL"


# ---- exercise 2: forward ----


def _tiles(attend: Any, length: int, rows: int, keys: int) -> str:
    q, k, v = (draw(length, 4, seed=seed) for seed in (1, 2, 3))
    return apart(
        attend(q, k, v, rows, keys), _attention(q, k, v), f"{length} tokens in tiles of {rows} x {keys}"
    )


@law
def tiles_weigh_what_they_hold(attend: Any) -> str:
    """Tiles are merged by their sums, not averaged as if all were equal."""
    return _tiles(attend, 8, 4, 2)


@law
def the_last_tile_may_be_smaller(attend: Any) -> str:
    """Seven tokens in tiles of three: three, three and one."""
    return _tiles(attend, 7, 3, 3) or _tiles(attend, 7, 2, 4)


@law
def no_matrix_of_scores_is_there(attend: Any) -> str:
    """1024 tokens in tiles of 64 take less than a tenth of the 8 MB of their scores."""
    q, k, v = (draw(1024, 4, seed=seed) for seed in (1, 2, 3))
    tracemalloc.start()
    try:
        attend(q, k, v, 64, 64)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return (
        ""
        if most < 800_000
        else f"1024 tokens in tiles of 64 took {most / 1e6:.1f} MB, much more than a few tiles of scores"
    )


def _mean_of_tiles(q: Any, k: Any, v: Any, rows: int, keys: int) -> Any:
    return np.mean([_attention(q, k[j : j + keys], v[j : j + keys]) for j in range(0, len(k), keys)], axis=0)


def _whole_tiles(q: Any, k: Any, v: Any, rows: int, keys: int) -> Any:
    whole = len(k) // keys * keys
    return _attention(q, k[:whole], v[:whole])


# ---- exercise 3: backward ----


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


def _plainly(q: Any, k: Any, log_sum: Any, d_out: Any) -> Any:
    return np.exp(q @ k.T / np.sqrt(q.shape[-1]) - log_sum[:, None]).T @ d_out


EXERCISES = (
    Exercise(
        (
            keys_that_are_all_later_are_empty,
            keys_that_are_all_earlier_are_full,
            where_the_border_runs_it_is_partial,
        ),
        {
            "keys_that_are_all_later_are_empty": lambda rows, keys: (
                "FULL" if keys[-1] <= rows[0] else "PARTIAL"
            ),
            "keys_that_are_all_earlier_are_full": _strictly_earlier,
            "where_the_border_runs_it_is_partial": _by_first_ends,
        },
    ),
    Exercise(
        (tiles_weigh_what_they_hold, the_last_tile_may_be_smaller, no_matrix_of_scores_is_there),
        {
            "tiles_weigh_what_they_hold": _mean_of_tiles,
            "the_last_tile_may_be_smaller": _whole_tiles,
            "no_matrix_of_scores_is_there": lambda q, k, v, rows, keys: _attention(q, k, v),
        },
    ),
    Exercise(
        (
            weights_are_of_the_whole_row,
            the_scale_is_that_of_the_forward_pass,
            a_value_hears_all_queries,
            who_saw_nothing_sends_nothing,
        ),
        {
            "weights_are_of_the_whole_row": lambda q, k, log_sum, d_out: (
                _attention(q, k, np.eye(len(k))).T @ d_out
            ),
            "the_scale_is_that_of_the_forward_pass": lambda q, k, log_sum, d_out: (
                np.exp(q @ k.T - log_sum[:, None]).T @ d_out
            ),
            "a_value_hears_all_queries": lambda q, k, log_sum, d_out: _plainly(q, k, log_sum, d_out) / len(q),
            "who_saw_nothing_sends_nothing": _plainly,
        },
    ),
)
