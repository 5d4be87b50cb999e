"""Exercises of the chapter on grouped heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law, laws


@law
def a_token_has_a_key_and_a_value(tokens_that_fit: Any) -> str:
    """1024 bytes, one layer, one kv head of width 128, two bytes a number: 2 tokens of 512 bytes."""
    found = tokens_that_fit(1024, 1, 1, 128, 2)
    return (
        ""
        if found == 2
        else f"{found:g} tokens in 1024 bytes at 1 layer, 1 kv head, width 128, 2 bytes; not 2"
    )


@law
def every_layer_keeps_its_own(tokens_that_fit: Any) -> str:
    """Llama 2 70B: 327680 bytes a token, so that 262144 tokens fill 80 GiB."""
    found = tokens_that_fit(80 * 2**30, 80, 8, 128, 2)
    return (
        ""
        if found == 2**18
        else f"{found:g} tokens in 80 GiB at 80 layers, 8 kv heads, width 128, 2 bytes; not 262144"
    )


@law
def a_part_of_a_token_is_none(tokens_that_fit: Any) -> str:
    """1000 bytes are one token of 512 bytes, and a rest."""
    found = tokens_that_fit(1000, 1, 1, 128, 2)
    return "" if found == 1 else f"{found:g} tokens in 1000 bytes at 512 bytes a token; not 1"


@law
def it_is_attention_with_repeated_heads(grouped: Any) -> str:
    """Softmax of q . k / sqrt(D), with each kv head there once for every query head of its group."""
    q, k, v = draw(2, 6, 3, 4), draw(2, 2, 5, 4, seed=1), draw(2, 2, 5, 3, seed=2)
    return apart(
        grouped(q, k, v),
        _attend(q, np.repeat(k, 3, 1), np.repeat(v, 3, 1)),
        "of 6 query heads and 2 kv heads",
    )


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


def _attend(q: Any, k: Any, v: Any, scale: float | None = None) -> Any:
    powers = np.exp(q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale))
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


EXERCISES = (
    Exercise(
        (a_token_has_a_key_and_a_value, every_layer_keeps_its_own, a_part_of_a_token_is_none),
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
        },
    ),
    Exercise(
        (laws.heads_are_apart, laws.heads_read_their_group, it_is_attention_with_repeated_heads),
        {
            "heads_are_apart": _added,
            "heads_read_their_group": _tiled,
            "it_is_attention_with_repeated_heads": _unscaled,
        },
    ),
    Exercise(
        (equal_heads_stay_as_they_are, neighbours_are_pooled),
        {
            "equal_heads_stay_as_they_are": lambda w, kv_heads: w.reshape(
                len(w), kv_heads, -1, w.shape[-1]
            ).sum(2),
            "neighbours_are_pooled": lambda w, kv_heads: w.reshape(len(w), -1, kv_heads, w.shape[-1]).mean(1),
        },
    ),
)
