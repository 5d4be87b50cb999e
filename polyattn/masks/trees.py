"""A tree of drafted tokens, each of which sees its ancestors."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from polyattn.arrays import Array, backend_of, eagerly, is_array, readable
from polyattn.calls import answers, integral
from polyattn.masks.algebra import Mask
from polyattn.masks.fitting import clipped, positive, reshape
from polyattn.masks.tiles import UNSURE, Box, Tile, decide
from polyattn.places import FAR, Frame, Positions

WHO = "polyattn.masks.tree"


@dataclass(frozen=True, repr=False, eq=False)
class Tree(Mask):
    """Keys whose subtree has the query in it: nodes are numbered so that a subtree is a range of numbers."""

    numbers: Array  # (batch|1, L), of the node of every row
    starts: Array  # (batch|1, S): the subtree of every key
    stops: Array
    known: tuple[list[list[int]], ...] | None = None  # the three, while boxes are looked at

    def allowed(self, at: Positions) -> Array:
        number = at.cut(reshape(self.numbers, (self.numbers.shape[0], 1, -1, 1)))
        start, stop = (at.cut(reshape(x, (x.shape[0], 1, 1, -1))) for x in (self.starts, self.stops))
        return (start <= number) & (number < stop)

    def read(self) -> Tree:
        arrays = (self.numbers, self.starts, self.stops)
        if not readable(*arrays):
            return self
        return replace(self, known=tuple(backend_of(x).to_list(x) for x in arrays))

    def box(self, box: Box) -> Tile:
        if self.known is None:
            return UNSURE
        all_see, none_sees = True, True
        for b in range(self.batch_size()) if box.b is None else (box.b,):
            numbers, starts, stops = (x[b % len(x)] for x in self.known)
            rows = sorted(numbers[box.rows.start : box.rows.stop])
            for start, stop in zip(
                starts[box.keys.start : box.keys.stop], stops[box.keys.start : box.keys.stop], strict=True
            ):
                seeing = bisect_left(rows, stop) - bisect_left(rows, start)
                all_see, none_sees = all_see and seeing == len(rows), none_sees and seeing == 0
        return decide(all_see, none_sees)

    def batch_size(self) -> int:
        return max(x.shape[0] for x in (self.numbers, self.starts))

    def own_size(self) -> tuple[int, int]:
        return self.numbers.shape[-1], self.starts.shape[-1]

    def fit(self, frame: Frame) -> Tree:
        if self.own_size() != (frame.rows, frame.keys) or self.batch_size() not in (1, frame.batch):
            rows, keys = self.own_size()
            raise ValueError(
                f"{frame.who}: expected the {rows} nodes and {keys} keys of masks.tree, of {self.batch_size()} items, to be "
                f"the rows and keys, got scores (B, L, S) = {(frame.batch, frame.rows, frame.keys)}; give a parent for each "
                "row, and say how many keys there are before and in all"
            )
        return self

    def __str__(self) -> str:
        return "tree(...)"


@answers(WHO)
def tree(parents: Array, prefix: int | Array = 0, keys: int | None = None) -> Mask:
    """A node sees its ancestors, itself, and the whole prefix: many drafted continuations are verified in one call.

        kv < prefix, or node kv - prefix is row q or an ancestor of it

    parents: integers (L,) or (batch, L), the row of each node's parent, which comes before it, or -1 beside the prefix.
    prefix: the keys cached before the nodes, an integer or integers (batch,); keys: how many there are in all, prefix + L by
    default; slots after the nodes are seen by nobody. Rows and keys count, not positions: those (for a rotary
    embedding, prefix + depth) may be told beside it. Source: Miao 2023, SpecInfer, arXiv:2305.09781; Cai 2024,
    Medusa, arXiv:2401.10774. O(L^2) once, to number the nodes; O(L + S) is kept.

    >>> import numpy as np
    >>> print(tree(np.array([-1, 0, 0, 1]), prefix=2).show(4, 6))
    # # # . . .
    # # # # . .
    # # # . # .
    # # # # . #
    """
    integral(WHO, "parents", parents)
    if parents.ndim not in (1, 2) or 0 in parents.shape:
        raise ValueError(
            f"{WHO}: expected parents of shape (L,) or (batch, L), at least one, got {tuple(parents.shape)}; give one per node"
        )
    nodes = int(parents.shape[-1])
    if is_array(prefix):
        integral(WHO, "prefix", prefix)
        if prefix.ndim > 1:
            raise ValueError(
                f"{WHO}: expected prefix as one integer or of shape (batch,), got {tuple(prefix.shape)}; give one per item"
            )
    else:
        prefix = positive(prefix, "tree", "prefix", 0)
    with eagerly([x for x in (parents, prefix) if is_array(x)]):
        most = _longest(prefix)
        if keys is None and most is None:
            raise ValueError(
                f"{WHO}: expected keys beside a traced prefix, got None; say how many slots the cache has"
            )
        keys = (most or 0) + nodes if keys is None else positive(keys, "tree", "keys", (most or 0) + nodes)
        if keys >= FAR:
            raise ValueError(f"{WHO}: expected fewer than 2**30 keys, got {keys}; cut them into parts")
        return _laid(reshape(parents, (-1, nodes)), prefix, keys)


def _longest(prefix: int | Array) -> int | None:
    """The longest prefix of the items; None while it is traced."""
    if isinstance(prefix, int):
        return prefix
    if not readable(prefix):
        return None
    lengths = backend_of(prefix).to_list(reshape(prefix, (-1,)))
    if min(lengths) < 0:
        raise ValueError(f"{WHO}: expected a prefix of at least 0 keys, got {min(lengths)}; it is a length")
    return max(lengths)


def _laid(parents: Array, prefix: int | Array, keys: int) -> Tree:
    """The numbers of the nodes on the rows, and their subtrees on the keys behind the prefix."""
    backend = backend_of(parents)
    xp = backend.xp
    numbers, sizes = _number(parents)
    column = xp.reshape(backend.arange(0, keys, parents), (1, keys))
    node = column - (prefix if isinstance(prefix, int) else xp.reshape(prefix, (-1, 1)))
    index = clipped(node, 0, parents.shape[1] - 1)
    items = max(parents.shape[0], node.shape[0])
    item = xp.reshape(backend.arange(0, items, parents), (items, 1))
    where = (item if parents.shape[0] > 1 else item * 0, index)
    starts = xp.where(node < 0, 0, numbers[where])
    stops = xp.where(node < 0, parents.shape[1], (numbers + sizes)[where])
    return Tree(numbers, starts, xp.where(node < parents.shape[1], stops, starts))


def _number(parents: Array) -> tuple[Array, Array]:
    """The number of every node, its parent's before its own and those of its subtree in a row after it; the subtree's size."""
    backend = backend_of(parents)
    xp, n = backend.xp, parents.shape[1]
    if readable(parents):
        for tree in backend.to_list(parents):
            for node, parent in enumerate(tree):
                if not -1 <= parent < node:
                    raise ValueError(
                        f"{WHO}: expected the parent of node {node} to be -1 or a node before it, got {parent}; sort the "
                        "nodes by depth"
                    )
    node = backend.arange(0, n, parents)
    above, below = parents[:, :, None], parents[:, None, :]  # of the node of a row, and of that of a column
    of = (above == node) | (node[:, None] == node)  # whether the column is an ancestor of the row, or itself
    for _ in range(max(n - 1, 0).bit_length()):  # twice as far with each step
        steps = backend.astype(of, xp.float32)
        of = xp.matmul(steps, steps) > 0

    def summed(kept: Array, x: Array, axis: int) -> Array:
        return backend.astype(xp.sum(xp.where(kept, x, 0), axis=axis), node.dtype)

    sizes = summed(of, xp.ones_like(above + node), 1)
    sibling = (above == below) & (node < node[:, None])
    ahead = 1 + summed(sibling, sizes[:, None, :], 2)  # from a parent's number to that of the node
    return summed(of, ahead[:, None, :], 2) - 1, sizes
