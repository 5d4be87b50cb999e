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
    first, second = np.asarray(split(x, 2))
    return apart(second, first + 100, "in the second of two items, which is the first with 100 added")


@law
def there_may_be_three_heads_or_four(split: Any) -> str:
    """Of six numbers in 3 heads head 2 gets 4 and 5, of four in 4 heads head 3 gets 3."""
    three = np.asarray(split(np.arange(6.0).reshape(1, 1, 6), 3))
    four = np.asarray(split(np.arange(4.0).reshape(1, 1, 4), 4))
    return apart(three, np.arange(6.0).reshape(1, 3, 1, 2), "of a word 0 1 2 3 4 5 in 3 heads") or apart(
        four, np.arange(4.0).reshape(1, 4, 1, 1), "of a word 0 1 2 3 in 4 heads"
    )


@law
def a_word_gets_what_its_heads_read(joined: Any) -> str:
    """Through a matrix that changes nothing, word i gets row i of every head: 10 11 from head 0, 12 13 from head 1."""
    x = np.stack([WORDS, WORDS + 100])
    found = np.sort(joined(_heads(x, 2), np.eye(4)), -1)
    return apart(found, x, "of heads [0 1; 10 11; 20 21] and [2 3; 12 13; 22 23] with w_o = eye(4)")


@law
def a_head_meets_its_rows(joined: Any) -> str:
    """Word 1 through w_o = 1, 2, 3, 4 is 10 + 11 * 2 + 12 * 3 + 13 * 4 = 120."""
    found = joined(_heads(WORDS[None, 1:2], 2), np.array([[1.0], [2.0], [3.0], [4.0]]))
    return apart(found, [[[120.0]]], "of heads [10 11] and [12 13] with w_o = 1, 2, 3, 4")


@law
def every_head_is_joined(joined: Any) -> str:
    """Heads of 1, 2, 3 and 4 through w_o = 1, 10, 100, 1000 are 4321, the first three of them 321."""
    heads, w_o = np.arange(1.0, 5.0).reshape(1, 4, 1, 1), 10 ** np.arange(4.0)[:, None]
    return apart(joined(heads[:, :3].copy(), w_o[:3]), [[[321.0]]], "of heads 1, 2, 3") or apart(
        joined(heads, w_o), [[[4321.0]]], "of heads 1, 2, 3, 4 with w_o = 1, 10, 100, 1000"
    )


def _attend(q: Any, k: Any, v: Any, width: int | None = None) -> Any:
    powers = np.exp(q @ k.swapaxes(-1, -2) / (width or q.shape[-1]) ** 0.5)
    return powers / powers.sum(-1, keepdims=True) @ v


def _heads(x: Any, heads: int) -> Any:
    return np.ascontiguousarray(_split(x, heads))


def _split(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _side_by_side(heads: Any) -> Any:
    return heads.swapaxes(1, 2).reshape(heads.shape[0], heads.shape[2], -1)


def _by_hand(keys: tuple[float, ...]) -> tuple[Any, ...]:
    """Words (1, s, v, 0) with s = 3, 2, 2 and v = 8, 4, 0, and matrices for as many heads as there are keys.

    Head h has the scores log(2) * keys[h] * s, the values v in its first number, and w_o doubles.
    """
    x = np.array([[[1.0, 3.0, 8.0, 0.0], [1.0, 2.0, 4.0, 0.0], [1.0, 2.0, 0.0, 0.0]]])
    w_q, w_k, w_v = np.zeros((3, 4, 4))
    width = 4 // len(keys)
    w_q[0, ::width], w_k[1, ::width], w_v[2, ::width] = np.log(2) * width**0.5, keys, 1
    return x, w_q, w_k, w_v, 2 * np.eye(4)


def _reads(multi_head: Any, keys: tuple[float, ...], read: list[float], what: str) -> str:
    found = multi_head(*_by_hand(keys), len(keys))
    return apart(found, np.tile(2 * np.array(read), (1, 3, 1)), what)


@law
def one_head_is_attention_between_two_products(multi_head: Any) -> str:
    """Scores log(2) * 3, 2, 2 and values 8, 4, 0 have the average 5, which w_o doubles."""
    what = "with one head, scores log(2) * 3, 2, 2, values 8, 4, 0 and w_o = 2 * eye(4)"
    return _reads(multi_head, (1.0,), [5, 0, 0, 0], what)


@law
def words_in_another_order_give_the_same_in_that_order(multi_head: Any) -> str:
    """Nothing asks where a word stands: words in reverse give the results in reverse."""
    x, *matrices = _given()
    back = np.asarray(multi_head(np.ascontiguousarray(x[:, ::-1]), *matrices, 4))
    return apart(back[:, ::-1], multi_head(x, *matrices, 4), "with the words in reverse")


@law
def scores_are_divided_by_the_root_of_the_width_of_a_head(multi_head: Any) -> str:
    """Two heads of width 2: q . k / sqrt(2) is log(2) * 3, 2, 2 in the first, which reads 5, and less in the second: 3.2."""
    what = "with two heads of width 2, q . k / sqrt(2) = log(2) * 3, 2, 2 and log(2) * -3, -2, -2, w_o = 2 * eye(4)"
    return _reads(multi_head, (1.0, -1.0), [5, 0, 3.2, 0], what)


@law
def every_head_reads(multi_head: Any) -> str:
    """Four heads of width 1 with the scores log(2) * 3, 2, 2 times 1, -1, 0 and 2 read 5, 3.2, 4 and 6."""
    what = "with four heads of scores log(2) * 3, 2, 2 times 1, -1, 0, 2, values 8, 4, 0 and w_o = 2 * eye(4)"
    return _reads(multi_head, (1.0, -1.0, 0.0, 2.0), [5, 3.2, 4, 6], what)


@law
def heads_are_added(multi_head: Any) -> str:
    """Head h with its columns of w_q, w_k, w_v and its rows of w_o, as a layer of one head; the results are added."""
    x, w_q, w_k, w_v, w_o = _given()
    expected = sum(
        _attend(*(x @ w[:, piece] for w in (w_q, w_k, w_v))) @ w_o[piece]
        for piece in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))
    )
    return apart(
        multi_head(x, w_q, w_k, w_v, w_o, 4), expected, "with four heads, beside four layers of one head"
    )


def _given(width: int = 8) -> tuple[Any, ...]:
    return (draw(2, 3, width), *(draw(width, width, seed=seed) / width**0.5 for seed in (1, 2, 3, 4)))


def _layer(x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, heads: int) -> Any:
    return _side_by_side(_attend(*(_split(x @ w, heads) for w in (w_q, w_k, w_v)))) @ w_o


def _cut_by_memory(x: Any, w_q: Any, w_k: Any, w_v: Any, w_o: Any, heads: int) -> Any:
    shape = (len(x), heads, x.shape[1], -1)
    return _attend(*((x @ w).reshape(shape) for w in (w_q, w_k, w_v))).reshape(x.shape) @ w_o


EXERCISES = (
    Exercise(
        (a_word_stays_a_row, a_head_is_a_piece, items_stay_apart, there_may_be_three_heads_or_four),
        {
            "a_word_stays_a_row": lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1),
            "a_head_is_a_piece": lambda x, heads: x.reshape(*x.shape[:2], -1, heads).transpose(0, 3, 1, 2),
            "items_stay_apart": lambda x, heads: _split(x.swapaxes(0, 1).reshape(x.shape), heads),
            "there_may_be_three_heads_or_four": lambda x, heads: _split(x, 2),
        },
    ),
    Exercise(
        (a_word_gets_what_its_heads_read, a_head_meets_its_rows, every_head_is_joined),
        {
            "a_word_gets_what_its_heads_read": lambda heads, w_o: (
                heads.reshape(len(heads), heads.shape[2], -1) @ w_o
            ),
            "a_head_meets_its_rows": lambda heads, w_o: (
                heads.transpose(0, 2, 3, 1).reshape(len(heads), heads.shape[2], -1) @ w_o
            ),
            "every_head_is_joined": lambda heads, w_o: (
                np.concatenate([heads[:, 0], heads[:, 1]], -1) @ w_o[: 2 * heads.shape[-1]]
            ),
        },
    ),
    Exercise(
        (
            one_head_is_attention_between_two_products,
            words_in_another_order_give_the_same_in_that_order,
            scores_are_divided_by_the_root_of_the_width_of_a_head,
            every_head_reads,
            heads_are_added,
        ),
        {
            "one_head_is_attention_between_two_products": lambda x, w_q, w_k, w_v, w_o, heads: _side_by_side(
                _attend(*(_split(x @ w, heads) for w in (w_q, w_k, w_v)))
            ),
            "words_in_another_order_give_the_same_in_that_order": _cut_by_memory,
            "scores_are_divided_by_the_root_of_the_width_of_a_head": lambda x, w_q, w_k, w_v, w_o, heads: (
                _side_by_side(_attend(*(_split(x @ w, heads) for w in (w_q, w_k, w_v)), x.shape[-1])) @ w_o
            ),
            "every_head_reads": lambda *layer: _layer(*layer[:-1], min(layer[-1], 2)),
            "heads_are_added": lambda x, w_q, w_k, w_v, w_o, heads: _layer(x, w_q, w_k, w_v, w_o.T, heads),
        },
    ),
)
