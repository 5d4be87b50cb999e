"""The second exercise of the chapter on gradients: what is read by several hears from several."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed
from exercises.small_steps import attention, compared, softmax


def _grouped() -> tuple[Any, ...]:
    return draw(4, 3, 4, seed=1), draw(2, 5, 4, seed=2), draw(2, 5, 2, seed=3), draw(4, 3, 2, seed=4)


def _each(q: Any, k: Any, v: Any) -> Any:
    k, v = (np.repeat(x, len(q) // len(x), 0) for x in (k, v))
    return attention(q, k, v)


@law
def gradients_have_the_shapes_of_what_went_in(pullback: Any) -> str:
    """4 query heads and 2 kv heads: dQ (4, 3, 4), dK (2, 5, 4), dV (2, 5, 2)."""
    *arrays, d_out = _grouped()
    shapes = [np.shape(x) for x in pullback(*arrays, d_out)]
    expected = [x.shape for x in arrays]
    return "" if shapes == expected else f"gradients of shapes {expected} were expected, {shapes} came"


@law
def two_readers_are_heard_twice(pullback: Any) -> str:
    """Two query heads that read one value, at one key, send it 1 + 1 = 2."""
    one = np.ones((2, 1, 1))
    return apart(pullback(one, one[:1], one[:1], one)[2], [[[2.0]]], "dV of one key that two heads read")


@law
def neighbours_share(pullback: Any) -> str:
    """Query heads 0 and 1 read kv head 0: what heads 2 and 3 are sent back is nothing to it."""
    q, k, v, d_out = _grouped()
    d_out = np.where(np.arange(4)[:, None, None] < 2, 0.0, d_out)
    d_v = np.asarray(pullback(q, k, v, d_out)[2])
    return apart(d_v[0], np.zeros_like(d_v[0]), "dV of kv head 0, with d_out of heads 0 and 1 all 0")


@law
def a_group_may_have_three(pullback: Any) -> str:
    """Of six query heads 0, 1, 2 read kv head 0: d_out of 1, 2, 4, 8, 16, 32 sends 1 + 2 + 4 = 7 and 56 to the values."""
    q, d_out = np.ones((6, 1, 1)), 2.0 ** np.arange(6).reshape(6, 1, 1)
    d_v = pullback(q, np.ones((2, 1, 1)), np.ones((2, 1, 1)), d_out)[2]
    return apart(d_v, [[[7.0]], [[56.0]]], "dV of 2 kv heads with 6 readers, d_out = 1, 2, 4, 8, 16, 32")


@law
def a_key_hears_by_its_weight(pullback: Any) -> str:
    """Of width 9, weights 1/2, 1/4, 1/4 and values 0, 4, 8 have score gradients -3/2, 1/4, 5/4, and a third of it is dK."""
    q, k = np.ones((1, 1, 9)), np.tile(np.log(2) / 3 * np.array([[3.0], [2.0], [2.0]]), (1, 1, 9))
    d_k = np.asarray(pullback(q, k, np.array([[[0.0], [4.0], [8.0]]]), np.ones((1, 1, 1)))[1])
    return apart(
        d_k,
        np.tile([[-1 / 2], [1 / 12], [5 / 12]], (1, 1, 9)),
        "dK of width 9, q = 1, k = log(2) / 3 * 3, 2, 2",
    )


@law
def rows_may_be_far_apart(pullback: Any) -> str:
    """Queries 1, 0, -1 with keys 0, 2000 + log 2, 2000 weigh 0 2/3 1/3, thirds, and 1 0 0: 4/3, 1, 2/3 for the values."""
    q, k = np.array([[[1.0], [0.0], [-1.0]]]), np.array([[[0.0], [2000 + np.log(2)], [2000.0]]])
    d_v = pullback(q, k, np.ones((1, 3, 1)), np.ones((1, 3, 1)))[2]
    return apart(
        d_v, [[[4 / 3], [1.0], [2 / 3]]], "dV of queries 1, 0, -1, keys 0, 2000 + log 2, 2000, d_out = 1"
    )


@law
def what_went_in_is_left_as_it_is(pullback: Any) -> str:
    """q, k, v and d_out are the same afterwards."""
    return changed(pullback, "q k v d_out", *_grouped())


@law
def small_steps_say_the_same_of_groups(pullback: Any) -> str:
    """Every gradient is the slope that small steps find."""
    *arrays, d_out = _grouped()
    return compared(pullback, _each, tuple(arrays), d_out, "q k v")


def _pullback(
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    *,
    summed: str = "sum",
    tiled: bool = False,
    scaled: bool = True,
    weigh: Any = softmax,
) -> Any:
    """Right, or with one mistake: heads not summed or averaged, tiled, or gradients without the scale."""
    group = len(q) // len(k)
    spread = (lambda x: np.concatenate([x] * group)) if tiled else (lambda x: np.repeat(x, group, 0))
    c, wide_k, wide_v = q.shape[-1] ** -0.5, spread(k), spread(v)
    w = weigh(c * q @ wide_k.swapaxes(-1, -2))
    d_w = d_out @ wide_v.swapaxes(-1, -2)
    d_s = w * (d_w - (w * d_w).sum(-1, keepdims=True)) * (c if scaled else 1.0)
    d_k, d_v = d_s.swapaxes(-1, -2) @ q, w.swapaxes(-1, -2) @ d_out
    if summed:
        shape, axis = ((group, len(k)), 0) if tiled else ((len(k), group), 1)
        d_k, d_v = (getattr(x.reshape(*shape, *x.shape[1:]), summed)(axis) for x in (d_k, d_v))
    return d_s @ wide_k, d_k, d_v


def _in_pairs(q: Any, k: Any, v: Any, d_out: Any) -> Any:
    """As if every kv head had two readers."""
    d_q, d_k, d_v = _pullback(q, np.repeat(k, len(q) // len(k), 0), np.repeat(v, len(q) // len(v), 0), d_out)
    reader = np.arange(len(q)) // 2 % len(k)
    return d_q, *(np.stack([x[reader == n].sum(0) for n in range(len(k))]) for x in (d_k, d_v))


def _without_a_maximum(s: Any) -> Any:
    return np.exp(s) / np.exp(s).sum(-1, keepdims=True)


def _scaled_in_place(q: Any, k: Any, v: Any, d_out: Any) -> Any:
    found = _pullback(q, k, v, d_out)
    q *= q.shape[-1] ** -0.5
    return found


GROUPED = Exercise(
    (
        gradients_have_the_shapes_of_what_went_in,
        two_readers_are_heard_twice,
        neighbours_share,
        a_group_may_have_three,
        a_key_hears_by_its_weight,
        rows_may_be_far_apart,
        what_went_in_is_left_as_it_is,
        small_steps_say_the_same_of_groups,
    ),
    {
        "gradients_have_the_shapes_of_what_went_in": lambda q, k, v, d: _pullback(q, k, v, d, summed=""),
        "two_readers_are_heard_twice": lambda q, k, v, d: _pullback(q, k, v, d, summed="mean"),
        "neighbours_share": lambda q, k, v, d: _pullback(q, k, v, d, tiled=True),
        "a_group_may_have_three": _in_pairs,
        "a_key_hears_by_its_weight": lambda q, k, v, d: _pullback(q, k, v, d, scaled=False),
        "rows_may_be_far_apart": lambda q, k, v, d: _pullback(q, k, v, d, weigh=_without_a_maximum),
        "what_went_in_is_left_as_it_is": _scaled_in_place,
        "small_steps_say_the_same_of_groups": lambda q, k, v, d: (
            _pullback(q, k, v, d, scaled=False)[0],
            *_pullback(q, k, v, d)[1:],
        ),
    },
)
