"""Exercises of the chapter on the mechanisms of today."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law


def _attention(q: Any, k: Any, v: Any, width: int) -> Any:
    scores = q @ k.T / width**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


# ---- absorbed ----


def _latents() -> tuple[Any, Any, Any, Any]:
    return draw(3, 4, seed=1), draw(5, 2, seed=2), draw(2, 4, seed=3), draw(2, 3, seed=4)


@law
def absorbed_is_expanded(absorbed: Any) -> str:
    """Queries that go back through the map give what keys and values made of the latents give."""
    q, c, w_uk, w_uv = _latents()
    expected = _attention(q, c @ w_uk, c @ w_uv, 4)
    return apart(absorbed(q, c, w_uk, w_uv), expected, "beside heads of width 4 made of latents of width 2")


@law
def a_latent_is_no_value_yet(absorbed: Any) -> str:
    """One token gives its latent times w_uv, whatever the score."""
    q, c, w_uk, w_uv = _latents()
    return apart(absorbed(q, c[:1], w_uk, w_uv), np.repeat(c[:1] @ w_uv, 3, 0), "of one token")


@law
def maps_of_the_identity_are_plain_attention(absorbed: Any) -> str:
    """If both maps are the identity, it is attention to the latents."""
    q, c = draw(3, 4, seed=1), draw(5, 4, seed=2)
    return apart(
        absorbed(q, c, np.eye(4), np.eye(4)), _attention(q, c, c, 4), "with the identity for both maps"
    )


# ---- differential ----


def _halves() -> tuple[Any, Any, Any]:
    return draw(3, 8, seed=1), draw(5, 8, seed=2), draw(5, 2, seed=3)


@law
def nothing_taken_out_is_attention(differential: Any) -> str:
    """With lam = 0 it is the attention of the first halves."""
    q, k, v = _halves()
    return apart(differential(q, k, v, 0.0), _attention(q[:, :4], k[:, :4], v, 4), "with lam = 0")


@law
def weights_sum_to_what_is_left(differential: Any) -> str:
    """Two rows that each sum to 1, with lam = 1/4: values of one give 3/4."""
    q, k, _ = _halves()
    return apart(
        differential(q, k, np.ones((5, 2)), 0.25), np.full((3, 2), 0.75), "with lam = 1/4 and values of one"
    )


@law
def the_second_half_is_taken_from_the_first(differential: Any) -> str:
    """It is the first attention less lam times the second."""
    q, k, v = _halves()
    first, second = (_attention(q[:, half], k[:, half], v, 4) for half in (slice(4), slice(4, 8)))
    return apart(differential(q, k, v, 0.25), first - 0.25 * second, "with lam = 1/4")


def _inside(q: Any, k: Any, v: Any, lam: float) -> Any:
    first, second = (q[:, half] @ k[:, half].T / 2 for half in (slice(4), slice(4, 8)))
    weights = np.exp(first - lam * second)
    return weights / weights.sum(-1, keepdims=True) @ v


def _never_two(q: Any, k: Any, v: Any, lam: float) -> Any:
    return (1 - lam) * _attention(q[:, :4], k[:, :4], v, 4)


# ---- blocks ----


def _eight() -> tuple[Any, Any]:
    return draw(8, 3, seed=1), draw(8, 3, seed=2)


@law
def the_future_is_hidden(blocks: Any) -> str:
    """No row reads a key after it, its own block's neither."""
    q, k = _eight()
    later = np.argwhere(np.triu(np.asarray(blocks(q, k, 2, 3)), 1))
    return f"row {later[0][0]} reads key {later[0][1]}, which comes after it" if len(later) else ""


@law
def the_own_block_is_read(blocks: Any) -> str:
    """Every row reads the keys of its own block up to itself, whatever the scores."""
    q, k = _eight()
    found = np.asarray(blocks(q, -100 * q, 2, 2)) & np.asarray(blocks(q, k, 2, 2))
    for i in range(8):
        for j in range(i // 2 * 2, i + 1):
            if not found[i, j]:
                return f"row {i} does not read key {j}, which stands in its own block of 2"
    return ""


@law
def so_many_blocks_are_read(blocks: Any) -> str:
    """The own block and count - 1 others, or as many as there are."""
    q, k = _eight()
    found = np.asarray(blocks(q, k, 2, 3)).reshape(8, 4, 2).any(-1).sum(-1)
    expected = np.minimum(np.arange(8) // 2 + 1, 3)
    return apart(
        found * 1.0, expected, f"of blocks of 2 with count = 3, the rows read {found.tolist()} blocks"
    )


@law
def the_best_mean_is_chosen(blocks: Any) -> str:
    """Of blocks before the row, the one whose mean key has the largest product with its query."""
    q = np.ones((8, 1))
    k = np.array([[3.0], [3.0], [9.0], [-9.0], [1.0], [1.0], [0.0], [0.0]])  # means 3, 0, 1, 0
    row = np.asarray(blocks(q, k, 2, 2))[7]
    expected = np.array([1, 1, 0, 0, 0, 0, 1, 1])
    return apart(row * 1.0, expected, "of blocks with the means 3, 0, 1, row 7 of block 3 reads block 0")


def _choose(scores_of: Any, q: Any, k: Any, size: int, count: int, *, own_first: bool = True) -> Any:
    at = np.arange(len(q))
    own = at // size
    scores = np.array(scores_of(q, k.reshape(-1, size, k.shape[-1])))
    scores = np.where(np.arange(scores.shape[1]) <= own[:, None], scores, -np.inf)
    if own_first:
        scores[at, own] = np.inf
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :count]
    return (order[..., None] == own).any(1) & (at <= at[:, None])


def _means(q: Any, grouped: Any) -> Any:
    return q @ grouped.mean(1).T


def _to_the_end_of_the_block(q: Any, k: Any, size: int, count: int) -> Any:
    found = _choose(_means, q, k, size, count).reshape(len(q), -1, size)
    return np.broadcast_to(found.any(-1, keepdims=True), found.shape).reshape(len(q), len(q))


EXERCISES = (
    Exercise(
        (maps_of_the_identity_are_plain_attention, a_latent_is_no_value_yet, absorbed_is_expanded),
        {
            "maps_of_the_identity_are_plain_attention": lambda q, c, w_uk, w_uv: (
                _attention(q @ w_uk.T, c, c, 1) @ w_uv
            ),
            "a_latent_is_no_value_yet": lambda q, c, w_uk, w_uv: _attention(q @ w_uk.T, c, c, q.shape[1]),
            "absorbed_is_expanded": lambda q, c, w_uk, w_uv: _attention(q @ w_uk.T, c, c, c.shape[1]) @ w_uv,
        },
    ),
    Exercise(
        (
            nothing_taken_out_is_attention,
            weights_sum_to_what_is_left,
            the_second_half_is_taken_from_the_first,
        ),
        {
            "nothing_taken_out_is_attention": lambda q, k, v, lam: (
                _attention(q[:, :4], k[:, :4], v, 8) - lam * _attention(q[:, 4:], k[:, 4:], v, 8)
            ),
            "weights_sum_to_what_is_left": _inside,
            "the_second_half_is_taken_from_the_first": _never_two,
        },
    ),
    Exercise(
        (the_future_is_hidden, the_own_block_is_read, so_many_blocks_are_read, the_best_mean_is_chosen),
        {
            "the_future_is_hidden": _to_the_end_of_the_block,
            "the_own_block_is_read": lambda q, k, size, count: _choose(
                _means, q, k, size, count, own_first=False
            ),
            "so_many_blocks_are_read": lambda q, k, size, count: _choose(_means, q, k, size, count + 1),
            "the_best_mean_is_chosen": lambda q, k, size, count: _choose(
                lambda q, grouped: (q[:, None, None] * grouped).sum(-1).max(-1), q, k, size, count
            ),
        },
    ),
)
