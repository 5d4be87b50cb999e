"""One array of another library and those of ours that it holds: the same, transposed, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer, Parameter

__all__ = ["Rule", "Shapes", "above_one", "by_group", "packed", "picked", "same", "shapes", "turned"]

Shapes = Mapping[str, tuple[int, ...]]


class Rule(NamedTuple):
    """One array of theirs, and those of ours that it holds."""

    theirs: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    load: Callable[[Array], tuple[Array, ...]]
    dump: Callable[..., Array]


def same(theirs: str, ours: str, shape: tuple[int, ...], as_shape: tuple[int, ...] | None = None) -> Rule:
    """The same numbers in the same order; theirs of another shape if `as_shape` is given."""
    target = shape if as_shape is None else as_shape
    return Rule(theirs, target, (ours,), lambda x: (_reshape(x, shape),), lambda x: _reshape(x, target))


def turned(theirs: str, ours: str, shape: tuple[int, ...], inputs: int = 1) -> Rule:
    """Ours (in..., out...) with `inputs` input axes, theirs the transposed matrix (out, in)."""
    rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return Rule(
        theirs,
        (columns, rows),
        (ours,),
        lambda x: (_reshape(_transpose(x), shape),),
        lambda x: _transpose(_reshape(x, (rows, columns))),
    )


def packed(theirs: str, rules: Sequence[Rule], axis: int) -> Rule:
    """The arrays of several rules, equally large, one after the other along an axis."""
    shape = list(rules[0].shape)
    size = shape[axis]
    shape[axis] *= len(rules)

    def load(x: Array) -> tuple[Array, ...]:
        places = (slice(i * size, (i + 1) * size) for i in range(len(rules)))
        pieces = (x[(slice(None),) * axis + (place, ...)] for place in places)
        return tuple(y for rule, piece in zip(rules, pieces, strict=True) for y in rule.load(piece))

    def dump(*xs: Array) -> Array:
        parts = tuple(rule.dump(x) for rule, x in zip(rules, xs, strict=True))
        return backend_of(xs[0]).xp.concat(parts, axis=axis)

    return Rule(theirs, tuple(shape), tuple(name for rule in rules for name in rule.ours), load, dump)


def by_group(theirs: str, ours: Shapes, groups: int) -> Rule:
    """Ours (in, out...), theirs one matrix (out, in) in which each of the groups has its part of each; or biases."""
    biases = all(name.startswith("b_") for name in ours)
    inputs = 1 if biases else next(iter(ours.values()))[0]
    sizes = [math.prod(shape) // inputs // groups for shape in ours.values()]
    rows = groups * sum(sizes)

    def load(x: Array) -> tuple[Array, ...]:
        x, found, start = _reshape(x, (groups, sum(sizes), inputs)), [], 0
        for size, shape in zip(sizes, ours.values(), strict=True):
            part = _reshape(x[:, start : start + size, :], (groups * size, inputs))
            found.append(_reshape(_transpose(part), shape))
            start += size
        return tuple(found)

    def dump(*xs: Array) -> Array:
        parts = [
            _reshape(_transpose(_reshape(x, (inputs, groups * size))), (groups, size, inputs))
            for x, size in zip(xs, sizes, strict=True)
        ]
        return _reshape(backend_of(xs[0]).xp.concat(parts, axis=1), (rows,) if biases else (rows, inputs))

    return Rule(theirs, (rows,) if biases else (rows, inputs), tuple(ours), load, dump)


def above_one(rule: Rule) -> Rule:
    """Theirs is what a scale is above 1, as Gemma keeps it."""
    return rule._replace(
        load=lambda x: tuple(1.0 + y for y in rule.load(x)), dump=lambda *xs: rule.dump(*xs) - 1.0
    )


def picked(own: Shapes, names: str) -> dict[str, tuple[int, ...]]:
    """Some of the shapes, in that order."""
    return {name: own[name] for name in names.split()}


def shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a layer itself, without those of its parts."""
    return {name: p.shape for name, p in layer.parameters().items() if isinstance(p, Parameter)}


def _reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return backend_of(x).xp.reshape(x, shape)


def _transpose(x: Array) -> Array:
    return backend_of(x).xp.matrix_transpose(x)
