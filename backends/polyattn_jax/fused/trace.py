"""A function of JAX, as a list of operations with numbered values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, Primitive, jaxpr_as_fun

from polyattn.arrays import Array

__all__ = ["CALLS", "LAID", "Refused", "Sizes", "Step", "Trace", "laid", "steps_to", "traced"]


class Refused(Exception):
    """Why a function is not for a kernel."""


class Sizes(NamedTuple):
    """Rows and keys of a tile, or of all scores of a head."""

    rows: int
    keys: int


CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
}
LAID = "polyattn_laid"
_laid_p = Primitive(LAID)
_laid_p.def_abstract_eval(lambda x, *, shape: jax.core.ShapedArray(shape, x.dtype))


def laid(sizes: Sizes, x: Array) -> Array:
    """Of an array (B|1, H|1, L|1, S|1) laid on the scores: the part of a tile, (rows|1, keys|1)."""
    shape = tuple(1 if n == 1 else size for n, size in zip(x.shape[2:], sizes, strict=True))
    return _laid_p.bind(x, shape=shape)


class Step(NamedTuple):
    """One operation of a traced function; values are numbered, in the order in which they come up."""

    name: str
    reads: tuple[Any, ...]  # numbers, or literals
    writes: tuple[int, ...]
    alone: Any  # a program of this one equation

    def __call__(self, known: Mapping[int, Any]) -> dict[int, Any]:
        """What it writes, by number."""
        values = [a.val if isinstance(a, Literal) else known[a] for a in self.reads]
        return dict(zip(self.writes, jaxpr_as_fun(ClosedJaxpr(self.alone, ()))(*values), strict=True))


class Trace(NamedTuple):
    steps: list[Step]
    shapes: dict[int, Any]  # of every value, with its dtype
    consts: dict[int, Array]
    results: list[Any]


def traced(f: Callable[..., Mapping[str, Array | None]], sizes: Sizes) -> tuple[Trace, list[str]]:
    """f for tiles of that size, flat: calls of functions opened; and the names of its results."""
    names: list[str] = []

    def flat(*inputs: Array) -> list[Array]:
        found = {name: x for name, x in f(sizes, *inputs).items() if x is not None}
        names[:] = list(found)
        return list(found.values())

    closed = jax.make_jaxpr(flat)(
        jax.ShapeDtypeStruct(sizes, jnp.float32),
        *(jax.ShapeDtypeStruct(s, jnp.int32) for s in ((), (), (sizes.rows, 1), (1, sizes.keys))),
    )
    if closed.effects:
        raise Refused("its functions print or call back, which kernels cannot")
    steps: list[Step] = []
    shapes: dict[int, Any] = {}
    consts: dict[int, Array] = {}

    def new(aval: Any) -> int:
        shapes[len(shapes)] = aval
        return len(shapes) - 1

    def constant(x: Array) -> int:
        number = new(jax.typeof(x))
        consts[number] = x
        return number

    def run(jaxpr: Any, given: Sequence[Any]) -> list[Any]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, Literal) else known[atom]

        for eqn in jaxpr.eqns:
            if eqn.primitive.name in CALLS:
                reads = [read(atom) for atom in eqn.invars]
                inner = eqn.params[CALLS[eqn.primitive.name]]
                held = [constant(x) for x in getattr(inner, "consts", ())]
                found = run(getattr(inner, "jaxpr", inner), [*held, *reads])
            else:
                found = [new(var.aval) for var in eqn.outvars]
                inputs = list(dict.fromkeys(a for a in eqn.invars if not isinstance(a, Literal)))
                alone = jaxpr.replace(constvars=[], invars=inputs, outvars=eqn.outvars, eqns=[eqn])
                steps.append(Step(eqn.primitive.name, tuple(map(read, inputs)), tuple(found), alone))
            known.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    given = [new(var.aval) for var in closed.jaxpr.invars]
    held = [constant(x) for x in closed.consts]
    return Trace(steps, shapes, consts, run(closed.jaxpr, [*held, *given])), names


def steps_to(steps: Sequence[Step], wanted: Sequence[Any], known: Mapping[Any, Any]) -> list[Step]:
    """The steps to what is wanted from what is known, in order."""
    open_ = {atom for atom in wanted if isinstance(atom, int) and atom not in known}
    found = []
    for step in reversed(steps):
        if open_.intersection(step.writes):
            found.append(step)
            open_.difference_update(step.writes)
            open_.update(a for a in step.reads if isinstance(a, int) and a not in known)
    return found[::-1]
