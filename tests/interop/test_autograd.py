"""Derivatives for NumPy by the package autograd: `vjp` and `value_and_grad`, the engine inside, and what they refuse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from polyattn_autograd import value_and_grad, vjp, xp

from polyattn import AuxRequest, attention, attention_vjp, layers, linear
from polyattn.parity import UNIT_ROUNDOFF


def _small(seed: int = 0, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape or (2, 4, 7, 5)).astype(np.float32)


def test_the_engine_inside_is_numpys_with_its_own_derivative() -> None:
    q, k, v = (_small(i, 1, 2, 600, 8) for i in range(3))  # 2.7 MiB of scores
    ran: list[str] = []

    def attend(given: Any) -> Any:
        out, aux = attention(*given, is_causal=True, return_aux=AuxRequest(lse=True))
        ran.append(aux.implementation)
        return out

    out, pullback = vjp(attend, (q, k, v))
    there, their_pullback = attention_vjp(q, k, v, is_causal=True)
    assert ran == ["blockwise"]
    assert np.array_equal(out, there)
    gradients = their_pullback(np.ones_like(out)).values()
    for ours, theirs in zip(pullback(np.ones_like(out)), gradients, strict=True):
        assert ours.dtype == np.float32
        assert np.array_equal(ours, theirs)


def test_a_function_as_score_mod_has_a_derivative() -> None:
    q, k, v = _small(0), _small(1), _small(2)

    def attend(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return attention(
            q,
            k,
            v,
            score_mod=lambda s, b, h, i, j: np.tanh(s) - 0.1 * (i - j) * np.where(i > j, s, 0.0),
            **options,
        )

    step = 1e-4
    direction = _small(3)
    _, gradient = value_and_grad(lambda q, k, v: np.sum(attend(q, k, v, implementation="blockwise")))(q, k, v)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    up, down = (attend(wide[0] + sign * step * direction, *wide[1:]).sum() for sign in (1, -1))
    assert abs((gradient * direction).sum() - (up - down) / (2 * step)) < 1e-3 * abs(up - down) / (2 * step)


def test_linear_attention_has_a_derivative() -> None:
    given = (*(_small(i, 1, 2, 9, 4) for i in range(3)), -np.abs(_small(3, 1, 2, 9, 1)))

    def call(given: Any) -> Any:
        return linear.linear_attention(*given[:3], decay=given[3])[0]

    _, pullback = vjp(call, given)
    _, their_pullback = jax.vjp(lambda *given: call(given), *map(jnp.asarray, given))
    ours, theirs = pullback(np.ones_like(given[2])), their_pullback(jnp.ones_like(given[2]))
    for x, y in zip(ours, theirs, strict=True):
        assert np.abs(x - np.asarray(y)).max() <= 64 * UNIT_ROUNDOFF["float32"] * np.abs(x).max()


def test_a_choice_between_arrays_of_different_sizes_has_the_derivative_of_each() -> None:
    x, y = _small(0, 3, 1), _small(1, 4)
    chosen = _small(2, 3, 4) > 0
    _, pullback = vjp(lambda given: xp.where(chosen, *given), (x, y))
    dx, dy = pullback(np.ones((3, 4), np.float32))
    assert np.array_equal(dx, chosen.sum(1, keepdims=True))
    assert np.array_equal(dy, (~chosen).sum(0))


def test_a_layer_learns_on_numpy_alone() -> None:
    """A token is to attend to its predecessor: twenty steps of plain gradient descent."""
    layer = layers.MultiHeadAttention(8, 2, is_causal=True)
    x = _small(0, 4, 6, 8)
    target = np.concatenate([x[:, :1], x[:, :-1]], axis=1)
    params = layer.init(0, like=x)
    step = value_and_grad(lambda params, x, target: np.mean((layer(params, x) - target) ** 2))
    first = step(params, x, target)[0]
    for _ in range(20):
        loss, gradient = step(params, x, target)
        params = {name: p - 0.5 * gradient[name] for name, p in params.items()}
    assert all(p.dtype == np.float32 for p in params.values())
    assert loss < 0.9 * first


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: value_and_grad(lambda x: x)(np.ones(2)), ValueError, "polyattn_autograd.value_and_grad: expected f to return one number, got an array of shape (2,); sum it, or take polyattn_autograd.vjp"),
        (lambda: vjp(lambda x: x, {"n": 3}), TypeError, "polyattn_autograd: expected params with at least one NumPy array of real floats, got {'n': 3}; it is what the derivative is for"),
        (lambda: vjp(lambda x: x, np.arange(3)), TypeError, "polyattn_autograd: expected params of real floats, got an array of int64; hand it over as an input, behind params"),
        (lambda: vjp(lambda x: 1.0, np.ones(2)), TypeError, "polyattn_autograd: expected the function to return an array made of its arguments, got float; return one array"),
        (lambda: vjp(lambda x: attention(x, np.ones((2, 2)), x), np.ones((2, 2))), TypeError, "polyattn.attention: expected key to be an array of the library of query (autograd), got one of numpy; convert it, or keep one library per call"),
    ],
)  # fmt: skip
def test_what_cannot_be_differentiated_is_said(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == sentence


def test_the_namespace_says_what_it_lacks() -> None:
    with pytest.raises(AttributeError, match="NumPy's array API has no 'nonsense'"):
        _ = xp.nonsense
