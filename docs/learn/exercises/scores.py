"""Exercises of the chapter on scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law


@law
def a_score_is_a_scaled_dot_product(scores: Any) -> str:
    """[1 1 0 2] . [2 0 1 0] / 2 = 1."""
    q, k = np.array([[1.0, 1.0, 0.0, 2.0]]), np.array([[2.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    return apart(scores(q, k), [[1.0, 2.0]], "of q = [1 1 0 2] with k = [2 0 1 0] and [1 1 0 1]")


@law
def the_scale_is_of_the_width(scores: Any) -> str:
    """Numbers that are all there four times give scores twice as large."""
    q, k = draw(3, 5, seed=1), draw(4, 5, seed=2)
    wide = scores(np.repeat(q, 4, -1), np.repeat(k, 4, -1))
    return apart(wide, 2 * np.asarray(scores(q, k)), "with every number four times")


@law
def rows_are_queries(scores: Any) -> str:
    """L queries and S keys give L rows and S columns."""
    q, k = draw(3, 5, seed=1), draw(4, 5, seed=2)
    return apart(scores(q, k), q @ k.T / np.sqrt(5), "of 3 queries with 4 keys")


@law
def every_item_is_computed_alone(scores: Any) -> str:
    """Item i and head h of the result are of item i and head h."""
    q, k = draw(2, 3, 4, 5, seed=1), draw(2, 3, 6, 5, seed=2)
    found = np.asarray(scores(q, k))
    alone = np.stack([[q[i, h] @ k[i, h].T / np.sqrt(5) for h in range(3)] for i in range(2)])
    return apart(found, alone, "of 2 items with 3 heads")


@law
def a_matrix_is_still_taken(scores: Any) -> str:
    """Without axes in front it is exercise 1."""
    q, k = draw(3, 5, seed=1), draw(4, 5, seed=2)
    return apart(scores(q, k), q @ k.T / np.sqrt(5), "of matrices")


@law
def the_scale_multiplies(spread: Any) -> str:
    """Twice the scale, twice the spread."""
    return apart(spread(16, 2.0), 2 * spread(16, 1.0), "with twice the scale")


@law
def variances_add(spread: Any) -> str:
    """16 products of variance 1 have variance 16, and standard deviation 4."""
    return apart([spread(n, 1.0) for n in (1, 4, 16)], [1.0, 2.0, 4.0], "for widths of 1, 4 and 16")


EXERCISES = (
    Exercise(
        (a_score_is_a_scaled_dot_product, the_scale_is_of_the_width, rows_are_queries),
        {
            "a_score_is_a_scaled_dot_product": lambda q, k: q @ k.T,
            "the_scale_is_of_the_width": lambda q, k: q @ k.T / 2,
            "rows_are_queries": lambda q, k: np.reshape(k @ q.T, (len(q), len(k))) / np.sqrt(q.shape[-1]),
        },
    ),
    Exercise(
        (every_item_is_computed_alone, a_matrix_is_still_taken),
        {
            "every_item_is_computed_alone": lambda q, k: q @ k.T / np.sqrt(q.shape[-1]),
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
