"""One model for every length: the same function traced at several, whose constants are formulas of the lengths.

A traced graph holds lengths as numbers: in the shapes that it gives, in the positions that it counts. Graphs traced at
other lengths differ in these constants alone, or else no one graph serves all. A formula that gives each of them at
every traced length takes its place, computed from the shapes of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

__all__ = ["GROWTH", "Formula", "Lengths", "formula", "generalize", "lengths_to_trace"]

Lengths = Mapping[str, int]  # of the named axes

#: By how much lengths grow in the second, third and last trace, the k-th axis by the k-th number. No sum of lengths, each
#: taken up to twice, is the same in all of them. The last is far off, for what changes slowly or late.
GROWTH = ((1, 3, 4, 2, 7, 6), (4, 2, 1, 7, 5, 11), (211, 223, 227, 239, 251, 269))


class Formula(NamedTuple):
    """sum over terms of a factor times a product of lengths."""

    terms: tuple[tuple[int, tuple[str, ...]], ...]

    def at(self, lengths: Lengths) -> int:
        return sum(factor * math.prod(lengths[name] for name in names) for factor, names in self.terms)

    def __str__(self) -> str:
        return " + ".join(
            "*".join([*names, *([str(f)] if f != 1 or not names else [])]) for f, names in self.terms
        )


def lengths_to_trace(first: Lengths) -> list[dict[str, int]]:
    """The lengths of every trace: at least 2 and no two alike, because one row or a square may be another program.

    >>> lengths_to_trace({"L": 5, "S": 5})
    [{'L': 5, 'S': 6}, {'L': 6, 'S': 8}, {'L': 9, 'S': 7}, {'L': 216, 'S': 228}]
    """
    traces = []
    for growth in ((0,), *GROWTH):
        at: dict[str, int] = {}
        for k, (name, length) in enumerate(first.items()):
            size = max(length, 2) + growth[k % len(growth)] + 17 * (k // len(GROWTH[0]))
            while size in at.values():
                size += 1
            at[name] = size
        traces.append(at)
    return traces


def formula(values: Sequence[int], lengths: Sequence[Lengths]) -> Formula:
    """c, c * (a product of lengths), or a sum of lengths, each added or subtracted, and c: the one that fits all.

    >>> print(formula([2 * 5 * 7, 2 * 6 * 9], [{"L": 5, "S": 7}, {"L": 6, "S": 9}]))
    L*S*2
    """
    names = list(lengths[0])
    fitting = [
        found
        for found in (*_products(values[0], names, lengths[0]), *_sums(values[0], names, lengths[0]))
        if all(found.at(at) == value for at, value in zip(lengths, values, strict=True))
    ]
    elsewhere = {name: 10007 + 1009 * k * k for k, name in enumerate(names)}
    number = f"a number that is {', '.join(map(str, values))} at lengths " + ", ".join(
        str(tuple(at.values())) for at in lengths
    )
    if not fitting:
        raise _differ(number)
    if other := next((f for f in fitting if f.at(elsewhere) != fitting[0].at(elsewhere)), None):
        raise _differ(f"{number}, {fitting[0]} or {other} (another example would tell)")
    return fitting[0]


def _products(value: int, names: Sequence[str], at: Lengths) -> Iterator[Formula]:
    yield Formula(((value, ()),))
    for n in range(1, len(names) + 1):
        for chosen in combinations(names, n):
            factor, rest = divmod(value, math.prod(at[name] for name in chosen))
            if not rest:
                yield Formula(((factor, chosen),))


def _sums(value: int, names: Sequence[str], at: Lengths) -> Iterator[Formula]:
    for signs in product((0, 1, -1), repeat=len(names)):
        terms = tuple((sign, (name,)) for sign, name in zip(signs, names, strict=True) if sign)
        left = value - Formula(terms).at(at)
        yield Formula((*terms, (left, ())) if left else terms)


def generalize(
    models: Sequence[Any], lengths: Sequence[Lengths], axes: Mapping[str, Mapping[int, str]]
) -> Any:
    """The first of the models, for lengths of all kinds. axes: the named axes of each input.

    ValueError, a sentence about what differs, if they are not one model.
    """
    model = models[0]
    source = {name: (x, axis) for x, named in axes.items() for axis, name in named.items()}
    writer = _Writer(source)
    for nodes in _aligned([m.graph for m in models]):
        constants = [_constant(node) for node in nodes]
        if len({(x.shape, x.tobytes()) for x in constants}) > 1:
            name = writer.constant(constants, lengths)
            del nodes[0].attribute[:]
            nodes[0].op_type = "Identity"
            nodes[0].input.append(name)
    own = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*writer.nodes, *own])
    _name_shapes(models, lengths)
    return model


def _constant(node: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(node.attribute[0].t)


def _aligned(graphs: Sequence[Any]) -> Iterator[list[Any]]:
    """The constants that stand at the same place of all graphs; an error if anything else differs."""
    for graph in graphs:
        del graph.value_info[:]
    if (
        len({len(graph.node) for graph in graphs}) > 1
        or len({len(graph.initializer) for graph in graphs}) > 1
    ):
        raise _differ(f"{', '.join(str(len(graph.node)) for graph in graphs)} operations")
    for many in zip(*(graph.initializer for graph in graphs), strict=True):
        if len({x.SerializeToString(deterministic=True) for x in many}) > 1:
            raise _differ(f"weights {many[0].name!r} that depend on them")
    for nodes in zip(*(list(graph.node) for graph in graphs), strict=True):
        first = nodes[0]
        same = (first.op_type, first.input, first.output, len(first.attribute))
        if any((n.op_type, n.input, n.output, len(n.attribute)) != same for n in nodes):
            raise _differ(f"{' or '.join(sorted({n.op_type for n in nodes}))} at one place")
        if first.op_type == "Constant" and first.attribute[0].name == "value":
            yield list(nodes)
            continue
        for attributes in zip(*(n.attribute for n in nodes), strict=True):
            if attributes[0].HasField("g"):
                bodies = [attribute.g for attribute in attributes]
                for body in bodies:
                    for output in body.output:
                        output.type.tensor_type.ClearField("shape")
                yield from _aligned(bodies)
            elif len({x.SerializeToString(deterministic=True) for x in attributes}) > 1:
                raise _differ(f"the attribute {attributes[0].name} of {first.op_type}")


class _Writer:
    """Nodes that compute lengths, each written once."""

    def __init__(self, source: Mapping[str, tuple[str, int]]) -> None:
        self.source = source
        self.nodes: list[Any] = []
        self.written: dict[Any, str] = {}

    def constant(self, values: Sequence[Any], lengths: Sequence[Lengths]) -> str:
        """What gives the arrays `values` at `lengths`."""
        from onnx import helper

        first = values[0]
        if first.dtype.kind != "i" or first.ndim > 1:
            raise _differ(f"a constant of {first.dtype} {first.shape} that depends on them")
        entries = [x.ravel().tolist() for x in values]
        if first.ndim == 1 and (len({len(x) for x in entries}) > 1 or len(entries[0]) > 8):
            if any(not x or x != list(range(x[0], x[0] + len(x))) for x in entries):
                raise _differ("a list of numbers that depends on them")
            start = self._formula([x[0] for x in entries], lengths)
            stop = self._formula([x[-1] + 1 for x in entries], lengths)
            name = self._write("Range", [self._scalar(start), self._scalar(stop), self._number(1, ())])
        else:
            pieces = [self._formula(column, lengths) for column in zip(*entries, strict=True)]
            name = pieces[0] if len(pieces) == 1 else self._write("Concat", pieces, axis=0)
            if first.ndim == 0:
                name = self._scalar(name)
        if first.dtype.name != "int64":
            name = self._write("Cast", [name], to=helper.np_dtype_to_tensor_dtype(first.dtype))
        return name

    def _formula(self, values: Sequence[int], lengths: Sequence[Lengths]) -> str:
        """A tensor (1,) that holds them."""
        found = formula(values, lengths)
        names = []
        for factor, axes in found.terms:
            parts = [self._axis(name) for name in axes]
            names.append(
                self._fold("Mul", parts if factor == 1 and parts else [*parts, self._number(factor, (1,))])
            )
        return self._fold("Add", names)

    def _fold(self, operator: str, names: Sequence[str]) -> str:
        total = names[0]
        for name in names[1:]:
            total = self._write(operator, [total, name])
        return total

    def _axis(self, name: str) -> str:
        which, axis = self.source[name]
        return self._write("Shape", [which], start=axis, end=axis + 1)

    def _number(self, value: int, shape: tuple[int, ...]) -> str:
        from onnx import TensorProto, helper

        return self._write("Constant", [], value=helper.make_tensor("", TensorProto.INT64, shape, [value]))

    def _scalar(self, name: str) -> str:
        return self._write("Squeeze", [name])

    def _write(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        node = helper.make_node(operator, inputs, [""], **attributes)
        key = node.SerializeToString(deterministic=True)
        if key not in self.written:
            self.written[key] = node.output[0] = f"lengths/{operator}_{len(self.written)}"
            self.nodes.append(node)
        return self.written[key]


def _name_shapes(models: Sequence[Any], lengths: Sequence[Lengths]) -> None:
    """Gives the lengths of inputs and outputs that changed their formulas for names."""
    for values in zip(*((*m.graph.input, *m.graph.output) for m in models), strict=True):
        for dims in zip(*(x.type.tensor_type.shape.dim for x in values), strict=True):
            sizes = [dim.dim_value for dim in dims]
            if len(set(sizes)) > 1:
                dims[0].dim_param = str(formula(sizes, lengths))


def _differ(what: str) -> ValueError:
    return ValueError(
        f"polyattn.onnx.export: expected one graph for every length, got, from the traced lengths, {what}; export it with "
        "static lengths, or pass what depends on a length as an input"
    )
