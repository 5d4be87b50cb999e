"""Exercises of the chapter on masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law, laws

SHAPE = (2, 4, 6, 8)  # items, heads, tokens, width


@law
def a_mask_is_true_or_false(sliding: Any) -> str:
    """A mask is of type bool."""
    kind = np.asarray(sliding(4, 2)).dtype
    return "" if kind.kind == "b" else f"the mask is of type {kind}, not bool"


@law
def nobody_sees_what_comes_later(sliding: Any) -> str:
    """Above the diagonal all is False."""
    later = np.triu(np.asarray(sliding(4, 2)), 1)
    return f"token {later.any(1).argmax()} sees a later one" if later.any() else ""


@law
def the_token_itself_counts(sliding: Any) -> str:
    """With a window of 2 the first of four tokens sees 1, the others 2."""
    found = np.asarray(sliding(4, 2)).sum(1).tolist()
    return "" if found == [1, 2, 2, 2] else f"with a window of 2 four tokens see {found}, not [1, 2, 2, 2]"


@law
def the_last_token_sees_what_is_there(visible: Any) -> str:
    """Of items of 3 and 1 tokens, padded to 3, the last row sees 3 and 1 keys, the first ones."""
    last = np.reshape(visible(np.array([3, 1]), 3), (2, 3, 3))[:, -1]
    return apart(
        last.astype(float), [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], "in the last rows of items of 3 and 1 tokens"
    )


@law
def an_item_without_padding_is_causal(visible: Any) -> str:
    """An item of 3 tokens out of 3 sees itself and what came before."""
    found = np.reshape(visible(np.array([3]), 3), (3, 3))
    return apart(found.astype(float), np.tri(3), "in an item of 3 tokens")


@law
def an_item_is_the_first_axis(visible: Any) -> str:
    """Three items of three tokens give (3, 1, 3, 3), so that no axis is taken for another."""
    found = np.shape(visible(np.array([3, 2, 1]), 3))
    return "" if found == (3, 1, 3, 3) else f"three items of 3 tokens give {found}, not (3, 1, 3, 3)"


@law
def hidden_keys_take_no_share(attend: Any) -> str:
    """Of the powers 8, 4 and 4 the middle one is hidden: 8 * 2/3 + 0 * 1/3 = 16/3."""
    q, k = np.ones((1, 1)), np.log(2) * np.array([[3.0], [2.0], [2.0]])
    out = attend(q, k, np.array([[8.0], [4.0], [0.0]]), np.array([[True, False, True]]))
    return apart(out, [[16 / 3]], "of powers 8, 4, 4 and values 8, 4, 0 with the middle hidden")


@law
def what_nobody_sees_may_be_anything(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """NaN in a key and value that nobody sees changes nothing."""
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    there = np.arange(shape[-2]) < shape[-2] - 2
    seen = np.broadcast_to(there, (shape[-2], shape[-2]))
    holes = (np.where(there[:, None], x, np.nan) for x in (k, v))
    return apart(attend(q, *holes, seen), attend(q, k, v, seen), "with NaN in the hidden keys and values")


def _weighed(powers: Any, v: Any) -> Any:
    total = powers.sum(-1, keepdims=True)
    return powers / np.where(total == 0, 1, total) @ v


def _scores(q: Any, k: Any) -> Any:
    return q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])


def _behind(length: int) -> Any:
    return np.arange(length)[:, None] - np.arange(length)


EXERCISES = (
    Exercise(
        (a_mask_is_true_or_false, nobody_sees_what_comes_later, the_token_itself_counts),
        {
            "a_mask_is_true_or_false": lambda n, size: np.tri(n) - np.tri(n, k=-size),
            "nobody_sees_what_comes_later": lambda n, size: np.abs(_behind(n)) < size,
            "the_token_itself_counts": lambda n, size: (_behind(n) >= 0) & (_behind(n) <= size),
        },
    ),
    Exercise(
        (
            the_last_token_sees_what_is_there,
            an_item_without_padding_is_causal,
            an_item_is_the_first_axis,
        ),
        {
            "the_last_token_sees_what_is_there": lambda n, length: (
                (np.arange(length) >= np.reshape(n, (-1, 1, 1, 1))) & np.tri(length, dtype=bool)
            ),
            "an_item_without_padding_is_causal": lambda n, length: np.broadcast_to(
                np.arange(length) < np.reshape(n, (-1, 1, 1, 1)), (len(n), 1, length, length)
            ),
            "an_item_is_the_first_axis": lambda n, length: (
                (np.arange(length) < np.reshape(n, (-1, 1, 1))) & np.tri(length, dtype=bool)
            ),
        },
    ),
    Exercise(
        (hidden_keys_take_no_share, laws.nothing_seen_gives_zero, what_nobody_sees_may_be_anything),
        {
            "hidden_keys_take_no_share": lambda q, k, v, seen: _weighed(np.exp(_scores(q, k)), v),
            "nothing_seen_gives_zero": lambda q, k, v, seen: _weighed(
                np.exp(
                    np.where(seen, _scores(q, k), -1e9)
                    - np.where(seen, _scores(q, k), -1e9).max(-1, keepdims=True)
                ),
                v,
            ),
            "what_nobody_sees_may_be_anything": lambda q, k, v, seen: _weighed(
                np.exp(_scores(q, k)) * seen, v
            ),
        },
    ),
)
