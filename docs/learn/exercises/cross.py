"""Exercises of the chapter on two sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed, exactly
from exercises.padded_sources import LARGE, PADDED

SHAPE = (2, 3, 6, 4)


@law
def pieces_are_the_whole(attend: Any) -> str:
    """The last two queries with all keys give the last two rows of all queries."""
    q, k, v = (draw(*SHAPE, seed=seed) for seed in (1, 2, 3))
    return apart(attend(q[..., -2:, :], k, v), attend(q, k, v)[..., -2:, :], "the last 2 of 6 queries alone")


# ---- one head ----


def _softmax(s: Any) -> Any:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _drawn() -> tuple[Any, ...]:
    return draw(5, 8), draw(7, 6), draw(8, 4), draw(6, 4), draw(6, 3)


@law
def a_row_for_each_query(cross: Any) -> str:
    """5 rows of x, 7 of the context and values 3 wide give a result (5, 3)."""
    shape = np.shape(cross(*_drawn()))
    return "" if shape == (5, 3) else f"a result of shape (5, 3) was expected, {shape} came: rows are of x"


@law
def values_are_of_the_context(cross: Any) -> str:
    """One row of context, [1 2], whose w_v doubles it, gives [2 4] to every query."""
    one, same = np.array([[1.0, 2.0]]), np.eye(2)
    found = cross(np.array([[5.0, 0.0], [0.0, 7.0]]), one, same, same, 2 * same)
    return apart(found, [[2.0, 4.0], [2.0, 4.0]], "with one row of context, whose value is [2 4]")


@law
def weights_are_powers_of_two(cross: Any) -> str:
    """Scores of log 2 times 0, 1, 2, 0 give weights of 1/8, 1/4, 1/2, 1/8, and the mean place 13/8."""
    context = np.concatenate([np.eye(4), np.arange(4.0)[:, None]], axis=1)  # key beside place
    x = 2 * np.log(2) * np.array([[0.0, 1.0, 2.0, 0.0]])  # sqrt(4) = 2
    found = cross(x, context, np.eye(4), np.eye(5, 4), np.eye(5)[:, 4:])
    return apart(found, [[13 / 8]], "the mean place where the word black looks")


@law
def the_scale_is_of_the_queries(cross: Any) -> str:
    """x 8 wide and queries 4 wide: scores are divided by 2, the root of 4."""
    x, context, w_q, w_k, w_v = _drawn()
    expected = _softmax(x @ w_q @ (context @ w_k).T / 2) @ (context @ w_v)
    return apart(
        cross(x, context, w_q, w_k, w_v), expected, "with x 8 wide and queries 4 wide, whose root is 2"
    )


@law
def the_width_of_queries_may_be_any(cross: Any) -> str:
    """Queries 9 wide are divided by 3: with scores of log 2 times 0, 1, 2, 0 the mean place is 13/8 again."""
    context = np.concatenate([np.eye(4), np.arange(4.0)[:, None]], axis=1)
    x, w_k = 3 * np.log(2) * np.array([[0.0, 1.0, 2.0, 0.0]]), np.eye(5, 9)
    w_k[4] = 0
    found = cross(x, context, np.eye(4, 9), w_k, np.eye(5)[:, 4:])
    return apart(found, [[13 / 8]], "the mean place, with queries 9 wide")


@law
def one_row_weighs_exactly_one(cross: Any) -> str:
    """With one row of context, whose value is 4, the result is 4 to the last digit: nothing is added to the sum."""
    one = np.ones((1, 1))
    return exactly(cross(one, one, one, one, 4 * one), 4.0, "with one row of context, whose value is 4")


@law
def rows_may_be_far_apart(cross: Any) -> str:
    """Queries 1, 0, -1 with keys 0, 2000 + log 2, 2000 and values 9, 6, 3: 4 + 1 = 5, (9 + 6 + 3) / 3 = 6 and 9."""
    context = np.array([[0.0, 9.0], [2000 + np.log(2), 6.0], [2000.0, 3.0]])
    x, one, w_k, w_v = np.array([[1.0], [0.0], [-1.0]]), np.ones((1, 1)), np.eye(2)[:, :1], np.eye(2)[:, 1:]
    return apart(cross(x, context, one, w_k, w_v), [[5.0], [6.0], [9.0]], LARGE)


@law
def what_comes_in_is_left_as_it_is(cross: Any) -> str:
    """x, the context and the matrices are the same afterwards."""
    return changed(cross, "x context w_q w_k w_v", *_drawn())


def _cross(x: Any, c: Any, w_q: Any, w_k: Any, w_v: Any, *, width: int = 0, softmax: Any = _softmax) -> Any:
    """Right, unless it is given what is wrong."""
    q = x @ w_q
    return softmax(q @ (c @ w_k).T / (width or q.shape[-1]) ** 0.5) @ (c @ w_v)


def _in_place(x: Any, *others: Any) -> Any:
    found = _cross(x, *others)
    x -= x.mean()
    return found


def _padded_sum(s: Any) -> Any:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / (e.sum(-1, keepdims=True) + 1e-9)


def _under_one_maximum(s: Any) -> Any:
    e = np.exp(s - s.max())
    return e / e.sum(-1, keepdims=True)


# ---- which triangle ----


@law
def a_square_is_a_triangle(causal_mask: Any) -> str:
    """With as many queries as keys, query i sees keys 0 to i: 1, 2, 3 of them."""
    return _counts(causal_mask, 3, 3, [1, 2, 3])


@law
def the_last_query_sees_every_key(causal_mask: Any) -> str:
    """2 queries at the end of 5 tokens see 4 and 5 keys."""
    return _counts(causal_mask, 2, 5, [4, 5])


@law
def who_stands_before_all_keys_sees_none(causal_mask: Any) -> str:
    """Of 5 queries with 3 keys the first two see nothing."""
    return _counts(causal_mask, 5, 3, [0, 0, 1, 2, 3])


@law
def true_and_false(causal_mask: Any) -> str:
    """A mask is of type bool."""
    kind = np.asarray(causal_mask(2, 5)).dtype
    return "" if kind.kind == "b" else f"the mask is of type {kind}, not bool: whoever adds it hides nothing"


def _counts(causal_mask: Any, rows: int, keys: int, seen: list[int]) -> str:
    mask = np.asarray(causal_mask(rows, keys))
    expected = np.arange(keys) < np.array(seen)[:, None]
    if mask.shape != expected.shape:
        return f"a mask of shape {expected.shape} was expected, {mask.shape} came"
    if (mask == expected).all():
        return ""
    return f"{rows} queries with {keys} keys see {mask.sum(-1).astype(int).tolist()} keys, not {seen}"


EXERCISES = (
    Exercise(
        (
            a_row_for_each_query,
            values_are_of_the_context,
            weights_are_powers_of_two,
            the_scale_is_of_the_queries,
            the_width_of_queries_may_be_any,
            one_row_weighs_exactly_one,
            rows_may_be_far_apart,
            what_comes_in_is_left_as_it_is,
        ),
        {
            "a_row_for_each_query": lambda x, c, w_q, w_k, w_v: _softmax((c @ w_k) @ (x @ w_q).T) @ (x @ w_q),
            "values_are_of_the_context": lambda x, c, w_q, w_k, w_v: (
                _softmax(x @ w_q @ (c @ w_k).T) @ c[:, : w_v.shape[1]]
            ),
            "weights_are_powers_of_two": lambda x, c, w_q, w_k, w_v: (
                _softmax(x @ w_q @ (c @ w_k).T) @ (c @ w_v)
            ),
            "the_scale_is_of_the_queries": lambda x, c, w_q, w_k, w_v: _cross(
                x, c, w_q, w_k, w_v, width=x.shape[-1]
            ),
            "the_width_of_queries_may_be_any": lambda *given: _cross(*given, width=4),
            "one_row_weighs_exactly_one": lambda *given: _cross(*given, softmax=_padded_sum),
            "rows_may_be_far_apart": lambda *given: _cross(*given, softmax=_under_one_maximum),
            "what_comes_in_is_left_as_it_is": _in_place,
        },
    ),
    Exercise(
        (
            a_square_is_a_triangle,
            the_last_query_sees_every_key,
            who_stands_before_all_keys_sees_none,
            true_and_false,
        ),
        {
            "a_square_is_a_triangle": lambda rows, keys: np.tri(rows, keys, keys - rows - 1, dtype=bool),
            "the_last_query_sees_every_key": lambda rows, keys: np.tri(rows, keys, dtype=bool),
            "who_stands_before_all_keys_sees_none": lambda rows, keys: np.tri(
                rows, keys, max(keys - rows, 0), dtype=bool
            ),
            "true_and_false": lambda rows, keys: np.tri(rows, keys, keys - rows),
        },
    ),
    PADDED,
)
