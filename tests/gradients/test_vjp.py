"""`polyattn.gradients.vjp`: what goes in and comes out, what stays in memory, what is refused."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch
from shared.running import bench_of

from polyattn import attention, attention_vjp, layers, masks, mods
from polyattn.arrays import backend_of
from polyattn.gradients import Recorded, stop_gradient, vjp
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.testing import check_backend

X = np.random.default_rng(0).normal(size=(1, 2, 7, 4))


class RecordedBench:
    """A library whose gradients are those of `vjp`."""

    def __init__(self, library: str) -> None:
        self._plain = plain = bench_of(library)
        self.name, self.version, self.dtypes = plain.name, plain.version, plain.dtypes
        self.array, self.numpy = plain.array, plain.numpy

    def run(self, f: Any, arrays: Any, cotangent: Any) -> Any:
        with np.errstate(invalid="ignore"):  # NaN that was planted in hidden keys
            if cotangent is None:
                return (*f(arrays), None)
            (out, lse), pullback = vjp(f, arrays)
            return out, lse, pullback((cotangent, None))[0]


@pytest.mark.parametrize("library", ["numpy", "strict", "torch"])
def test_every_gradient_of_the_contract(library: str) -> None:
    bench = RecordedBench(library)
    outcomes = check_backend(bench)
    assert len(outcomes) >= 30 * len(bench.dtypes)


def test_a_long_attention_is_one_step_with_the_pullback_of_the_engine() -> None:
    q, k, v = (np.random.default_rng(i).normal(size=(1, 2, 600, 8)).astype(np.float32) for i in range(3))
    out, pullback = vjp(lambda q, k, v: attention(q, k, v, is_causal=True), q, k, v)
    there, their_pullback = attention_vjp(q, k, v, is_causal=True)
    assert np.array_equal(out, there)
    for ours, theirs in zip(pullback(out), their_pullback(out).values(), strict=True):
        assert np.array_equal(ours, theirs)


def test_structures_come_back_as_they_went_in_with_none_for_what_has_no_derivative() -> None:
    params = {"w": X[0, 0], "part": (X[0, 1, 0], [np.arange(3), "text", np.array([True])])}

    def f(params: Any, tokens: Any) -> Any:
        return {"a": params["w"] * params["part"][0], "b": (params["part"][1][0] * 2, tokens)}

    out, pullback = vjp(f, params, np.arange(2))
    assert np.array_equal(out["b"][0], 2 * np.arange(3))
    d_params, d_tokens = pullback({"a": np.ones((7, 4)), "b": None})
    assert d_tokens is None
    assert d_params["part"][1] == [None, "text", None]
    assert np.array_equal(d_params["w"], np.broadcast_to(X[0, 1, 0], (7, 4)))
    assert np.abs(d_params["part"][0] - X[0, 0].sum(0)).max() <= 8 * UNIT_ROUNDOFF["float64"]


def test_a_pullback_may_be_called_again_and_gives_arrays_of_the_caller() -> None:
    layer = layers.MultiHeadAttention(4, 2)
    params = layer.init(0, like=X)
    out, pullback = layers.vjp(layer, params, X[0])
    (first, d_x), (again, d_x_again) = pullback(out), pullback(out)
    assert all(np.array_equal(first[name], again[name]) for name in params)
    kept = d_x.copy()
    d_x *= 0  # nobody else's
    assert np.array_equal(pullback(out)[1], kept)
    assert np.array_equal(d_x_again, kept)
    twice = pullback(2 * out)[1]
    assert np.array_equal(twice, 2 * kept)  # linear, and by 2 without rounding


def test_what_was_computed_is_freed_with_the_pullback() -> None:
    class Seen(np.ndarray[Any, Any]):
        pass

    seen: list[weakref.ref[Any]] = []

    def f(x: Any) -> Any:
        y = np.exp(x)
        seen.append(weakref.ref(y.value))
        return np.tanh(y)

    gc.disable()
    try:
        _, pullback = vjp(f, X.view(Seen))
        assert seen[0]() is not None
        del pullback
        assert seen[0]() is None  # at once, without a collector of cycles
    finally:
        gc.enable()


@pytest.mark.parametrize("library", ["numpy", "strict", "jax", "torch"])
def test_plain_arrays_beside_recorded_ones_are_constants(library: str) -> None:
    bench = bench_of(library)
    q, k, v = (bench.array(np.random.default_rng(i).normal(size=(2, 5, 4)), "float32") for i in range(3))

    def f(q: Any, k: Any, v: Any) -> Any:
        own = attention(q, k, v) * q + (k + v) * q + (k @ v.mT) @ v
        return own if library == "strict" else v * own + q  # a strict array on the left raises by itself

    whole = vjp(f, q, k, v)
    out, pullback = vjp(lambda k: f(q, k, v), k)
    assert np.array_equal(bench.numpy(out), bench.numpy(whole[0]))
    assert np.array_equal(bench.numpy(pullback(out)[0]), bench.numpy(whole[1](out)[1]))


def test_a_mask_and_a_modification_of_plain_arrays() -> None:
    lengths, slopes = np.array([3], np.int32), np.array([0.5, 0.25])

    def f(q: Any, slopes: Any) -> Any:
        return attention(q, X, X, mask=masks.key_lengths(lengths), score_mod=mods.alibi(slopes))

    out, pullback = vjp(f, X, slopes)
    there, their_pullback = attention_vjp(
        X, X, X, mask=masks.key_lengths(lengths), score_mod=mods.alibi(slopes)
    )
    theirs = their_pullback(out)
    size = 64 * UNIT_ROUNDOFF["float64"]
    assert np.abs(out - there).max() <= size
    assert np.abs(pullback(out)[0] - theirs["query"]).max() <= size
    assert np.abs(pullback(out)[1] - theirs["score_mod"][0]).max() <= size * 8
    assert np.array_equal(vjp(lambda q: f(q, slopes), X)[1](out)[0], pullback(out)[0])


def test_second_derivatives_even_with_respect_to_what_a_function_holds() -> None:
    a, b = np.array([0.3, 0.7]), np.array([1.1, 0.4])

    def inner(a: Any, b: Any) -> Any:
        """The derivative by b of sum(sin(a b) b), in which a comes from outside."""
        return vjp(lambda b: np.sum(np.sin(a * b) * b), b)[1](1.0)[0]

    out, pullback = vjp(inner, a, b)
    with jax.enable_x64(True):
        there, theirs = jax.vjp(
            lambda a, b: jax.grad(lambda b: jnp.sum(jnp.sin(a * b) * b))(b), jnp.asarray(a), jnp.asarray(b)
        )
        expected = [np.asarray(x) for x in (there, *theirs(there))]
    for ours, true in zip((out, *pullback(out)), expected, strict=True):
        assert np.abs(ours - true).max() <= 16 * UNIT_ROUNDOFF["float64"] * np.abs(true).max()


def test_the_second_derivative_of_attention() -> None:
    x = X[0, 0]

    def gradient(x: Any) -> Any:
        return vjp(lambda x: np.sum(attention(x, x, x) ** 2), x)[1](1.0)[0]

    out, pullback = vjp(gradient, x)
    with jax.enable_x64(True):
        there, theirs = jax.vjp(jax.grad(lambda x: jnp.sum(attention(x, x, x) ** 2)), jnp.asarray(x))
        (true,) = theirs(there)
    assert (
        np.abs(pullback(out)[0] - np.asarray(true)).max()
        <= 256 * UNIT_ROUNDOFF["float64"] * np.abs(true).max()
    )


def test_constants() -> None:
    x = np.array([1.0, 2.0])
    assert vjp(lambda x: x * stop_gradient(x), x)[1](np.ones(2))[0].tolist() == [1.0, 2.0]
    assert vjp(lambda x: np.sign(x) + np.floor(x), x)[1](np.ones(2))[0].tolist() == [0.0, 0.0]
    assert vjp(lambda x: np.ones(2), x)[1](np.ones(2))[0].tolist() == [0.0, 0.0]
    kept: list[Any] = []
    vjp(lambda x: kept.append(x) or x, x)
    assert isinstance(kept[0], Recorded)
    assert np.array_equal(np.asarray(kept[0]), x)
    # An array that escaped from one derivative is a constant of the next one.
    assert vjp(lambda x: x * kept[0], x)[1](np.ones(2))[0].tolist() == [1.0, 2.0]


def test_what_torch_and_numpy_call_otherwise() -> None:
    x = np.array([[0.5, 2.0]])
    out, pullback = vjp(lambda x: np.concatenate([x, np.power(x, 3)]).T.cumsum(axis=0), x)
    assert np.array_equal(out, np.concatenate([x, np.power(x, 3)]).T.cumsum(axis=0))
    assert np.array_equal(pullback(np.ones((2, 2)))[0], [[2 * (1 + 3 * 0.25), 1 + 3 * 4.0]])
    t = torch.from_numpy(x)
    out, pullback = vjp(lambda y: torch.tanh(t / y) + (t - y) + torch.cat([y, t])[:1], t)
    by_torch = t.clone().requires_grad_()
    (torch.tanh(t / by_torch) + (t - by_torch) + torch.cat([by_torch, t])[:1]).sum().backward()
    assert torch.equal(pullback(torch.ones_like(t))[0], by_torch.grad)


FACTOR = np.array(2.0)


def _captured() -> Any:
    return vjp(_scaled_inside, np.ones((1, 4, 300, 4)), FACTOR)


def _hidden() -> Any:
    def f(x: Any) -> Any:
        return backend_of(x).custom_vjp(lambda given: (given[0] * x,), lambda *_: [None], (x,))

    return vjp(f, X)


def _scaled_inside(x: Any, factor: Any, implementation: Any = "blockwise") -> Any:
    return attention(x, x, x, score_mod=lambda s, b, h, i, j: s * factor, implementation=implementation)


@pytest.mark.parametrize("recorded", [True, False])
def test_an_array_that_a_function_holds_is_seen_however_long_the_scores_are(recorded: bool) -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 300, 4))
    if recorded:
        out, pullback = vjp(lambda x, factor: _scaled_inside(x, factor, "auto"), x, FACTOR)
    else:
        out, pullback = vjp(lambda factor: _scaled_inside(x, factor, "auto"), FACTOR)
    by_scale, theirs = attention_vjp(x, x, x, scale=np.full(4, 1.0))
    size = 256 * UNIT_ROUNDOFF["float64"]
    true = theirs(out)["scale"].sum() / 2
    assert np.abs(out - by_scale).max() <= size * np.abs(out).max()
    assert abs(pullback(out)[-1] - true) <= size * abs(true)


def _written(x: Any) -> Any:
    x[0] = 1.0
    return x


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: vjp(X), TypeError, "polyattn.gradients.vjp: expected a function and its arguments, got ndarray first; write vjp(f, x)"),
        (lambda: vjp(lambda x: np.fft.fft(x), X), NotImplementedError, "polyattn.gradients: expected a function of which there is a derivative, got fft; write it with those of polyattn.gradients.rules, or say by polyattn.gradients.stop_gradient(x) that x is a constant"),
        (lambda: vjp(lambda x: x.__array_namespace__().prod(x), X), NotImplementedError, "polyattn.gradients: expected a function of which there is a derivative, got prod; write it with those of polyattn.gradients.rules, or say by polyattn.gradients.stop_gradient(x) that x is a constant"),
        (lambda: vjp(lambda x: x.__array_namespace__().nonsense(x), X), AttributeError, "polyattn.gradients: expected a function that array_api_compat.numpy has, got 'nonsense'; write it with others"),
        (lambda: vjp(lambda x: x.nonsense(), X), AttributeError, "polyattn.gradients: expected what arrays of every library have, got .nonsense; write it with the functions of xp = x.__array_namespace__()"),
        (lambda: vjp(_written, X), TypeError, "polyattn.gradients: expected an array that is read alone while a derivative is recorded, got x[...] = ...; make a new one, for example with xp.where"),
        (lambda: vjp(lambda x: np.add.reduce(x), X), TypeError, "polyattn.gradients: expected a function that returns a new array, got numpy.add that is called by .reduce; write x = x + y, and sum by numpy.sum"),
        (lambda: vjp(lambda x: x, X)[1](np.ones(3)), ValueError, "polyattn.gradients.vjp: pullback: expected d_out of the shape of the result, (1, 2, 7, 4), and of real numbers, got (3,) of float64; it is the gradient of a loss for that result"),
        (lambda: vjp(lambda x: (x, x), X)[1](X), ValueError, "polyattn.gradients.vjp: pullback: expected d_out with the structure of the result, tuple of [0, 1], got ndarray; give None for what the loss does not see"),
        (lambda: vjp(lambda x: "text", X)[1](X), TypeError, "polyattn.gradients.vjp: pullback: expected None for d_out, since f returned str there, got ndarray; return arrays"),
        (lambda: stop_gradient(1.0), TypeError, "polyattn.gradients.stop_gradient: expected an array, got float; numbers are constants"),
        (_captured, ValueError, "polyattn.attention: expected a problem that the blockwise engine computes exactly for implementation='blockwise', got one where score_mod captures an array that a derivative is taken by, which the engine cannot see; use 'auto'"),
        (_hidden, TypeError, "polyattn.gradients: expected a function whose derivative is given to be made of its arguments alone, got one that holds an array which a derivative is taken by; hand that over too"),
        (lambda: layers.vjp(lambda p, x: x, {}, X), TypeError, "polyattn.layers.vjp: expected a layer of polyattn.layers before params and inputs, got the function <lambda>; of another function take polyattn.gradients.vjp(f, params, x)"),
        (lambda: layers.vjp(layers.Linear(4, 2), X), TypeError, "polyattn.layers.vjp: expected params, a dict of arrays, between layer and inputs, got an array of shape (1, 2, 7, 4) and dtype float64; write params = layer.init(seed, like=x) once, and layers.vjp(layer, params, x)"),
    ],
)  # fmt: skip
def test_what_cannot_be_differentiated_is_said(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == sentence


def test_outside_of_a_derivative_a_call_is_what_it_was() -> None:
    calls: list[int] = []

    def mod(score: Any, *_: Any) -> Any:
        calls.append(score.size)
        return score

    def asked() -> list[int]:
        calls.clear()
        attention(X, X, X, score_mod=mod, implementation="blockwise")
        return list(calls)

    before = asked()
    vjp(lambda x: attention(x, X, X), X)
    with pytest.raises(ZeroDivisionError):
        vjp(lambda x: x + 1 // 0, X)
    assert asked() == before
