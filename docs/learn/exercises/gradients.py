"""Exercises of the chapter on gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed
from exercises.grouped_gradients import GROUPED
from exercises.small_steps import attention, compared, softmax

U = np.log(3) / 2  # tanh of it is 1/2


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
    return compared(pullback, attention, tuple(arrays), d_out, "q k v")


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
    w, d_w = softmax(draw(3, 4, seed=1)), draw(3, 4, seed=2)
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
    return compared(pullback, _scores, arrays, draw(3, 4, seed=4), "q k v")


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
    GROUPED,
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
