"""Loss curves of one attention layer, trained by a PyTorch user, by a JAX user, and on NumPy alone.

    python docs/figures/loss_curves.py        # writes loss_curves.svg beside this file

All begin with `layer.init(0)`, which draws the same numbers on every library, see the same batches in the same
order, and take the steps of Adam, written once for all. What differs is rounding: autodiff, compilers and kernels
decide on the order of operations. How far rounding drives the losses apart is measured, not guessed: the training
runs in float64, and again with every single operation off by a rounding of float32, up or down at random (Monte
Carlo arithmetic). To first order the deviation is linear in those roundings, so that a few runs show its size; the
bound at each step is 4 times the largest one up to there, both in units of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import torch
from jax.extend.core import Jaxpr, Literal
from matplotlib.figure import Figure

from polyattn import layers
from polyattn.arrays import Array

Floats = np.ndarray[Any, Any]
Numbers = Mapping[str, Any]  # name -> array

STEPS, BATCH, LENGTH = 100, 8, 12
LAYER = layers.MultiHeadAttention(16, 4, is_causal=True)


def batches() -> Iterator[tuple[Floats, Floats]]:
    """Inputs, and what another layer makes of them: that is to be learnt."""
    rng = np.random.default_rng(0)
    teacher = LAYER.init(1, like=np.zeros(()))
    for _ in range(STEPS):
        x = rng.normal(size=(BATCH, LENGTH, LAYER.embed_dim)).astype(np.float32)
        yield x, LAYER(teacher, x.astype(np.float64)).astype(np.float32)


def loss(params: Numbers, x: Array, y: Array) -> Array:
    """The mean squared error."""
    error = LAYER(params, x) - y
    return (error * error).mean()


class State(NamedTuple):
    """What a step of Adam changes: params, and running means of gradients and of their squares."""

    params: Numbers
    first: Numbers
    second: Numbers


def start(like: Array) -> State:
    params = LAYER.init(0, like=like)
    return State(params, *({name: 0 * p for name, p in params.items()} for _ in range(2)))


def adam(state: State, gradients: Numbers, rate: float) -> State:
    """Kingma and Ba 2014, arXiv:1412.6980, algorithm 1; rate: with the correction of the means' bias."""
    params, first, second = state
    first = {name: 0.9 * m + 0.1 * gradients[name] for name, m in first.items()}
    second = {name: 0.999 * v + 0.001 * gradients[name] ** 2 for name, v in second.items()}
    params = {name: p - rate * first[name] / (second[name] ** 0.5 + 1e-8) for name, p in params.items()}
    return State(params, first, second)


def rates() -> list[float]:
    return [0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) for t in range(1, STEPS + 1)]


# the three users


def with_torch() -> Floats:
    """The loss before each step."""
    state, losses = start(torch.zeros(())), []
    for (x, y), rate in zip(batches(), rates(), strict=True):
        params = {name: p.requires_grad_() for name, p in state.params.items()}
        value = loss(params, torch.from_numpy(x), torch.from_numpy(y))
        gradients = torch.autograd.grad(value, list(params.values()))
        with torch.no_grad():
            state = adam(state, dict(zip(params, gradients, strict=True)), rate)
        losses.append(value.item())
    return np.asarray(losses)


def with_numpy() -> Floats:
    """The same without a framework: the gradients are those of recorded arrays."""
    state, losses = start(np.zeros((), np.float32)), []
    for (x, y), rate in zip(batches(), rates(), strict=True):
        out, pullback = layers.vjp(LAYER, state.params, x)
        error = out - y
        gradients, _ = pullback(2 * error / error.size)  # of the mean of error ** 2
        state = adam(state, gradients, rate)
        losses.append(float((error * error).mean()))
    return np.asarray(losses)


def jax_step(state: State, x: Array, y: Array, rate: float) -> tuple[State, Array]:
    value, gradients = jax.value_and_grad(loss)(state.params, x, y)
    return adam(state, gradients, rate), value


def with_jax() -> Floats:
    """The same, compiled."""
    return _run(jax.jit(jax_step), start(jnp.zeros(())), np.float32)


def _run(step: Callable[..., tuple[State, Array]], state: State, dtype: type) -> Floats:
    losses = []
    for (x, y), rate in zip(batches(), rates(), strict=True):
        state, value = step(state, jnp.asarray(x, dtype), jnp.asarray(y, dtype), rate)
        losses.append(float(value))
    return np.asarray(losses)


# the truth, and what rounding does to it

_ROUNDS = {
    "add",
    "add_any",
    "sub",
    "mul",
    "div",
    "integer_pow",
    "pow",
    "exp",
    "log",
    "dot_general",
    "reduce_sum",
}


def in_float64(draws: int = 4) -> tuple[Floats, Floats]:
    """The losses in float64, and the bound on |loss in float32 / loss in float64 - 1|."""
    with jax.enable_x64(True):
        like = np.zeros((), np.float32)  # begin with the float32 numbers of the two users
        state = jax.tree.map(lambda x: jnp.asarray(x, np.float64), start(like))
        true = _run(jax.jit(jax_step), state, np.float64)
        step = jax.jit(rounded(jax_step))
        rng = np.random.default_rng(1)

        def with_signs(*now: Any) -> tuple[State, Array]:
            return step(jnp.asarray(rng.choice([-1.0, 1.0], 2**18)), *now)

        deviations = [np.abs(_run(with_signs, state, np.float64) / true - 1) for _ in range(draws)]
    return true, 4 * np.maximum.accumulate(np.max(deviations, axis=0))


def rounded(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with an argument more, signs at random: every operation errs like float32, sums like those taken one by one."""

    def run(signs: Any, *inputs: Any) -> Any:
        program, shape = jax.make_jaxpr(f, return_shape=True)(*inputs)
        used = 0

        def take(shape: tuple[int, ...]) -> Any:
            nonlocal used
            used += math.prod(shape)
            assert used <= signs.size
            return jnp.reshape(signs[used - math.prod(shape) : used], shape)

        outputs = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(inputs), take)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def _evaluate(jaxpr: Jaxpr, consts: list[Any], inputs: list[Any], signs: Callable[..., Any]) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    for equation in jaxpr.eqns:
        given = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
        inner = equation.params.get("jaxpr")  # of a jitted function
        if inner is not None:
            outputs = _evaluate(inner.jaxpr, inner.consts, given, signs)
        else:
            apply = partial(equation.primitive.bind, **equation.params)
            outputs = [apply(*given)]
            if equation.primitive.name in _ROUNDS and jnp.issubdtype(outputs[0].dtype, jnp.floating):
                size = jnp.where(jnp.isfinite(outputs[0]), jnp.abs(outputs[0]), 0)  # -inf hides a key
                if terms := _terms(equation.primitive.name, equation.params, given[0].shape):
                    size = size + jnp.sqrt(
                        terms / 3 * outputs[0] ** 2 + terms / 6 * apply(*(x * x for x in given))
                    )
                outputs = [outputs[0] + 2.0**-24 * signs(size.shape) * size]
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [x.val if isinstance(x, Literal) else known[x] for x in jaxpr.outvars]


def _terms(name: str, options: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """How many numbers are summed into one; 0 if it is no sum."""
    axes = {"reduce_sum": lambda: options["axes"], "dot_general": lambda: options["dimension_numbers"][0][0]}
    return math.prod(shape[i] for i in axes[name]()) if name in axes else 0


def draw(path: Path) -> None:
    """The losses, and their distance from those in float64 beside the bound."""
    curves = {"PyTorch": with_torch(), "JAX": with_jax(), "NumPy": with_numpy()}
    true, bound = in_float64()
    matplotlib.rcParams["svg.hashsalt"] = "polyattn"
    figure = Figure(figsize=(6, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    for (name, losses), width in zip(curves.items(), (6, 3, 1), strict=True):  # thin lines on thick ones
        distance = np.abs(losses / true - 1)
        top.semilogy(losses, linewidth=width, label=name)
        bottom.semilogy(distance, label=f"|{name} / float64 - 1|")
        print(f"{name}: at most {np.max(distance):.1e}, {np.max(distance / bound):.2f} of the bound")
    bottom.semilogy(bound, ":", color="black", label="bound from float32 rounding")
    top.set(ylabel="loss", title="one attention layer, trained three times")
    bottom.set(xlabel="step", ylabel="relative distance", ylim=(None, 1e-3))
    for axes in (top, bottom):
        axes.legend(loc="upper right")
    figure.savefig(path, metadata={"Date": None})
    apart = np.abs(curves["PyTorch"] / curves["JAX"] - 1)
    print(
        f"loss {true[0]:.4f} -> {true[-1]:.4f}; |PyTorch / JAX - 1| at most {apart.max():.1e}; bound up to {bound.max():.1e}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw(Path(__file__).with_suffix(".svg"))
