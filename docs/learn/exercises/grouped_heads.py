"""Exercises of the chapter on grouped heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law, laws
from exercises.given import of_arrays


@law
def a_token_has_a_key_and_a_value(tokens_that_fit: Any) -> str:
    """1024 bytes, one layer, one kv head of width 128, two bytes a number: 2 tokens of 512 bytes."""
    return _fit(tokens_that_fit, (1024, 1, 1, 128, 2), 2)


@law
def every_layer_keeps_its_own(tokens_that_fit: Any) -> str:
    """Llama 2 70B: 327680 bytes a token, so that 262144 tokens fill 80 GiB."""
    return _fit(tokens_that_fit, (80 * 2**30, 80, 8, 128, 2), 2**18)


@law
def a_part_of_a_token_is_none(tokens_that_fit: Any) -> str:
    """1000 bytes are one token of 512 bytes, and a rest."""
    return _fit(tokens_that_fit, (1000, 1, 1, 128, 2), 1)


@law
def a_number_may_have_four_bytes(tokens_that_fit: Any) -> str:
    """1024 bytes at four bytes a number: one token of 2 * 128 * 4 bytes."""
    return _fit(tokens_that_fit, (1024, 1, 1, 128, 4), 1)


@law
def a_head_may_be_narrower(tokens_that_fit: Any) -> str:
    """1024 bytes at width 64: 4 tokens of 2 * 64 * 2 bytes."""
    return _fit(tokens_that_fit, (1024, 1, 1, 64, 2), 4)


@law
def there_may_be_no_room_at_all(tokens_that_fit: Any) -> str:
    """500 bytes have no room for a token of 512 bytes."""
    return _fit(tokens_that_fit, (500, 1, 1, 128, 2), 0)


def _fit(tokens_that_fit: Any, given: tuple[int, ...], expected: int) -> str:
    found, (memory, layers, kv_heads, width, number) = tokens_that_fit(*given), given
    at = f"{layers} layer(s), {kv_heads} kv head(s), width {width}, {number} bytes a number"
    return "" if found == expected else f"{found:g} tokens in {memory} bytes at {at}; not {expected}"


@law
def it_is_attention_with_repeated_heads(grouped: Any) -> str:
    """Scores log(2) * 3, 2, 2 in kv head 0 and log(2) * 2, 2, 3 in kv head 1, values 8, 4, 0: 5 and 3; a query of 0 reads 4."""
    half = np.log(2) / 2  # q . k / sqrt(4) is 4 * half / 2 times a number
    q, k = np.array([[1.0], [0.0]]), half * np.array([[[3.0], [2.0], [2.0]], [[2.0], [2.0], [3.0]]])
    v, width = np.array([[8.0], [4.0], [0.0]]), 4
    items = [np.tile(x, (1, heads, 1, width)) for x, heads in ((q, 6), (k, 1), (v, 2))]
    expected = np.repeat([[[5.0], [4.0]], [[3.0], [4.0]]], 3, 0)[None] * np.ones(width)
    what = (
        "of 6 heads of queries 1 and 0, and 2 kv heads of scores log(2) * 3, 2, 2 and 2, 2, 3, values 8, 4, 0"
    )
    if found := apart(grouped(*items), expected, what):
        return found
    twice = [np.concatenate((x, y)) for x, y in zip(items, (*items[:2], 10 * items[2]), strict=True)]
    return apart(grouped(*twice), np.concatenate((expected, 10 * expected)), f"{what}, times 10 in item 1")


@law
def scores_may_be_large(grouped: Any) -> str:
    """A score of 2000 beside one of 0 takes all: 8."""
    q, k, v = np.ones((1, 2, 1, 1)), np.array([[[[2000.0], [0.0]]]]), np.array([[[[8.0], [4.0]]]])
    return apart(grouped(q, k, v), np.full((1, 2, 1, 1), 8.0), "of scores 2000, 0 and values 8, 4")


@law
def equal_heads_stay_as_they_are(pooled: Any) -> str:
    """The mean of equal matrices is that matrix."""
    one = draw(3, 1, 2)
    return apart(pooled(np.repeat(one, 4, 1), 2), np.repeat(one, 2, 1), "of four equal heads in 2")


@law
def neighbours_are_pooled(pooled: Any) -> str:
    """Heads full of 0, 1, 2 and 3 become heads full of 1/2 and 5/2."""
    w = np.zeros((3, 4, 2)) + np.arange(4.0)[:, None]
    return apart(pooled(w, 2), np.zeros((3, 2, 2)) + np.array([[0.5], [2.5]]), "of heads of 0, 1, 2, 3 in 2")


@law
def three_heads_may_share(pooled: Any) -> str:
    """Heads full of 0, 1, 2 and of 3, 4, 5 become heads full of 1 and 4."""
    w = np.zeros((3, 6, 2)) + np.arange(6.0)[:, None]
    return apart(pooled(w, 2), np.zeros((3, 2, 2)) + np.array([[1.0], [4.0]]), "of heads of 0 to 5 in 2")


@law
def it_is_the_mean(pooled: Any) -> str:
    """Heads full of 0, 1, 5 and of 6, 7, 11 become heads full of 2 and 8."""
    w = np.zeros((3, 6, 2)) + np.array([0.0, 1.0, 5.0, 6.0, 7.0, 11.0])[:, None]
    expected = np.zeros((3, 2, 2)) + np.array([[2.0], [8.0]])
    return apart(pooled(w, 2), expected, "of heads of 0, 1, 5, 6, 7, 11 in 2")


def _attend(q: Any, k: Any, v: Any, scale: float | None = None) -> Any:
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True) @ v


def _tiled(q: Any, k: Any, v: Any) -> Any:
    group = q.shape[1] // k.shape[1]
    return _attend(q, np.tile(k, (1, group, 1, 1)), np.tile(v, (1, group, 1, 1)))


def _added(q: Any, k: Any, v: Any) -> Any:
    """One query of all that share: the heads of a group are gone."""
    group = q.shape[1] // k.shape[1]
    together = q.reshape(q.shape[0], k.shape[1], group, *q.shape[2:]).mean(2)
    return np.repeat(_attend(together, k, v), group, 1)


def _unscaled(q: Any, k: Any, v: Any) -> Any:
    group = q.shape[1] // k.shape[1]
    return _attend(q, np.repeat(k, group, 1), np.repeat(v, group, 1), 1.0)


def _overflowing(q: Any, k: Any, v: Any) -> Any:
    group = q.shape[1] // k.shape[1]
    powers = np.exp(q @ np.repeat(k, group, 1).swapaxes(-1, -2) / q.shape[-1] ** 0.5)
    return powers / powers.sum(-1, keepdims=True) @ np.repeat(v, group, 1)


EXERCISES = (
    Exercise(
        (
            a_token_has_a_key_and_a_value,
            every_layer_keeps_its_own,
            a_part_of_a_token_is_none,
            a_number_may_have_four_bytes,
            a_head_may_be_narrower,
            there_may_be_no_room_at_all,
        ),
        {
            "a_token_has_a_key_and_a_value": lambda memory, layers, kv_heads, width, number: (
                memory // (layers * kv_heads * width * number)
            ),
            "every_layer_keeps_its_own": lambda memory, layers, kv_heads, width, number: (
                memory // (2 * kv_heads * width * number)
            ),
            "a_part_of_a_token_is_none": lambda memory, layers, kv_heads, width, number: (
                memory / (2 * layers * kv_heads * width * number)
            ),
            "a_number_may_have_four_bytes": lambda memory, layers, kv_heads, width, number: (
                memory // (2 * layers * kv_heads * width * 2)
            ),
            "a_head_may_be_narrower": lambda memory, layers, kv_heads, width, number: (
                memory // (2 * layers * kv_heads * 128 * number)
            ),
            "there_may_be_no_room_at_all": lambda memory, layers, kv_heads, width, number: max(
                1, memory // (2 * layers * kv_heads * width * number)
            ),
        },
    ),
    Exercise(
        (
            of_arrays(laws.heads_are_apart),
            of_arrays(laws.heads_read_their_group),
            it_is_attention_with_repeated_heads,
            scores_may_be_large,
        ),
        {
            "heads_are_apart": _added,
            "heads_read_their_group": _tiled,
            "it_is_attention_with_repeated_heads": _unscaled,
            "scores_may_be_large": _overflowing,
        },
    ),
    Exercise(
        (equal_heads_stay_as_they_are, neighbours_are_pooled, three_heads_may_share, it_is_the_mean),
        {
            "equal_heads_stay_as_they_are": lambda w, kv_heads: w.reshape(
                len(w), kv_heads, -1, w.shape[-1]
            ).sum(2),
            "neighbours_are_pooled": lambda w, kv_heads: w.reshape(len(w), -1, kv_heads, w.shape[-1]).mean(1),
            "three_heads_may_share": lambda w, kv_heads: (
                w.reshape(len(w), kv_heads, -1, w.shape[-1]).sum(2) / kv_heads
            ),
            "it_is_the_mean": lambda w, kv_heads: np.median(
                w.reshape(len(w), kv_heads, -1, w.shape[-1]), axis=2
            ),
        },
    ),
)
