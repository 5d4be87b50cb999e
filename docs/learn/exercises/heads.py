"""Exercises of the chapter on heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law

WORDS = 10.0 * np.arange(3)[:, None] + np.arange(4)  # 12 is number 2 of word 1


@law
def a_word_stays_a_row(split: Any) -> str:
    """Row i of every head is of word i: of three words of four numbers, 12 (number 2 of word 1) is in row 1."""
    found = np.asarray(split(WORDS[None], 2))
    if found.shape != (1, 2, 3, 2):
        return f"(1, 3, 4) in 2 heads gives {found.shape}, not (1, 2, 3, 2)"
    return apart(
        found // 10, np.broadcast_to(np.arange(3.0)[:, None], (1, 2, 3, 2)), "the word that a number is of"
    )


@law
def a_head_is_a_piece(split: Any) -> str:
    """Of four numbers head 0 gets 0 and 1, head 1 gets 2 and 3."""
    row = np.asarray(split(WORDS[None], 2))[0, :, 0]
    return apart(row, [[0.0, 1.0], [2.0, 3.0]], "the first word in 2 heads")


@law
def items_stay_apart(split: Any) -> str:
    """Item 1 of the result is of item 1."""
    x = np.stack([WORDS, WORDS + 100])
    return apart(split(x, 2)[1], np.asarray(split(x[1:], 2))[0], "in the second of two items")


@law
def a_word_gets_what_its_heads_read(joined: Any) -> str:
    """Through a matrix that changes nothing, word i gets row i of every head."""
    heads = draw(2, 2, 3, 4)
    return apart(
        np.sort(joined(heads, np.eye(8)), -1),
        np.sort(np.concatenate((heads[:, 0], heads[:, 1]), -1), -1),
        "with w_o = eye(8)",
    )


@law
def a_head_meets_its_rows(joined: Any) -> str:
    """The result is heads[:, 0] @ w_o[:D] + heads[:, 1] @ w_o[D:]."""
    heads, w_o = draw(2, 2, 3, 4), draw(8, 5)
    return apart(joined(heads, w_o), heads[:, 0] @ w_o[:4] + heads[:, 1] @ w_o[4:], "of two heads of width 4")


def _attend(q: Any, k: Any, v: Any, width: int | None = None) -> Any:
    powers = np.exp(q @ k.swapaxes(-1, -2) / (width or q.shape[-1]) ** 0.5)
    return powers / powers.sum(-1, keepdims=True) @ v


def _split(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _side_by_side(heads: Any) -> Any:
    return heads.swapaxes(1, 2).reshape(heads.shape[0], heads.shape[2], -1)


def _given(width: int = 8) -> tuple[Any, ...]:
    return (draw(2, 3, width), *(draw(width, width, seed=seed) / width**0.5 for seed in (1, 2, 3, 4)))


@law
def one_head_is_attention_between_two_products(multi_head: Any) -> str:
    """With one head: softmax(x w_q (x w_k)^T / sqrt(E)) x w_v, times w_o."""
    x, w_q, w_k, w_v, w_o = _given()
    return apart(
        multi_head(x, w_q, w_k, w_v, w_o, 1), _attend(x @ w_q, x @ w_k, x @ w_v) @ w_o, "with one head"
    )


@law
def words_in_another_order_give_the_same_in_that_order(multi_head: Any) -> str:
    """Nothing asks where a word stands: words in reverse give the results in reverse."""
    x, *matrices = _given()
    return apart(
        multi_head(x[:, ::-1], *matrices, 4)[:, ::-1],
        multi_head(x, *matrices, 4),
        "with the words in reverse",
    )


@law
def heads_are_added(multi_head: Any) -> str:
    """Head h with its columns of w_q, w_k, w_v and its rows of w_o, as a layer of one head; the results are added."""
    x, w_q, w_k, w_v, w_o = _given()
    expected = sum(
        _attend(*(x @ w[:, piece] for w in (w_q, w_k, w_v))) @ w_o[piece]
        for piece in (slice(0, 4), slice(4, 8))
    )
    return apart(multi_head(x, w_q, w_k, w_v, w_o, 2), expected, "with two heads")


def _cut_by_memory(x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, heads: int) -> Any:
    shape = (len(x), heads, x.shape[1], -1)
    return _attend(*((x @ w).reshape(shape) for w in (w_q, w_k, w_v))).reshape(x.shape) @ w_o


EXERCISES = (
    Exercise(
        (a_word_stays_a_row, a_head_is_a_piece, items_stay_apart),
        {
            "a_word_stays_a_row": lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1),
            "a_head_is_a_piece": lambda x, heads: x.reshape(*x.shape[:2], -1, heads).transpose(0, 3, 1, 2),
            "items_stay_apart": lambda x, heads: _split(x.swapaxes(0, 1).reshape(x.shape), heads),
        },
    ),
    Exercise(
        (a_word_gets_what_its_heads_read, a_head_meets_its_rows),
        {
            "a_word_gets_what_its_heads_read": lambda heads, w_o: (
                heads.reshape(len(heads), heads.shape[2], -1) @ w_o
            ),
            "a_head_meets_its_rows": lambda heads, w_o: (
                heads.transpose(0, 2, 3, 1).reshape(len(heads), heads.shape[2], -1) @ w_o
            ),
        },
    ),
    Exercise(
        (
            one_head_is_attention_between_two_products,
            words_in_another_order_give_the_same_in_that_order,
            heads_are_added,
        ),
        {
            "one_head_is_attention_between_two_products": lambda x, w_q, w_k, w_v, w_o, heads: _side_by_side(
                _attend(*(_split(x @ w, heads) for w in (w_q, w_k, w_v)))
            ),
            "words_in_another_order_give_the_same_in_that_order": _cut_by_memory,
            "heads_are_added": lambda x, w_q, w_k, w_v, w_o, heads: (
                _side_by_side(_attend(*(_split(x @ w, heads) for w in (w_q, w_k, w_v)), x.shape[-1])) @ w_o
            ),
        },
    ),
)
