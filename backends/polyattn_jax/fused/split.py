"""What a kernel computes of a score, and what it is given.

A function of positions may look into arrays: ids of documents, slopes of heads, a table. A kernel cannot: it sees one
tile. So a function is traced, and what it makes of rows alone, of keys alone, or of items and heads alone by looking
into arrays is computed outside of the kernel: operands, which are cut into tiles with the queries and keys. What
remains compares and combines them element by element. Derivatives of the operands go on outside, by JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from polyattn.arrays import Array
from polyattn_jax.fused.trace import CALLS, LAID, Refused, Sizes, Step, Trace, steps_to, traced

__all__ = ["Operand", "Parts", "split"]

_AS_A_WHOLE = "its functions use an array as a whole, not by the numbers of rows or keys"

#: Where a value depends on its place: batch item, head, row, key; and the score itself.
B, H, ROW, KEY, SCORE = "b", "h", "row", "key", "score"
#: That is said of the inputs: the score, the numbers of item, head, row and key.
_DEPENDS = tuple(frozenset({axis}) for axis in (SCORE, B, H, ROW, KEY))

#: Element by element, on every chip. What only some have: `only`.
_ELEMENTWISE = """
abs add and broadcast_in_dim ceil clamp convert_element_type copy cos div eq exp exp2 expand_dims expm1 floor ge gt
integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow rem reshape round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sqrt square squeeze stop_gradient sub tanh xor
"""
_VARY = "pvary"  # of types inside `jax.shard_map`
_EVERYWHERE = frozenset({_VARY, *_ELEMENTWISE.split()})
#: Calls that stay whole, because their derivative is their own.
_CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})


@dataclass(frozen=True)
class Operand:
    """An array laid on the scores, (B|1, H|1, L|1, S|1), of which a program gets the part of its tile."""

    array: Array
    number: int  # of the value that it is

    @property
    def kind(self) -> str:
        """Along which axes of a tile it varies."""
        rows, keys = (n > 1 for n in self.array.shape[2:])
        return "by score" if rows and keys else "by row" if rows else "by key" if keys else "by head"

    @property
    def name(self) -> str:
        return f"operand {self.number}"

    @property
    def differentiable(self) -> bool:
        return bool(jnp.issubdtype(self.array.dtype, jnp.floating))


@dataclass(frozen=True)
class Parts:
    """A function, split: its operands, and what is left of it for a tile."""

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    shapes: Mapping[int, Any]
    results: Mapping[str, Any]  # by name: a number, a literal, or nothing

    def of(self, arrays: Sequence[Array]) -> Parts:
        """The same with other arrays as operands, or with these as an autodiff sees them."""
        new = (replace(o, array=x) for o, x in zip(self.operands, arrays, strict=True))
        return replace(self, operands=tuple(new))

    def without(self, name: str) -> Parts:
        return replace(self, results={n: x for n, x in self.results.items() if n != name})

    def array(self, name: str) -> Array | None:
        """A result that is an operand."""
        return next((o.array for o in self.operands if o.number == self.results.get(name)), None)

    def run(self, name: str, known: dict[Any, Array]) -> Array | None:
        """The result of that name, None where there is none; known: inputs and operands by number, and what is found."""
        result = self.results.get(name)
        if result is None or isinstance(result, Literal):
            return None if result is None else result.val
        for step in steps_to(self.steps, [result], known):
            if step.name == _VARY:  # a kernel is one device's
                (a,) = step.reads
                known[step.writes[0]] = a.val if isinstance(a, Literal) else known[a]
            else:
                known.update(step(known))
        return known[result]

    def reads(self, names: Iterable[str]) -> list[Operand]:
        """The operands that results are made of."""
        wanted = [self.results[name] for name in names if name in self.results]
        used = {a for s in steps_to(self.steps, wanted, {}) for a in s.reads if isinstance(a, int)}.union(
            a for a in wanted if isinstance(a, int)
        )
        return [operand for operand in self.operands if operand.number in used]

    def shaped(self, number: int, x: Array) -> Array:
        """A part of an operand in the shape and dtype that the function has for it."""
        aval = self.shapes[number]
        x = x != 0 if aval.dtype == jnp.bool_ else x
        return x if x.shape == aval.shape else jnp.broadcast_to(x, aval.shape)


def split(
    f: Callable[..., Mapping[str, Array | None]],
    whole: Sizes,
    tile: Sizes,
    heads: tuple[int, int],
    only: frozenset[str] = frozenset(),
) -> Parts:
    """f(sizes, score, item, head, row, key), whose results have names, for a kernel.

    whole, tile: the sizes of all scores of a head, and of a tile. heads: how many batch items and heads there are.
    only: operations that this chip has beside the common ones.
    """
    full, names = traced(f, whole)
    try:
        small, _ = traced(f, tile)
    except (TypeError, ValueError) as error:  # what is wrong with f itself has come up above
        raise Refused(_AS_A_WHOLE) from error
    if [s.name for s in full.steps] != [s.name for s in small.steps]:
        raise Refused("its functions do other things for other lengths")
    depends = dict(enumerate(_DEPENDS))
    outside = _outside(full, depends, only)
    inside = [s for s in small.steps if not outside.issuperset(s.writes)]
    needed = steps_to(inside, small.results, dict.fromkeys([*range(len(_DEPENDS)), *outside]))
    read = {a for reads in (small.results, *(s.reads for s in needed)) for a in reads if isinstance(a, int)}
    operands = []
    for number in sorted(read & outside):
        _check_part(small.shapes[number], depends[number], tile)
        operands.append(Operand(_evaluate(full, number, depends[number], whole, heads), number))
    for number in {w for s in needed for w in s.writes}:
        if small.shapes[number].dtype.itemsize > 4:
            raise Refused(f"its functions compute in {small.shapes[number].dtype}, which kernels have not")
    return Parts(tuple(operands), tuple(needed), small.shapes, dict(zip(names, small.results, strict=True)))


def _check_part(aval: Any, on: frozenset[str], tile: Sizes) -> None:
    """What a program gets of an operand is of the shape of a tile."""
    shape = (tile.rows if ROW in on else 1, tile.keys if KEY in on else 1)
    if aval.size != 1 and aval.shape != shape:
        raise Refused(_AS_A_WHOLE)


def _operations(equation: Any) -> Iterator[str]:
    """The names of what an operation does, calls opened."""
    name = equation.primitive.name
    within = "call_jaxpr" if name in _CUSTOM else CALLS.get(name)
    if within is None:
        yield name
        return
    inner = equation.params[within]
    for each in getattr(inner, "jaxpr", inner).eqns:
        yield from _operations(each)


def _outside(trace: Trace, depends: dict[int, frozenset[str]], only: frozenset[str]) -> set[int]:
    """The values that are computed before the kernel; `depends` grows to all values."""
    depends.update(dict.fromkeys(trace.consts, frozenset()))
    outside = {number for number, on in depends.items() if on <= {B, H}}
    for step in trace.steps:
        on: frozenset[str] = frozenset().union(*(depends[a] for a in step.reads if isinstance(a, int)))
        if step.name == LAID:
            if on:
                raise Refused("what its functions lay on the scores depends on the scores")
            shape = trace.shapes[step.reads[0]].shape
            on, early = (
                frozenset(axis for axis, n in zip((B, H, ROW, KEY), shape, strict=True) if n > 1),
                True,
            )
        else:
            foreign = next(
                (name for name in _operations(step.alone.eqns[0]) if name not in _EVERYWHERE | only), None
            )
            early = foreign is not None
            if on <= {B, H}:  # a number, or made of an array; but a number spread over a tile is made there
                arrays = [
                    a for a in step.reads if isinstance(a, int) and a in outside and trace.shapes[a].size > 1
                ]
                early |= bool(arrays) or all(trace.shapes[w].size == 1 for w in step.writes)
            if early and (SCORE in on or {ROW, KEY} <= on):
                raise Refused(
                    f"its functions do more with a row and a key together than kernels have: {foreign}"
                )
        depends.update(dict.fromkeys(step.writes, on))
        if early:
            outside.update(step.writes)
    return outside


def _evaluate(trace: Trace, number: int, on: frozenset[str], whole: Sizes, heads: tuple[int, int]) -> Array:
    """A value for all items, heads, rows and keys that it depends on: (B|1, H|1, L|1, S|1)."""
    known: dict[int, Any] = dict(trace.consts)

    def run(steps: Sequence[Step], known: dict[int, Any]) -> None:
        for step in steps:
            known.update(step(known))

    # First what is laid on the scores, whole; then, for every item and head, what is made of it.
    wide = {w: s.reads[0] for s in trace.steps for w in s.writes if s.name == LAID}
    beyond = steps_to(trace.steps, [number], {**known, **wide})
    used = {w: x for w, x in wide.items() if w == number or any(w in s.reads for s in beyond)}
    run(steps_to(trace.steps, list(used.values()), known), known)
    if number in used:
        return known[used[number]]

    def at(item: Array, head: Array) -> Array:
        here = dict(known)
        for w, x in used.items():
            array = known[x]
            here[w] = array[item if array.shape[0] > 1 else 0, head if array.shape[1] > 1 else 0]
        row, key = (jnp.arange(n, dtype=jnp.int32) for n in whole)
        here.update(enumerate((None, item, head, row[:, None], key[None, :])))
        run(steps_to(trace.steps, [number], here), here)
        return here[number]

    batch, count = (n if axis in on else 1 for n, axis in zip(heads, (B, H), strict=True))
    over = (jnp.arange(n, dtype=jnp.int32) for n in (batch, count))
    found = jax.vmap(jax.vmap(at, (None, 0)), (0, None))(*over)
    return jnp.reshape(found, (batch, count, whole.rows if ROW in on else 1, whole.keys if KEY in on else 1))
