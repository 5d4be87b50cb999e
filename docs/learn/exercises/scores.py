"""Exercises of the chapter on scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, law

BY_HAND = np.array([[1.0, 2.0, 1.5], [0.5, 1.5, 2.5]])  # of the queries and keys of the chapter


def _given(*front: int) -> tuple[Any, Any]:
    """The queries and keys of the chapter, for each item and head of axes in front."""
    q = np.array([[1.0, 1.0, 0.0, 2.0], [0.0, 2.0, 1.0, 1.0]])
    k = np.array([[2.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 2.0, 1.0]])
    return np.tile(q, (*front, 1, 1)), np.tile(k, (*front, 1, 1))


@law
def a_score_is_a_scaled_dot_product(scores: Any) -> str:
    """[1 1 0 2] . [2 0 1 0] / 2 = 1."""
    q, k = (x[:n] for x, n in zip(_given(), (1, 2), strict=True))
    return apart(scores(q, k), BY_HAND[:1, :2], "of q = [1 1 0 2] with k = [2 0 1 0] and [1 1 0 1]")


@law
def the_scale_is_of_the_width(scores: Any) -> str:
    """Numbers that are all there four times give scores twice as large."""
    wide = scores(*(np.repeat(x, 4, -1) for x in _given()))
    return apart(wide, 2 * BY_HAND, "with every number of the queries and keys by hand four times")


@law
def rows_are_queries(scores: Any) -> str:
    """L queries and S keys give L rows and S columns."""
    return apart(scores(*_given()), BY_HAND, "of the 2 queries with the 3 keys by hand")


@law
def what_comes_in_is_left_as_it_was(scores: Any) -> str:
    """q and k are the same afterwards."""
    given = _given()
    scores(*given)
    for name, x, before in zip("qk", given, _given(), strict=True):
        if (x != before).any():
            return (
                f"{name} was changed: whoever called finds {x[0]}, not {before[0]}; write x / 2, not x /= 2"
            )
    return ""


@law
def large_scores_have_room(scores: Any) -> str:
    """600 * 600 / sqrt(1) = 360000."""
    return apart(
        scores(np.full((1, 1), 600.0), np.full((1, 1), 600.0)), [[360000.0]], "of q = [600], k = [600]"
    )


@law
def an_item_is_scored_as_by_hand(scores: Any) -> str:
    """One item with one head: [1 1 0 2] . [2 0 1 0] / 2 = 1."""
    return apart(scores(*_given(1, 1)), BY_HAND[None, None], "of the queries and keys by hand as one item")


@law
def every_item_is_computed_alone(scores: Any) -> str:
    """Item i and head h of the result are of item i and head h."""
    q, k = _given(2, 3)
    items, heads = np.array([1.0, 10.0])[:, None, None, None], np.array([1.0, 2.0, 3.0])[:, None, None]
    what = (
        "of the queries by hand, times 10 in item 1, with the keys by hand, times 2 in head 1 and 3 in head 2"
    )
    return apart(scores(q * items, k * heads), BY_HAND * items * heads, what)


@law
def a_matrix_is_still_taken(scores: Any) -> str:
    """Without axes in front it is exercise 1, of any width: 3 * 2 / sqrt(1) = 6."""
    q, k = np.array([[3.0]]), np.array([[2.0], [5.0]])
    return apart(scores(q, k), [[6.0, 15.0]], "of matrices q = [3], k = [2] and [5]")


@law
def the_scale_multiplies(spread: Any) -> str:
    """Twice the scale, twice the spread."""
    return apart(spread(16, 2.0), 2 * spread(16, 1.0), "with twice the scale")


@law
def variances_add(spread: Any) -> str:
    """16 products of variance 1 have variance 16, and standard deviation 4."""
    return apart([spread(n, 1.0) for n in (1, 4, 16)], [1.0, 2.0, 4.0], "for widths of 1, 4 and 16")


def _in_place(q: Any, k: Any) -> Any:
    q /= np.sqrt(q.shape[-1])
    return q @ k.T


EXERCISES = (
    Exercise(
        (
            a_score_is_a_scaled_dot_product,
            rows_are_queries,
            the_scale_is_of_the_width,
            what_comes_in_is_left_as_it_was,
            large_scores_have_room,
        ),
        {
            "a_score_is_a_scaled_dot_product": lambda q, k: q @ k.T,
            "the_scale_is_of_the_width": lambda q, k: q @ k.T / 2,
            "rows_are_queries": lambda q, k: np.reshape(k @ q.T, (len(q), len(k))) / np.sqrt(q.shape[-1]),
            "what_comes_in_is_left_as_it_was": _in_place,
            "large_scores_have_room": lambda q, k: (
                q.astype(np.float16) @ k.T.astype(np.float16) / np.float16(q.shape[-1] ** 0.5)
            ),
        },
    ),
    Exercise(
        (an_item_is_scored_as_by_hand, every_item_is_computed_alone, a_matrix_is_still_taken),
        {
            "an_item_is_scored_as_by_hand": lambda q, k: np.einsum("...ld,...sd->...ls", q, k),
            "every_item_is_computed_alone": lambda q, k: (
                np.einsum("...ld,sd->...ls", q, k.reshape(-1, *k.shape[-2:])[0]) / np.sqrt(q.shape[-1])
            ),
            "a_matrix_is_still_taken": lambda q, k: q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]),
        },
    ),
    Exercise(
        (the_scale_multiplies, variances_add),
        {
            "the_scale_multiplies": lambda width, scale: np.sqrt(width),
            "variances_add": lambda width, scale: scale * width,
        },
    ),
)
