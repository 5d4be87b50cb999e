"""A derivative of one's own that goes both ways.

JAX has `custom_vjp`, with which forward mode fails, and `linear_call`, which goes through no `vmap`. So the tangents
of a function with a pullback of its own are one primitive here: a linear map that knows its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from polyattn.arrays import Array

__all__ = ["with_pullback"]

Arrays = Sequence[Array]
Map = Callable[[Arrays, Arrays], Arrays]  # (residuals, x) -> y, linear in x


def with_pullback(
    forward: Callable[[Arrays], tuple[Array, ...]],
    backward: Callable[[Arrays, Arrays, Arrays], Sequence[Array | None]],
    arrays: Arrays,
) -> tuple[Array, ...]:
    """forward(arrays), whose pullback is backward(arrays, outputs, cotangents), and whose tangents are its own."""

    @jax.custom_jvp
    def run(arrays: list[Array]) -> tuple[Array, ...]:
        return tuple(forward(arrays))

    def rule(primals: Any, tangents: Any) -> Any:
        (arrays,), (given,) = primals, tangents
        outputs = run(arrays)
        moved = [i for i, tangent in enumerate(given) if not isinstance(tangent, SymbolicZero)]
        count = len(arrays)

        def push(residuals: Arrays, along: Arrays) -> Arrays:
            def of_moved(some: Arrays) -> tuple[Array, ...]:
                new = dict(zip(moved, some, strict=True))
                return forward([new.get(i, x) for i, x in enumerate(residuals[:count])])

            return list(jax.jvp(of_moved, ([residuals[i] for i in moved],), (list(along),))[1])

        def pull(residuals: Arrays, cotangents: Arrays) -> Arrays:
            found = backward(residuals[:count], residuals[count:], cotangents)
            return [jnp.zeros_like(residuals[i]) if found[i] is None else found[i] for i in moved]

        return outputs, tuple(_linear(push, pull, [*arrays, *outputs], [given[i] for i in moved]))

    run.defjvp(rule, symbolic_zeros=True)
    return run(list(arrays))


_linear_p = Primitive("polyattn_linear")
_linear_p.multiple_results = True


def _linear(f: Map, transpose: Map | None, residuals: Arrays, x: Arrays) -> list[Array]:
    """f(residuals, x), whose transpose is transpose(residuals, y); None for one that there is not.

    Both are traced here and now: the functions of a caller, in which tracers may be, are not asked again.
    """
    there = jax.make_jaxpr(f)(residuals, x)
    back = None
    if transpose is not None:
        y = [jax.ShapeDtypeStruct(a.shape, a.dtype, **_varying(a)) for a in there.out_avals]
        back = jax.make_jaxpr(transpose)(residuals, y)
    consts = [*there.consts, *(() if back is None else back.consts)]
    sizes = (len(there.consts), len(consts), len(consts) + len(residuals))
    found: list[Array] = _linear_p.bind(
        *consts,
        *residuals,
        *x,
        there=there.jaxpr,
        back=None if back is None else back.jaxpr,
        sizes=sizes,
    )
    return found


def _varying(aval: Any) -> dict[str, Any]:
    vma = getattr(aval, "vma", None)
    return {"vma": vma} if vma else {}


def _maps(there: Jaxpr, back: Jaxpr | None, sizes: tuple[int, int, int]) -> tuple[Map, Map | None]:
    """The two maps of an equation, whose residuals begin with the constants of both."""
    first, second, _ = sizes

    def run(residuals: Arrays, x: Arrays) -> Arrays:
        return jaxpr_as_fun(ClosedJaxpr(there, list(residuals[:first])))(*residuals[second:], *x)  # type: ignore[no-any-return]

    def transposed(residuals: Arrays, y: Arrays) -> Arrays:
        return jaxpr_as_fun(ClosedJaxpr(back, list(residuals[first:second])))(*residuals[second:], *y)  # type: ignore[no-any-return]

    return run, None if back is None else transposed


@_linear_p.def_impl
def _run(*operands: Array, there: Jaxpr, back: Jaxpr | None, sizes: tuple[int, int, int]) -> Arrays:
    return _maps(there, back, sizes)[0](operands[: sizes[2]], operands[sizes[2] :])


@_linear_p.def_abstract_eval
def _shapes(*operands: Any, there: Jaxpr, **_: Any) -> Any:
    return [v.aval for v in there.outvars]


def _jvp(primals: Any, tangents: Any, *, sizes: tuple[int, int, int], **maps: Any) -> Any:
    f, transpose = _maps(sizes=sizes, **maps)
    outputs = _linear_p.bind(*primals, sizes=sizes, **maps)
    if all(type(t) is ad.Zero for t in tangents[: sizes[2]]):
        along = [ad.instantiate_zeros(t) for t in tangents[sizes[2] :]]
        return outputs, _linear(f, transpose, primals[: sizes[2]], along)
    moved = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def push(primals: Arrays, along: Arrays) -> Arrays:
        def of_moved(some: Arrays) -> Arrays:
            new = dict(zip(moved, some, strict=True))
            every = [new.get(i, y) for i, y in enumerate(primals)]
            return f(every[: sizes[2]], every[sizes[2] :])

        return jax.jvp(of_moved, ([primals[i] for i in moved],), (list(along),))[1]  # type: ignore[no-any-return]

    return outputs, _linear(push, None, primals, [tangents[i] for i in moved])


def _transpose(cotangents: Any, *operands: Any, sizes: tuple[int, int, int], **maps: Any) -> Any:
    f, transpose = _maps(sizes=sizes, **maps)
    if transpose is None:
        raise NotImplementedError(
            "polyattn.attention: expected derivatives of the blockwise engine of first order, or by forward mode of "
            "those (jax.hessian, jax.jvp of jax.grad), got reverse mode of a derivative; use "
            "implementation='reference', which has all orders"
        )
    y = [ad.instantiate_zeros(ct) for ct in cotangents]
    found = _linear(transpose, f, operands[: sizes[2]], y)
    asked = [ad.is_undefined_primal(x) for x in operands[sizes[2] :]]
    return [None] * sizes[2] + [x if wanted else None for x, wanted in zip(found, asked, strict=True)]


def _batch(operands: Any, axes: Any, *, sizes: tuple[int, int, int], **maps: Any) -> Any:
    f, transpose = _maps(sizes=sizes, **maps)
    n = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    residuals, x = operands[: sizes[2]], operands[sizes[2] :]
    # Every x along the batch, so that the transpose has nothing to sum.
    x = [
        jnp.broadcast_to(y, (n, *y.shape)) if axis is None else jnp.moveaxis(y, axis, 0)
        for y, axis in zip(x, axes[sizes[2] :], strict=True)
    ]
    over = (list(axes[: sizes[2]]), 0)
    mapped = None if transpose is None else jax.vmap(transpose, over)
    found = _linear(jax.vmap(f, over), mapped, list(residuals), x)
    return found, [0] * len(found)


ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_run, multiple_results=True))
