"""What was computed from what, and the walk back along it: reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from polyattn.arrays import Array, Backend

#: pull(backend, d_out, out, *arguments, **options) -> the gradient for one argument.
Pull = Callable[..., Any]
#: The pulls of a function, by the number of the argument.
Rule = Mapping[int, Pull] | Sequence[Pull | None]

_ORDER = count()


class Part(NamedTuple):
    """A gradient that is 0 but for a box, which begins at `start`."""

    start: tuple[int, ...]
    tile: Array


class Node:
    """An array that something was computed from: whoever knows its gradient pulls it back to the node's parents.

    A node knows its parents and nobody its children, so that what nobody can ask for any more is freed at once.
    """

    __slots__ = ("backend", "dtype", "order", "shape")

    def __init__(self, backend: Backend, like: Array) -> None:
        self.backend, self.shape, self.dtype = backend, tuple(like.shape), like.dtype
        self.order = next(_ORDER)

    def pull(self, d: Any) -> Iterable[tuple[Node, Any]]:
        """The share of each parent in the gradient `d` for this one; of what one differentiates for, none."""
        return ()

    def sum(self) -> Sum:
        return Sum(self)


class Step(Node):
    """The result of one function of the standard, whose rule stands in `rules.py`."""

    __slots__ = ("arguments", "options", "out", "parents", "rule")

    def __init__(
        self,
        backend: Backend,
        parents: list[tuple[int, Node]],
        rule: Rule,
        out: Array,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(backend, out)
        self.parents, self.rule, self.out = parents, rule, out
        self.arguments, self.options = arguments, options

    def pull(self, d: Any) -> Iterator[tuple[Node, Any]]:
        for i, parent in self.parents:
            pull = self.rule[i]
            if pull is not None:
                yield parent, pull(self.backend, d, self.out, *self.arguments, **self.options)


class Block(Node):
    """A function of several results with a pullback of its own, `Backend.custom_vjp`."""

    __slots__ = ("arrays", "backward", "outputs", "parents")

    def __init__(
        self, backend: Backend, parents: list[tuple[int, Node]], backward: Any, arrays: Any, outputs: Any
    ) -> None:
        super().__init__(backend, outputs[0])
        self.parents, self.backward, self.arrays, self.outputs = parents, backward, arrays, outputs

    def pull(self, d: Mapping[int, Array]) -> Iterator[tuple[Node, Any]]:
        zeros = self.backend.xp.zeros_like
        every = [d[i] if i in d else zeros(out) for i, out in enumerate(self.outputs)]
        found = self.backward(self.arrays, self.outputs, every)
        for i, parent in self.parents:
            if found[i] is not None:
                yield parent, found[i]

    def sum(self) -> Sum:
        return Slots(self)


class Output(Node):
    """One result of a `Block`."""

    __slots__ = ("block", "number")

    def __init__(self, block: Block, number: int) -> None:
        super().__init__(block.backend, block.outputs[number])
        self.block, self.number = block, number

    def pull(self, d: Array) -> Iterator[tuple[Node, Any]]:
        yield self.block, (self.number, d)


class Sum:
    """The gradient for a node, as its children hand in their shares."""

    def __init__(self, node: Node) -> None:
        self.node, self.total, self.mine = node, None, False

    total: Any
    mine: bool  # nobody else holds `total`, so that it may be written to

    def add(self, share: Any) -> None:
        node, b = self.node, self.node.backend
        if not isinstance(share, Part):
            share = fitted(b, share, node.shape, node.dtype)
            self.total, self.mine = (
                (share, False) if self.total is None else (b.astype(self.total + share, node.dtype), True)
            )
            return
        if self.total is None:
            self.total = b.xp.zeros(node.shape, dtype=node.dtype, device=b.device(share.tile))
        elif not self.mine:
            self.total = b.xp.asarray(self.total, copy=True)
        self.total, self.mine = b.add_at(self.total, share.start, b.astype(share.tile, node.dtype)), True


class Slots(Sum):
    """Those for the results of a block, by their numbers."""

    def add(self, share: tuple[int, Array]) -> None:
        self.total = {**(self.total or {}), share[0]: share[1]}


def fitted(b: Backend, d: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A gradient for an array of this shape and dtype: what was broadcast is summed.

    y = x broadcast:  dx = sum of dy over the axes that x had not, or had with the size 1
    """
    there = tuple(d.shape)
    if there != shape:
        more = len(there) - len(shape)
        axes = (
            *range(more),
            *(more + i for i, n in enumerate(shape) if n == 1 and there[more + i] != 1),
        )
        wide = b.astype(d, b.compute_dtype(d.dtype))
        d = b.xp.reshape(b.xp.sum(wide, axis=axes), shape) if axes else wide
    return b.astype(d, dtype)


def walked(ends: Iterable[tuple[Node, Array]]) -> dict[Node, Array]:
    """The gradients of sum(end * d) over all ends, for the nodes without parents."""
    sums: dict[Node, Sum] = {}
    queue: list[tuple[int, Node]] = []  # the youngest first, so that nobody is asked before all its children

    def hand_in(node: Node, share: Any) -> None:
        if node not in sums:
            sums[node] = node.sum()
            heappush(queue, (-node.order, node))
        sums[node].add(share)

    for node, d in ends:
        hand_in(node, d)
    found: dict[Node, Array] = {}
    while queue:
        _, node = heappop(queue)
        d = sums.pop(node).total
        if type(node) is Node:
            found[node] = d
        for parent, share in node.pull(d):
            hand_in(parent, share)
    return found
