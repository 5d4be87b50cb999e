"""Exercises of the chapter on gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.arrays import changed

U = np.log(3) / 2  # tanh of it is 1/2
H = 2.0**-17


def slopes(f: Callable[..., Any], arrays: tuple[Any, ...], d_out: Any) -> list[Any]:
    """The gradients of sum(f(...) * d_out), by moving every entry of every array by 2^-17 in both directions."""
    found = []
    for number, x in enumerate(arrays):
        d = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            ends = []
            for sign in (1, -1):
                moved = [y.copy() for y in arrays]
                moved[number][at] += sign * H
                ends.append((f(*moved) * d_out).sum())
            d[at] = (ends[0] - ends[1]) / (2 * H)
        found.append(d)
    return found


def _compared(pullback: Any, f: Any, arrays: tuple[Any, ...], d_out: Any, names: str) -> str:
    found, expected = pullback(*arrays, d_out), slopes(f, arrays, d_out)
    for name, mine, slope in zip(names.split(), found, expected, strict=True):
        if said := apart(mine, slope, f"the gradient for {name}, beside the slope of small steps"):
            return said
    return ""


def _softmax(s: Any) -> Any:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attention(q: Any, k: Any, v: Any) -> Any:
    return _softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5) @ v


def _drawn() -> tuple[Any, ...]:
    return draw(3, 4, seed=1), draw(5, 4, seed=2), draw(5, 2, seed=3), draw(3, 2, seed=4)


@law
def keys_pull_against_one_another(pullback: Any) -> str:
    """All keys moved alike change nothing: the gradients of the keys add up to 0."""
    total = np.asarray(pullback(*_drawn())[1]).sum(0)
    return apart(total, np.zeros(4), "the sum of the gradients of 5 keys")


@law
def a_small_step_says_the_same(pullback: Any) -> str:
    """Every gradient is the slope that small steps find."""
    *arrays, d_out = _drawn()
    return _compared(pullback, _attention, tuple(arrays), d_out, "q k v")


# ---- the softmax ----


@law
def equal_gradients_cancel(pull: Any) -> str:
    """If every weight should rise alike, no score should: weights sum to 1 anyway."""
    w = np.array([[0.5, 0.25, 0.25]])
    return apart(
        pull(w, np.full((1, 3), 3.0)), np.zeros((1, 3)), "of weights 1/2, 1/4, 1/4 and d_w = 3, 3, 3"
    )


@law
def a_score_hears_by_its_weight(pull: Any) -> str:
    """Weights 1/2, 1/4, 1/4 and d_w = 0, 4, 8, whose average is 3, give -3/2, 1/4, 5/4."""
    found = pull(np.array([[0.5, 0.25, 0.25]]), np.array([[0.0, 4.0, 8.0]]))
    return apart(found, [[-1.5, 0.25, 1.25]], "of weights 1/2, 1/4, 1/4 and d_w = 0, 4, 8")


@law
def rows_are_by_themselves(pull: Any) -> str:
    """Every row has its own average."""
    w, d_w = _softmax(draw(3, 4, seed=1)), draw(3, 4, seed=2)
    alone = np.concatenate([pull(w[i : i + 1], d_w[i : i + 1]) for i in range(3)])
    return apart(pull(w, d_w), alone, "of 3 rows, beside each alone")


@law
def keys_may_be_more(pull: Any) -> str:
    """Weights 1/2 and four of 1/8 with d_w = 0, 8, 8, 8, 16, whose average is 5, give -5/2, 3/8, 3/8, 3/8, 11/8."""
    found = pull(np.array([[0.5, *[0.125] * 4]]), np.array([[0.0, 8.0, 8.0, 8.0, 16.0]]))
    return apart(
        found, [[-2.5, 0.375, 0.375, 0.375, 1.375]], "of weights 1/2 and four of 1/8, d_w = 0, 8, 8, 8, 16"
    )


@law
def weights_are_left_as_they_are(pull: Any) -> str:
    """The weights and d_w are the same afterwards."""
    return changed(pull, "w d_w", np.array([[0.5, 0.25, 0.25]]), np.array([[0.0, 4.0, 8.0]]))


def _less_the_average(w: Any, d_w: Any) -> Any:
    d_w -= (w * d_w).sum(-1, keepdims=True)
    return w * d_w


# ---- grouped heads ----


def _grouped() -> tuple[Any, ...]:
    return draw(4, 3, 4, seed=1), draw(2, 5, 4, seed=2), draw(2, 5, 2, seed=3), draw(4, 3, 2, seed=4)


def _each(q: Any, k: Any, v: Any) -> Any:
    k, v = (np.repeat(x, len(q) // len(x), 0) for x in (k, v))
    return _attention(q, k, v)


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
def the_width_may_be_any(pullback: Any) -> str:
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
    return _compared(pullback, _each, tuple(arrays), d_out, "q k v")


def _pullback(
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    *,
    summed: str = "sum",
    tiled: bool = False,
    scaled: bool = True,
    softmax: Any = _softmax,
) -> Any:
    """Right, or with one mistake: heads not summed or averaged, tiled, or gradients without the scale."""
    group = len(q) // len(k)
    spread = (lambda x: np.concatenate([x] * group)) if tiled else (lambda x: np.repeat(x, group, 0))
    c, wide_k, wide_v = q.shape[-1] ** -0.5, spread(k), spread(v)
    w = softmax(c * q @ wide_k.swapaxes(-1, -2))
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


# ---- the network ----


def _scores(q: Any, k: Any, v: Any) -> Any:
    return np.tanh(q[:, None] + k) @ v


def _of_one(pullback: Any, keys: int) -> Any:
    return pullback(np.array([[U]]), np.zeros((keys, 1)), np.array([1.0]), np.ones((1, keys)))


@law
def tanh_flattens(pullback: Any) -> str:
    """At log(3)/2 tanh is 1/2, and its slope 1 - 1/4 = 3/4."""
    return apart(_of_one(pullback, 1)[0], [[0.75]], "the gradient for q = log(3)/2, with k = 0 and v = 1")


@law
def a_query_hears_from_all_its_keys(pullback: Any) -> str:
    """Three keys send it 3/4 each: 9/4."""
    return apart(_of_one(pullback, 3)[0], [[2.25]], "the gradient for q = log(3)/2, with three keys of 0")


@law
def v_hears_the_tanh(pullback: Any) -> str:
    """The slope of v tanh is tanh, 1/2."""
    return apart(_of_one(pullback, 1)[2], [0.5], "the gradient for v, with q + k = log(3)/2")


@law
def sums_may_be_large(pullback: Any) -> str:
    """At 1000 tanh is 1 and its slope 0, though exp(1000) is no number."""
    d_q, d_k, d_v = pullback(np.array([[1000.0]]), np.zeros((1, 1)), np.ones(1), np.ones((1, 1)))
    what = "with q = 1000, k = 0 and v = 1"
    return (
        apart(d_q, [[0.0]], f"the gradient for q {what}")
        or apart(d_k, [[0.0]], f"the gradient for k {what}")
        or apart(d_v, [1.0], f"the gradient for v {what}")
    )


@law
def the_network_is_left_as_it_is(pullback: Any) -> str:
    """q, k, v and d_s are the same afterwards."""
    given = draw(3, 2, seed=1), draw(4, 2, seed=2), draw(2, seed=3), draw(3, 4, seed=4)
    return changed(pullback, "q k v d_s", *given)


def _by_powers(q: Any, k: Any, v: Any, d_s: Any) -> Any:
    powers = np.exp(2 * (q[:, None] + k))
    d_sum = d_s[..., None] * v * 4 * powers / (powers + 1) ** 2
    return d_sum.sum(1), d_sum.sum(0), _backwards(q, k, v, d_s)[2]


def _over_v(q: Any, k: Any, v: Any, d_s: Any) -> Any:
    found = _backwards(q, k, v, d_s)
    v *= 0
    return found


@law
def small_steps_say_the_same_of_the_network(pullback: Any) -> str:
    """Every gradient is the slope that small steps find."""
    arrays = draw(3, 2, seed=1), draw(4, 2, seed=2), draw(2, seed=3)
    return _compared(pullback, _scores, arrays, draw(3, 4, seed=4), "q k v")


def _backwards(
    q: Any,
    k: Any,
    v: Any,
    d_s: Any,
    *,
    power: int = 2,
    mean: bool = False,
    bent_v: bool = True,
    by_v: bool = True,
) -> Any:
    bent = np.tanh(q[:, None] + k)
    d_sum = d_s[..., None] * (v if by_v else 1.0) * (1 - bent**power)
    d_v = (d_s[..., None] * (bent if bent_v else q[:, None] + k)).sum((0, 1))
    return (d_sum.mean(1), d_sum.mean(0), d_v) if mean else (d_sum.sum(1), d_sum.sum(0), d_v)


EXERCISES = (
    Exercise(
        (
            equal_gradients_cancel,
            a_score_hears_by_its_weight,
            weights_are_left_as_they_are,
            rows_are_by_themselves,
            keys_may_be_more,
        ),
        {
            "equal_gradients_cancel": lambda w, d_w: w * d_w,
            "a_score_hears_by_its_weight": lambda w, d_w: d_w - (w * d_w).sum(-1, keepdims=True),
            "weights_are_left_as_they_are": _less_the_average,
            "rows_are_by_themselves": lambda w, d_w: w * (d_w - (w * d_w).sum()),
            "keys_may_be_more": lambda w, d_w: w * (d_w - (w * d_w)[:, :4].sum(-1, keepdims=True)),
        },
    ),
    Exercise(
        (
            gradients_have_the_shapes_of_what_went_in,
            two_readers_are_heard_twice,
            neighbours_share,
            a_group_may_have_three,
            the_width_may_be_any,
            rows_may_be_far_apart,
            what_went_in_is_left_as_it_is,
            small_steps_say_the_same_of_groups,
        ),
        {
            "gradients_have_the_shapes_of_what_went_in": lambda q, k, v, d: _pullback(q, k, v, d, summed=""),
            "two_readers_are_heard_twice": lambda q, k, v, d: _pullback(q, k, v, d, summed="mean"),
            "neighbours_share": lambda q, k, v, d: _pullback(q, k, v, d, tiled=True),
            "a_group_may_have_three": _in_pairs,
            "the_width_may_be_any": lambda q, k, v, d: _pullback(q, k, v, d, scaled=False),
            "rows_may_be_far_apart": lambda q, k, v, d: _pullback(q, k, v, d, softmax=_without_a_maximum),
            "what_went_in_is_left_as_it_is": _scaled_in_place,
            "small_steps_say_the_same_of_groups": lambda q, k, v, d: (
                _pullback(q, k, v, d, scaled=False)[0],
                *_pullback(q, k, v, d)[1:],
            ),
        },
    ),
    Exercise(
        (
            tanh_flattens,
            a_query_hears_from_all_its_keys,
            v_hears_the_tanh,
            sums_may_be_large,
            the_network_is_left_as_it_is,
            small_steps_say_the_same_of_the_network,
        ),
        {
            "tanh_flattens": lambda q, k, v, d: _backwards(q, k, v, d, power=1),
            "a_query_hears_from_all_its_keys": lambda q, k, v, d: _backwards(q, k, v, d, mean=True),
            "v_hears_the_tanh": lambda q, k, v, d: _backwards(q, k, v, d, bent_v=False),
            "sums_may_be_large": _by_powers,
            "the_network_is_left_as_it_is": _over_v,
            "small_steps_say_the_same_of_the_network": lambda q, k, v, d: _backwards(q, k, v, d, by_v=False),
        },
    ),
)
