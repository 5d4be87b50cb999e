"""Every rule against difference quotients in extended precision, and against JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from shared.libraries import jax, jnp

from polyattn.arrays import backend_of
from polyattn.gradients import vjp
from polyattn.gradients.rules import RULES
from polyattn.parity import UNIT_ROUNDOFF

Floats = np.ndarray[Any, Any]
Call = Callable[..., Any]

INDEX = np.array([2, 0, 2], np.int32)
ORDER = np.array([[2, 0, 1], [1, 1, 0]], np.int32)


def _xp(name: str, **options: Any) -> Call:
    return lambda xp, *x: getattr(xp, name)(*x, **options)


def _backend(name: str, *more: Any) -> Call:
    """A function of the backend of the arrays, whose other arguments follow."""
    return lambda xp, x, *rest: getattr(backend_of(x), name)(x, *rest, *more)


TWO = [(2, 3), (2, 3)]
SQUARE = [(2, 3, 3), (2, 3, 4)]
#: rule -> its calls: a function of (xp, *arrays), and the shapes of the arrays
CASES: dict[str, list[tuple[Call, list[tuple[int, ...]]]]] = {
    **{name: [(_xp(name), TWO), (_xp(name), [(3,), (2, 1)])] for name in ("add", "subtract", "multiply")},
    **{name: [(_xp(name), TWO), (_xp(name), [(3,), (2, 1)])] for name in ("divide", "maximum", "minimum")},
    **{name: [(_xp(name), TWO)] for name in ("logaddexp", "atan2", "remainder", "pow")},
    "where": [(lambda xp, x, y: xp.where(x > y, x, y * y), [(2, 3), (3,)])],
    **{
        name: [(_xp(name), [(2, 3)])]
        for name in [
            "positive",
            "negative",
            "abs",
            "square",
            "reciprocal",
            "sqrt",
            "exp",
            "expm1",
            "log",
            "log1p",
            "log2",
            "log10",
            "sin",
            "cos",
            "tan",
            "asin",
            "acos",
            "atan",
            "sinh",
            "cosh",
            "tanh",
        ]
    },
    "erf": [(_backend("erf"), [(2, 3)])],
    "sum": [
        (_xp("sum"), [(2, 3)]),
        (_xp("sum", axis=1), [(2, 3, 2)]),
        (_xp("sum", axis=(0, -1), keepdims=True), [(2, 3, 2)]),
    ],
    "mean": [(_xp("mean"), [(2, 3)]), (_xp("mean", axis=-1, keepdims=True), [(2, 3)])],
    "max": [(_xp("max"), [(2, 3)]), (_xp("max", axis=0), [(2, 3)])],
    "min": [(_xp("min", axis=-1, keepdims=True), [(2, 3)])],
    "cumulative_sum": [
        (_xp("cumulative_sum", axis=0), [(4, 2)]),
        (_xp("cumulative_sum", axis=-1, include_initial=True), [(2, 3)]),
        (_backend("cumulative_sum", -2), [(4, 2)]),
    ],
    "matmul": [
        (_xp("matmul"), [(2, 3), (3, 4)]),
        (_xp("matmul"), [(5, 2, 3), (3, 4)]),
        (_xp("matmul"), [(3,), (2, 3, 4)]),
        (_xp("matmul"), [(2, 3), (3,)]),
        (_xp("matmul"), [(3,), (3,)]),
        (_backend("matmul"), [(2, 1, 2, 3), (4, 3, 2)]),
    ],
    "linear": [(_backend("linear"), [(2, 3), (3, 4)])],
    "solve": [(lambda xp, a, y: xp.linalg.solve(a + 4.0 * xp.eye(3, dtype=a.dtype), y), SQUARE)],
    "astype": [(lambda xp, x: xp.astype(x, x.dtype) * 2.0, [(3,)])],
    "reshape": [(_xp("reshape", shape=(3, 2)), [(2, 3)]), (lambda xp, x: xp.reshape(x, (-1,)), [(2, 3)])],
    "expand_dims": [(_xp("expand_dims", axis=1), [(2, 3)])],
    "squeeze": [(_xp("squeeze", axis=1), [(2, 1, 3)])],
    "broadcast_to": [(lambda xp, x: xp.broadcast_to(x, (4, 2, 3)), [(2, 1)])],
    "permute_dims": [(lambda xp, x: xp.permute_dims(x, (2, 0, 1)), [(2, 3, 4)])],
    "matrix_transpose": [(_xp("matrix_transpose"), [(2, 3, 4)])],
    "moveaxis": [(lambda xp, x: xp.moveaxis(x, 0, -1), [(2, 3, 4)])],
    "flip": [(_xp("flip", axis=0), [(2, 3)]), (_xp("flip"), [(2, 3)])],
    "concat": [
        (lambda xp, x, y: xp.concat((x, y, x), axis=-1), [(2, 3), (2, 1)]),
        (lambda xp, x, y: xp.concat((x, y), axis=None), [(2, 3), (2, 1)]),
        (lambda xp, x, y: xp.stack((x, y, x), axis=1), TWO),
    ],
    "getitem": [
        (lambda xp, x: x[1:, ..., 0], [(3, 2, 2)]),
        (lambda xp, x: x[None, ::-2, :, 1], [(4, 2, 3)]),
        (lambda xp, x: x[:1, :] * x[-1, :] + x[0:2, :], [(3, 2)]),
        (lambda xp, x: x[...], [()]),
        (lambda xp, x: sum(xp.unstack(x)), [(3, 2)]),
    ],
    "take": [
        (lambda xp, x: xp.take(x, xp.asarray(INDEX), axis=1), [(2, 3, 2)]),
        (lambda xp, x: backend_of(x).take(x, xp.asarray(INDEX), 0), [(3, 2)]),
        (lambda xp, x: xp.repeat(x, 2, axis=-2), [(2, 3)]),
        (lambda xp, x: xp.roll(x, 1, axis=-1), [(2, 3)]),
    ],
    "take_along_axis": [
        (lambda xp, x: xp.take_along_axis(x, xp.asarray(ORDER), axis=-1), [(2, 3)]),
        (lambda xp, x: xp.take_along_axis(x, xp.asarray(ORDER[:1]), axis=0), [(3, 3)]),
    ],
    "sort": [(_xp("sort", axis=0), [(4, 2)]), (_xp("sort", descending=True), [(2, 3)])],
    "put": [(lambda xp, x, tile: backend_of(x).put(x, 1, tile, -2), [(2, 4, 3), (2, 2, 3)])],
    "add_at": [(lambda xp, x, tile: backend_of(x).add_at(x, (0, 1), tile), [(2, 4), (2, 2)])],
    "summed_at": [(lambda xp, x: backend_of(x).summed_at(x, xp.asarray(INDEX[None] - 1), 2), [(2, 2, 3)])],
}
#: what is made of others
COMPOSED: list[tuple[Call, list[tuple[int, ...]]]] = [
    (_xp("clip", min=0.3, max=0.6), [(2, 3)]),
    (_xp("var", axis=-1, correction=1.0), [(2, 3)]),
    (_xp("std"), [(2, 3)]),
    (_xp("tril"), [(2, 3, 3)]),
    (_xp("triu", k=1), [(3, 4)]),
    (lambda xp, x: xp.tile(x, (2, 1, 3)), [(2, 3)]),
    (lambda xp, x: xp.roll(x, 2), [(2, 3)]),
    (lambda xp, x: xp.full((2, 2), x) + xp.full_like(x, x), [()]),
    (lambda xp, x, y: xp.broadcast_arrays(x, y)[0] * y, [(3, 1), (2,)]),
    (lambda xp, x: (2.0 - x) * 3.0 / (1.0 + x) ** 2 - 2.0**x + x**0.5 + abs(-x), [(2, 3)]),
    (lambda xp, x: x.T @ x.mT.mT + x.sum(axis=0)[:, None], [(2, 3)]),
]
ALL = [(name, *case) for name, cases in CASES.items() for case in cases]
ALL += [(f"composed {i}", *case) for i, case in enumerate(COMPOSED)]
every_case = pytest.mark.parametrize(
    ("call", "shapes"), [pytest.param(*rest, id=f"{name}-{i}") for i, (name, *rest) in enumerate(ALL)]
)


def drawn(shapes: list[tuple[int, ...]], seed: int = 0) -> list[Floats]:
    """Numbers between 0.1 and 0.9, no two the same or far closer than 1/100 of that: no corner is near."""
    rng = np.random.default_rng(seed)
    total = sum(int(np.prod(shape)) for shape in shapes)
    values = rng.permutation(np.linspace(0.1, 0.9, total)) if total else np.zeros(0)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends[:-1]), shapes, strict=True)]


def assert_those_of_quotients(call: Call, given: list[Floats]) -> None:
    """The derivative along a direction. Two quotients, of steps h and 2h, differ by three times the error of the first."""
    rng = np.random.default_rng(1)
    out, pullback = vjp(lambda *x: call(x[0].__array_namespace__(), *x), *given)
    d = rng.choice([-1.0, -0.5, 0.5, 1.0], size=out.shape)
    gradients = pullback(d)
    along = [rng.choice([-1.0, -0.5, 0.5, 1.0], size=x.shape) for x in given]
    xp = array_api_compat.array_namespace(given[0])
    wide = [x.astype(np.longdouble) for x in given]
    if "solve" in call.__code__.co_names:  # LAPACK has it in float64
        wide = given
    own = wide[0].dtype.type(np.finfo(wide[0].dtype).eps)
    step = own ** (1 / wide[0].dtype.type(3))

    def quotient(h: Any) -> Any:
        up, down = (
            call(xp, *(x + sign * h * v for x, v in zip(wide, along, strict=True))) for sign in (1, -1)
        )
        return np.sum((up - down) * d) / (2 * h)

    near, far = quotient(step), quotient(2 * step)
    found = sum(np.sum(g * v) for g, v in zip(gradients, along, strict=True))
    size = sum(np.sum(np.abs(g)) for g in gradients)
    room = abs(far - near) + 64 * UNIT_ROUNDOFF["float64"] * size + 64 * own * np.sum(np.abs(out)) / step
    assert abs(found - near) <= room
    assert room <= 1e-6 * (1 + size)  # which tells a right rule from a wrong one
    for g, x in zip(gradients, given, strict=True):
        assert g.shape == x.shape
        assert g.dtype == x.dtype


def test_there_is_a_case_of_every_rule() -> None:
    assert set(CASES) == set(RULES)


@every_case
def test_a_rule_is_what_quotients_of_differences_say(call: Call, shapes: list[tuple[int, ...]]) -> None:
    assert_those_of_quotients(call, drawn(shapes))


@settings(max_examples=30, deadline=None)
@given(
    shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3),
    name=st.sampled_from(["add", "multiply", "divide", "pow", "maximum", "logaddexp", "subtract"]),
)
def test_what_was_broadcast_is_summed_for_any_two_shapes(shapes: Any, name: str) -> None:
    assert_those_of_quotients(_xp(name), drawn(list(shapes.input_shapes)))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_index_that_cuts_out_a_part(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    index: list[Any] = []
    for n in shape:
        number = st.integers(-n, n - 1)
        some = st.builds(slice, *[st.none() | st.integers(-n, n)] * 2, st.sampled_from([None, 1, 2, -1]))
        index.append(data.draw(number | some))
    assert_those_of_quotients(lambda xp, x: x[tuple(index)] * 1.0, drawn([shape]))


@every_case
def test_the_standard_alone_gives_what_numpy_gives(call: Call, shapes: list[tuple[int, ...]]) -> None:
    arrays = drawn(shapes)

    def f(*x: Any) -> Any:
        return call(x[0].__array_namespace__(), *x)

    out, pullback = vjp(f, *arrays)
    there, their_pullback = vjp(f, *map(strict.asarray, arrays))
    for ours, theirs in zip(pullback(out), their_pullback(there), strict=True):
        theirs = np.asarray(theirs)
        assert np.abs(ours - theirs).max(initial=0) <= 64 * UNIT_ROUNDOFF["float64"] * (
            1 + np.abs(ours).max(initial=0)
        )


TIES: dict[str, Call] = {
    "maximum": lambda xp, x: xp.maximum(x, xp.zeros_like(x)),
    "max": lambda xp, x: xp.max(x, axis=-1),
    "min": lambda xp, x: xp.min(x),
    "clip": lambda xp, x: xp.clip(x, 0.0, 1.0),
    "abs": lambda xp, x: xp.abs(x),
    "power 0": lambda xp, x: x**0 + x**2,
    "logaddexp": lambda xp, x: xp.logaddexp(x, x),
}


@pytest.mark.parametrize("name", TIES)
def test_in_a_corner_the_gradient_is_that_of_jax(name: str) -> None:
    x = np.array([[0.0, 0.0, -1.0], [1.0, 1.0, 0.0]], np.float32)
    out, pullback = vjp(lambda x: TIES[name](x.__array_namespace__(), x), x)
    there, their_pullback = jax.vjp(lambda x: TIES[name](jnp, x), jnp.asarray(x))
    assert np.array_equal(out, there)
    assert np.array_equal(pullback(out)[0], their_pullback(there)[0])
