"""Exercises of the chapter on masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law, laws
from exercises.given import of_arrays

SHAPE = (2, 4, 6, 8)  # items, heads, tokens, width
VALUES = np.array([[8.0], [4.0], [0.0]])


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
    return _sees(sliding, 4, 2)


@law
def a_window_may_have_any_size(sliding: Any) -> str:
    """In a window of 3 the last of four tokens sees 1, 2 and 3, in one of 1 itself."""
    return _sees(sliding, 4, 3) or _sees(sliding, 4, 1)


@law
def a_text_may_have_any_length(sliding: Any) -> str:
    """The last of six tokens sees 4 and 5 in a window of 2."""
    return _sees(sliding, 6, 2)


def _sees(sliding: Any, length: int, size: int) -> str:
    found, what = np.asarray(sliding(length, size)), f"of {length} tokens with a window of {size}"
    if found.shape != (length, length):
        return f"{what}: a mask of shape {(length, length)} was expected, {found.shape} came"
    for i, row in enumerate(found):
        keys, meant = np.nonzero(row)[0].tolist(), list(range(max(0, i - size + 1), i + 1))
        if keys != meant:
            return f"{what} number {i} sees {keys}, not {meant}"
    return ""


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
    out = attend(q, k, VALUES.copy(), np.array([[True, False, True]]))
    return apart(out, [[16 / 3]], "of powers 8, 4, 4 and values 8, 4, 0 with the middle hidden")


@law
def scores_are_divided(attend: Any) -> str:
    """Of width 4, q = 1 and k = log(2) / 2 * 3, 2, 2 have scores log(2) * 3, 2, 2: 8/2 + 4/4 + 0/4 = 5."""
    k = np.log(2) / 2 * np.array([[3.0], [2.0], [2.0]])
    out = np.asarray(
        attend(np.ones((1, 4)), np.repeat(k, 4, 1), np.repeat(VALUES, 4, 1), np.ones((1, 3), bool))
    )
    return apart(out[..., :1], [[5.0]], "of width 4, q = 1, k = log(2) / 2 * 3, 2, 2 and values 8, 4, 0")


@law
def every_row_has_its_own_keys(attend: Any) -> str:
    """Causal, with scores of 0: 8, then (8 + 4) / 2 = 6, then (8 + 4 + 0) / 3 = 4."""
    zeros = np.zeros((3, 1))
    out = attend(zeros, zeros, VALUES.copy(), np.tri(3, dtype=bool))
    return apart(out, [[8.0], [6.0], [4.0]], "causal, with scores of 0 and values 8, 4, 0")


@law
def every_row_has_its_own_query(attend: Any) -> str:
    """Of k = log(2) * 3, 2, 2 the query 1 reads 8/2 + 4/4 = 5, the query 0 reads (8 + 4 + 0) / 3 = 4."""
    k = np.log(2) * np.array([[3.0], [2.0], [2.0]])
    out = attend(np.array([[1.0], [0.0]]), k, VALUES.copy(), np.ones((2, 3), bool))
    return apart(out, [[5.0], [4.0]], "of queries 1 and 0, k = log(2) * 3, 2, 2 and values 8, 4, 0")


@law
def scores_may_be_large(attend: Any) -> str:
    """A score of 2000 beside two of 0 takes all: 8."""
    out = attend(np.ones((1, 1)), np.array([[2000.0], [0.0], [0.0]]), VALUES.copy(), np.ones((1, 3), bool))
    return apart(out, [[8.0]], "of scores 2000, 0, 0 and values 8, 4, 0")


@law
def what_is_hidden_is_below_all_scores(attend: Any) -> str:
    """Scores of -2000 and -2000 are halves, whatever is hidden behind them: (8 + 4) / 2 = 6."""
    k = np.array([[-2000.0], [-2000.0], [0.0]])
    out = attend(np.ones((1, 1)), k, VALUES.copy(), np.array([[True, True, False]]))
    return apart(out, [[6.0]], "of scores -2000, -2000, 0 and values 8, 4, 0 with the last hidden")


@law
def what_nobody_sees_may_be_anything(attend: Any, shape: tuple[int, ...] = SHAPE) -> str:
    """NaN in a key and value that nobody sees changes nothing."""
    q, k, v = (draw(*shape, seed=seed) for seed in (1, 2, 3))
    there = np.arange(shape[-2]) < shape[-2] - 2
    seen = np.tile(there, (shape[-2], 1))
    holes = (np.where(there[:, None], x, np.nan) for x in (k, v))
    return apart(attend(q, *holes, seen), attend(q, k, v, seen), "with NaN in the hidden keys and values")


@law
def what_nobody_sees_may_be_infinite(attend: Any) -> str:
    """Infinity in a key and value that nobody sees changes nothing: (8 + 4) / 2 = 6."""
    k, v = np.array([[0.0], [0.0], [np.inf]]), np.array([[8.0], [4.0], [np.inf]])
    out = attend(np.ones((1, 1)), k, v, np.array([[True, True, False]]))
    return apart(out, [[6.0]], "of scores 0, 0 and values 8, 4, with infinity in the hidden key and value")


@law
def what_is_seen_comes_through(attend: Any) -> str:
    """NaN in a value that a row sees is NaN in its result, so that a mistake before it is found."""
    out = np.asarray(
        attend(np.ones((1, 1)), np.zeros((2, 1)), np.array([[8.0], [np.nan]]), np.ones((1, 2), bool))
    )
    return (
        ""
        if np.isnan(out).all()
        else f"of values 8 and NaN, both seen, the result is {out.item():.3g}, not NaN"
    )


@law
def every_item_and_head_is_computed_alone(attend: Any) -> str:
    """Row by row, over the keys that it sees: as a loop over items, heads and queries."""
    q, k, v = 30 * draw(2, 3, 5, 8, seed=1), draw(2, 3, 7, 8, seed=2), draw(2, 3, 7, 8, seed=3)
    seen = draw(5, 7, seed=4) > 0
    seen[3], seen[:, 5:] = False, False
    expected = np.zeros(q.shape)
    for at in np.ndindex(2, 3, 5):
        keys = seen[at[2]]
        if keys.any():
            s = k[at[:2]][keys] @ q[at] / np.sqrt(8)
            powers = np.exp(s - s.max())
            expected[at] = powers @ v[at[:2]][keys] / powers.sum()
    for x in (k, v):
        x[..., 5, :], x[..., 6, :] = np.nan, np.inf
    return apart(attend(q, k, v, seen), expected, "of 2 items with 3 heads, beside a loop")


def _weighed(powers: Any, v: Any) -> Any:
    total = powers.sum(-1, keepdims=True)
    return powers / np.where(total == 0, 1, total) @ v


def _scores(q: Any, k: Any) -> Any:
    return q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])


def _unseen_is_0(k: Any, v: Any, seen: Any) -> Any:
    return (np.where(seen.any(0)[:, None], x, 0) for x in (k, v))


def _attend(q: Any, k: Any, v: Any, seen: Any, *, hidden: float = -np.inf, clean: Any = _unseen_is_0) -> Any:
    """Right, unless it is given what is wrong."""
    k, v = clean(k, v, seen)
    s = np.where(seen, _scores(q, k), hidden)
    top = s.max(-1, keepdims=True)
    return _weighed(np.exp(s - np.where(top == -np.inf, 0, top)), v)


def _behind(length: int) -> Any:
    return np.arange(length)[:, None] - np.arange(length)


EXERCISES = (
    Exercise(
        (
            a_mask_is_true_or_false,
            nobody_sees_what_comes_later,
            the_token_itself_counts,
            a_window_may_have_any_size,
            a_text_may_have_any_length,
        ),
        {
            "a_mask_is_true_or_false": lambda n, size: np.tri(n) - np.tri(n, k=-size),
            "nobody_sees_what_comes_later": lambda n, size: np.abs(_behind(n)) < size,
            "the_token_itself_counts": lambda n, size: (_behind(n) >= 0) & (_behind(n) <= size),
            "a_window_may_have_any_size": lambda n, size: (_behind(n) >= 0) & (_behind(n) < 2),
            "a_text_may_have_any_length": lambda n, size: (_behind(4) >= 0) & (_behind(4) < size),
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
        (
            hidden_keys_take_no_share,
            scores_are_divided,
            every_row_has_its_own_keys,
            every_row_has_its_own_query,
            scores_may_be_large,
            what_is_hidden_is_below_all_scores,
            of_arrays(laws.nothing_seen_gives_zero),
            what_nobody_sees_may_be_anything,
            what_nobody_sees_may_be_infinite,
            what_is_seen_comes_through,
            every_item_and_head_is_computed_alone,
        ),
        {
            "hidden_keys_take_no_share": lambda q, k, v, seen: _weighed(np.exp(_scores(q, k)), v),
            "scores_are_divided": lambda q, k, v, seen: _attend(q * q.shape[-1] ** 0.5, k, v, seen),
            "every_row_has_its_own_keys": lambda q, k, v, seen: _attend(
                q, k, np.where(seen.all(0)[:, None], v, 0), seen
            ),
            "every_row_has_its_own_query": lambda q, k, v, seen: _attend(
                np.broadcast_to(q[..., :1, :], q.shape), k, v, seen
            ),
            "scores_may_be_large": lambda q, k, v, seen: _weighed(np.exp(_scores(q, k)) * seen, v),
            "what_is_hidden_is_below_all_scores": lambda q, k, v, seen: _attend(q, k, v, seen, hidden=-100.0),
            "nothing_seen_gives_zero": lambda q, k, v, seen: _attend(q, k, v, seen, hidden=-1e9),
            "what_nobody_sees_may_be_anything": lambda q, k, v, seen: _attend(
                q, k, v, seen, clean=lambda k, v, seen: (k, v)
            ),
            "what_nobody_sees_may_be_infinite": lambda q, k, v, seen: _attend(
                q, k, v, seen, clean=lambda k, v, seen: (np.where(np.isnan(x), 0, x) for x in (k, v))
            ),
            "what_is_seen_comes_through": lambda q, k, v, seen: _attend(
                q, k, v, seen, clean=lambda k, v, seen: (np.nan_to_num(x) for x in (k, v))
            ),
            "every_item_and_head_is_computed_alone": lambda q, k, v, seen: _attend(
                q, *(np.broadcast_to(x.reshape(-1, *x.shape[-2:])[0], x.shape) for x in (k, v)), seen
            ),
        },
    ),
)
