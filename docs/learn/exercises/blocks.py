"""The exercise of the chapter on mechanisms about blocks of keys that are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed

#: Blocks of two with the means 0, 3, 1, -5 and 0.
KEYS = np.array([9.0, -9, 1, 5, -4, 6, -5, -5, 0, 0])[:, None]


def _read(found: Any) -> Any:
    return np.asarray(found).astype(bool)


def _eight() -> tuple[Any, Any]:
    return draw(8, 3, seed=1), draw(8, 3, seed=2)


@law
def the_future_is_hidden(blocks: Any) -> str:
    """No row reads a key after it, its own block's neither."""
    q, k = _eight()
    later = np.argwhere(np.triu(_read(blocks(q, k, 2, 3)), 1))
    return f"row {later[0][0]} reads key {later[0][1]}, which comes after it" if len(later) else ""


@law
def the_own_block_is_read(blocks: Any) -> str:
    """Every row reads the keys of its own block up to itself, whatever the scores."""
    q, k = _eight()
    found = _read(blocks(q, -100 * q, 2, 2)) & _read(blocks(q, k, 2, 2))
    for i in range(8):
        for j in range(i // 2 * 2, i + 1):
            if not found[i, j]:
                return f"row {i} does not read key {j}, which stands in its own block of 2"
    return ""


@law
def so_many_blocks_are_read(blocks: Any) -> str:
    """The own block and count - 1 others, or as many as there are."""
    q, k = _eight()
    found = _read(blocks(q, k, 2, 3)).reshape(8, 4, 2).any(-1).sum(-1)
    expected = np.minimum(np.arange(8) // 2 + 1, 3)
    return apart(
        found * 1.0, expected, f"of blocks of 2 with count = 3, the rows read {found.tolist()} blocks"
    )


@law
def the_best_mean_is_chosen(blocks: Any) -> str:
    """Of blocks before the row, the one whose mean key has the largest product with its query."""
    row = _read(blocks(np.ones((10, 1)), KEYS.copy(), 2, 2))[9]
    what = "of keys (9, -9), (1, 5), (-4, 6), (-5, -5), means 0, 3, 1, -5, the query 1 of row 9 reads its own block and block 1"
    return apart(row * 1.0, [0, 0, 1, 1, 0, 0, 0, 0, 1, 1], what)


@law
def every_query_chooses(blocks: Any) -> str:
    """Of means 0, 3, 1, -5 the query -1 of row 8 chooses -5, the query 1 of row 9 chooses 3."""
    q = np.ones((10, 1))
    q[8] = -1
    row = _read(blocks(q, KEYS.copy(), 2, 2))[8]
    what = "of keys (9, -9), (1, 5), (-4, 6), (-5, -5), means 0, 3, 1, -5, the query -1 of row 8 reads block 3 and itself"
    return apart(row * 1.0, [0, 0, 0, 0, 0, 0, 1, 1, 1, 0], what)


@law
def texts_and_blocks_may_have_any_size(blocks: Any) -> str:
    """12 tokens of width 4 in blocks of 3, of which 1, 2, 3 or 9 are read, and in blocks of 4 and 12, row by row."""
    q, k = draw(12, 4, seed=1), 1000 * draw(12, 4, seed=2)
    for size, count in ((3, 1), (3, 2), (3, 3), (3, 9), (4, 2), (12, 2)):
        found = _read(blocks(q.copy(), k.copy(), size, count))
        what = f"12 tokens in blocks of {size} with count = {count}"
        if found.shape != (12, 12):
            return f"{what}: True or False of shape (12, 12) was expected, {found.shape} came"
        for i, row in enumerate(found):
            means = [k[j : j + size].mean(0) @ q[i] for j in range(0, i // size * size, size)]
            chosen = [*np.argsort(means)[::-1][: count - 1], i // size]
            keys = [j for j in range(i + 1) if j // size in chosen]
            if keys != np.nonzero(row)[0].tolist():
                return f"{what}: row {i} reads {np.nonzero(row)[0].tolist()}, not {keys}"
    return ""


@law
def keys_stay(blocks: Any) -> str:
    """What comes in is left as it was."""
    q, k = _eight()
    return changed(lambda q, k: blocks(q, k, 2, 2), q=q, k=k)


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


def _of_means_instead(q: Any, k: Any, size: int, count: int) -> Any:
    k[:] = np.repeat(k.reshape(-1, size, k.shape[1]).mean(1), size, 0)
    return _choose(_means, q, k, size, count)


BLOCKS = Exercise(
    (
        the_future_is_hidden,
        the_own_block_is_read,
        so_many_blocks_are_read,
        the_best_mean_is_chosen,
        every_query_chooses,
        texts_and_blocks_may_have_any_size,
        keys_stay,
    ),
    {
        "the_future_is_hidden": _to_the_end_of_the_block,
        "the_own_block_is_read": lambda q, k, size, count: _choose(
            _means, q, k, size, count, own_first=False
        ),
        "so_many_blocks_are_read": lambda q, k, size, count: _choose(_means, q, k, size, count + 1),
        "the_best_mean_is_chosen": lambda q, k, size, count: _choose(
            lambda q, grouped: (q[:, None, None] * grouped).sum(-1).max(-1), q, k, size, count
        ),
        "every_query_chooses": lambda q, k, size, count: _choose(_means, 0 * q + q[-1:], k, size, count),
        "texts_and_blocks_may_have_any_size": lambda q, k, size, count: _choose(_means, q, k, 2, count),
        "keys_stay": _of_means_instead,
    },
)
