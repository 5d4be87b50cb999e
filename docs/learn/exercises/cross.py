"""Exercises of the chapter on two sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law

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


# ---- padded sources ----


def _batch() -> tuple[Any, ...]:
    return draw(3, 2, 3, 4, seed=1), draw(3, 2, 5, 4, seed=2), draw(3, 2, 5, 6, seed=3)


@law
def a_full_source_is_plain_attention(padded: Any) -> str:
    """Without padding it is attention as it was."""
    q, k, v = _batch()
    plain = _softmax(q @ k.swapaxes(-1, -2) / 2) @ v
    return apart(padded(q, k, v, np.array([5, 5, 5])), plain, "with lengths of 5, 5 and 5")


@law
def padding_has_no_weight(padded: Any) -> str:
    """An item with 3 real keys gives what these 3 give alone."""
    q, k, v = _batch()
    found = np.asarray(padded(q, k, v, np.array([5, 3, 1])))
    for item, n in enumerate((5, 3, 1)):
        alone = _softmax(q[item] @ k[item, :, :n].swapaxes(-1, -2) / 2) @ v[item, :, :n]
        if said := apart(found[item], alone, f"item {item}, whose first {n} keys are real"):
            return said
    return ""


@law
def what_stands_in_the_padding_is_nothing(padded: Any) -> str:
    """NaN in the padding changes nothing."""
    q, k, v = _batch()
    lengths = np.array([5, 3, 1])
    beyond = (np.arange(5) >= lengths[:, None])[:, None, :, None]
    dirty = padded(q, np.where(beyond, np.nan, k), np.where(beyond, np.nan, v), lengths)
    return apart(dirty, padded(q, k, v, lengths), "with NaN in the padding")


@law
def no_key_gives_zero(padded: Any) -> str:
    """An item of length 0 gives 0, and no NaN."""
    q, k, v = _batch()
    found = np.asarray(padded(q, k, v, np.array([5, 0, 1])))[1]
    return apart(found, np.zeros_like(found), "in an item of length 0")


def _masked(q: Any, k: Any, v: Any, lengths: Any, *, clean: bool, filler: float) -> Any:
    real = np.arange(k.shape[-2]) < lengths[:, None]
    if clean:
        k, v = (np.where(real[:, None, :, None], x, 0.0) for x in (k, v))
    s = np.where(real[:, None, None, :], q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, filler)
    return _softmax(s) @ v


EXERCISES = (
    Exercise(
        (
            a_row_for_each_query,
            values_are_of_the_context,
            weights_are_powers_of_two,
            the_scale_is_of_the_queries,
        ),
        {
            "a_row_for_each_query": lambda x, c, w_q, w_k, w_v: _softmax((c @ w_k) @ (x @ w_q).T) @ (x @ w_q),
            "values_are_of_the_context": lambda x, c, w_q, w_k, w_v: (
                _softmax(x @ w_q @ (c @ w_k).T) @ c[:, : w_v.shape[1]]
            ),
            "weights_are_powers_of_two": lambda x, c, w_q, w_k, w_v: (
                _softmax(x @ w_q @ (c @ w_k).T) @ (c @ w_v)
            ),
            "the_scale_is_of_the_queries": lambda x, c, w_q, w_k, w_v: (
                _softmax(x @ w_q @ (c @ w_k).T / x.shape[-1] ** 0.5) @ (c @ w_v)
            ),
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
    Exercise(
        (
            a_full_source_is_plain_attention,
            padding_has_no_weight,
            what_stands_in_the_padding_is_nothing,
            no_key_gives_zero,
        ),
        {
            "a_full_source_is_plain_attention": lambda q, k, v, n: _masked(
                q, k, v, n - 1, clean=True, filler=-np.inf
            ),
            "padding_has_no_weight": lambda q, k, v, n: _masked(q, k, v, n, clean=True, filler=0.0),
            "what_stands_in_the_padding_is_nothing": lambda q, k, v, n: _masked(
                q, k, v, n, clean=False, filler=-np.inf
            ),
            "no_key_gives_zero": lambda q, k, v, n: _masked(q, k, v, n, clean=True, filler=-np.inf),
        },
    ),
)
