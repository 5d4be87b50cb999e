"""Activations, norms, linear maps, embeddings and the MLP: against formulas in extended precision and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import special
from shared import formulas
from shared.libraries import jax, jnp, torch
from shared.running import LIBRARIES, Floats, applied, bench_of, drawn, mapped, normal

from polyattn import layers
from polyattn.arrays.special import erf
from polyattn.layers.activations import ACTIVATIONS
from polyattn.parity import UNIT_ROUNDOFF, round_to
from polyattn.truth.rounding import noise

RUNS = [(library, "float32") for library in LIBRARIES]
RUNS += [("numpy", "float64"), ("strict", "float64"), ("torch", "float64")]
on_every_run = pytest.mark.parametrize(("library", "dtype"), RUNS)

X = np.concatenate([np.linspace(-12, 12, 2001), [0.0, 1e-30, -1e-8, 60.0, -60.0]])


def wide(x: Floats) -> Floats:
    return x.astype(np.longdouble)


PI = 4 * np.arctan(np.longdouble(1))

# Truth in extended precision, and the error allowed in units of u |x|. A product, a sum or a constant rounds
# once; tanh is taken to err by 4 u. x/2 (1 + tanh(y)): an error e of y moves tanh by at most 0.45 e. y of gelu_tanh
# takes five roundings, y of silu one: (0.45 * 5 + 4 + 4) / 2 and (0.45 + 4 + 4) / 2. erf errs by (4 + y^2) u with
# y^2 = x^2/2, and is 1 beyond |x| = 8.5.
TRUTHS: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: 0 * x),
    "gelu": (
        lambda x: x * special.ndtr(x.astype(float)),
        lambda x: (4 + np.minimum(x**2 / 2, 36) + 4) / 2,
    ),
    "gelu_tanh": (
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / PI) * (x + x**3 * 44715 / 10**6))),
        lambda x: np.full(x.shape, (0.45 * 5 + 4 + 4) / 2),
    ),
    "silu": (lambda x: x / (1 + np.exp(-x)), lambda x: np.full(x.shape, (0.45 + 4 + 4) / 2)),
}


def activated(library: str, name: str, x: Floats, dtype: str) -> Floats:
    return applied(library, lambda params, x: ACTIVATIONS[name](x), {}, x, dtype=dtype)


@on_every_run
@pytest.mark.parametrize("name", TRUTHS)
def test_activations_are_their_formulas(name: str, library: str, dtype: str) -> None:
    x = round_to(X, dtype)
    true, units = (f(wide(x)) for f in TRUTHS[name])
    error = np.abs(activated(library, name, x, dtype) - true)
    tiny = {"float32": 2.0**-126, "float64": 2.0**-1022}[dtype]  # XLA flushes smaller numbers to zero
    assert (error <= units * np.abs(x) * UNIT_ROUNDOFF[dtype] + tiny).all()


@pytest.mark.parametrize("name", TRUTHS)
def test_far_out_activations_are_the_identity_and_zero(name: str) -> None:
    for library in LIBRARIES:
        for x in (200.0, 1e4, 1e9):  # exp(-200) is below all float32
            assert activated(library, name, np.array([x, -x]), "float32").tolist() == [x, 0.0]


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_half_precision_activations_are_the_float32_ones_rounded_once(library: str, name: str) -> None:
    x = round_to(X[np.abs(X) < 20], "bfloat16")
    expected = round_to(activated(library, name, x, "float32"), "bfloat16")
    assert np.array_equal(activated(library, name, x, "bfloat16"), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erf_by_the_operations_of_the_standard_is_that_of_scipy(dtype: str) -> None:
    x = round_to(X, dtype)
    error = np.abs(erf(x.astype(dtype), np) - special.erf(x))
    assert (error <= (4 + np.minimum(x**2, 36)) * UNIT_ROUNDOFF[dtype]).all()


def test_activations_have_the_derivatives_of_their_formulas() -> None:
    """Central differences in extended precision: off by h^2/6 times a third derivative, which is below 4.

    What rounds, 2^-64 |x| / h and some u, is less than that again.
    """
    x, h = normal(200, size=2.0), 2.0**-20
    room = 2 * 4 * h**2 / 6
    x = x[np.abs(x) > 0.01]  # relu has no derivative at 0
    for name, (f, _) in TRUTHS.items():
        if name == "gelu":  # phi(x) x + Phi(x)
            slope = wide(x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) + special.ndtr(x))
        else:
            slope = (f(wide(x) + h) - f(wide(x) - h)) / (2 * h)
        t = torch.from_numpy(x).requires_grad_()
        ACTIVATIONS[name](t).sum().backward()
        assert np.abs(t.grad.numpy() - slope).max() <= room
        with jax.enable_x64(True):
            ours = jax.vmap(jax.grad(ACTIVATIONS[name]))(jnp.asarray(x))
        assert np.abs(np.asarray(ours) - slope).max() <= room


NORMS: list[tuple[Any, Callable[..., Any]]] = [
    (layers.LayerNorm(24, epsilon=1e-5), partial(formulas.layer_norm, epsilon=1e-5)),
    (layers.LayerNorm(24, epsilon=0.5), partial(formulas.layer_norm, epsilon=0.5)),
    (
        layers.LayerNorm(24, epsilon=1e-5, use_bias=False),
        lambda p, x: formulas.layer_norm({**p, "bias": 0.0}, x, 1e-5),
    ),
    (
        layers.RMSNorm(24, epsilon=1e-5),
        lambda p, x: x / ((x * x).sum(-1)[..., None] / 24 + 1e-5) ** 0.5 * p["scale"],
    ),
]


@pytest.mark.parametrize("shift", [0.0, 100.0], ids=["centred", "far from zero"])
@pytest.mark.parametrize(("layer", "formula"), NORMS, ids=["layer", "epsilon", "no bias", "rms"])
def test_norms_are_their_formulas(layer: Any, formula: Callable[..., Any], shift: float) -> None:
    params, x = drawn(layer), normal(7, 24) + shift
    assert layer.shapes().keys() == params.keys()
    found = noise(lambda number: formula(mapped(number, params), number(x)))
    for library, dtype in RUNS:
        out = applied(library, layer, params, x, dtype=dtype)
        room = 4 * found * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]
        assert np.abs(out - formula(params, x)).max() <= room


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("layer", "formula"), NORMS, ids=["layer", "epsilon", "no bias", "rms"])
def test_norms_of_half_precision_sum_in_float32(layer: Any, formula: Callable[..., Any], dtype: str) -> None:
    """Three roundings of the result remain: normalised, scaled, shifted. A half-precision mean would lose 4 bits."""
    params, x = mapped(lambda w: round_to(w, dtype), drawn(layer)), round_to(normal(7, 24) + 10, dtype)
    scaled = np.abs(formula(params | {"bias": 0.0} if "bias" in params else params, x))
    found = noise(lambda number: formula(mapped(number, params), number(x)))
    room = 3 * UNIT_ROUNDOFF[dtype] * (scaled + np.abs(params.get("bias", 0.0))) + 4 * found
    for library in ("numpy", "torch"):
        out = applied(library, layer, params, x, dtype=dtype)
        assert (np.abs(out - formula(params, x)) <= room).all()


def silu_gate(p: Any, x: Any) -> Any:
    gate = x @ p["w_gate"] + p["b_gate"]
    return gate / (1 + formulas.of(x).exp(-gate)) * (x @ p["w_in"] + p["b_in"]) @ p["w_out"] + p["b_out"]


MLPS: dict[str, Callable[..., Any]] = {
    "relu": formulas.mlp,
    "gelu_tanh": partial(formulas.mlp, activation=formulas.gelu_tanh),
    "silu": partial(formulas.mlp, activation=lambda x: x / (1 + formulas.of(x).exp(-x))),
    "swiglu": silu_gate,
}


@pytest.mark.parametrize("activation", MLPS)
def test_the_mlp_is_its_formula_on_every_library(activation: str) -> None:
    layer = layers.MLP(8, 12, activation=activation)
    params, x = drawn(layer), normal(2, 5, 8)
    formula = MLPS[activation]
    found = noise(lambda number: formula(mapped(number, params), number(x)))
    for library, dtype in RUNS:
        out = applied(library, layer, params, x, dtype=dtype)
        room = 4 * found * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]
        assert np.abs(out - formula(params, x)).max() <= room


def test_an_mlp_without_bias_has_no_bias() -> None:
    layer = layers.MLP(8, 12, activation="swiglu", use_bias=False)
    assert set(layer.shapes()) == {"w_in", "w_gate", "w_out"}
    assert set(layers.Linear(8, 3, use_bias=False).shapes()) == {"w"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_embedding_gives_rows_of_the_table(library: str) -> None:
    layer = layers.Embedding(11, 3)
    params = drawn(layer)
    for tokens in (np.array([3, 0, 10]), np.array([[1, 1], [2, 10]]), np.array(4), np.zeros((2, 0), int)):
        for kind in (np.int32, np.int64, np.uint8) if library != "jax" else (np.int32,):
            out = applied(library, layer, params, tokens.astype(kind))
            assert np.array_equal(out, params["table"][tokens].reshape(*tokens.shape, 3))


def test_the_gradient_of_an_embedding_counts_the_tokens() -> None:
    layer = layers.Embedding(4, 2)
    tokens = np.array([1, 3, 1])
    count = np.array([[0, 0], [2, 2], [0, 0], [1, 1]])
    table = jnp.zeros((4, 2))
    assert np.array_equal(jax.grad(lambda t: layer({"table": t}, jnp.asarray(tokens)).sum())(table), count)
    leaf = torch.zeros(4, 2, requires_grad=True)
    layer({"table": leaf}, torch.from_numpy(tokens)).sum().backward()
    assert np.array_equal(leaf.grad, count)


def test_a_token_that_a_compiler_traces_and_the_table_lacks_reads_as_nan_in_jax() -> None:
    layer = layers.Embedding(4, 2)
    out = jax.jit(layer)({"table": jnp.ones((4, 2))}, jnp.asarray([3, 4]))
    assert np.isnan(out).tolist() == [[False, False], [True, True]]


def test_relu_of_zero_has_gradient_zero() -> None:
    for library, x in (("jax", jnp.zeros(1)), ("torch", torch.zeros(1, requires_grad=True))):
        if library == "jax":
            assert jax.grad(lambda x: ACTIVATIONS["relu"](x).sum())(x)[0] == 0
        else:
            ACTIVATIONS["relu"](x).sum().backward()
            assert x.grad[0] == 0
    assert bench_of("numpy").numpy(ACTIVATIONS["relu"](np.array([-1.0, 0.0, 2.0]))).tolist() == [0, 0, 2]
