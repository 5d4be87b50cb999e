"""Loops and tiles: what the blockwise engine is made of, in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polyattn.arrays.numbers import Array, Numbers


class TileSizes(NamedTuple):
    """How the blockwise engine cuts a problem."""

    rows: int  # of a tile of scores
    keys: int
    kv_heads: int | None  # of one block, with one batch item; None = all heads of all items in one block


class Loops(Numbers):
    """The part of a `Backend` that repeats, cuts and puts together."""

    def tile_sizes(self, p: Any) -> TileSizes:
        """The sizes in which the engine cuts a Problem."""
        return TileSizes(rows=256, keys=512, kv_heads=1)

    def map(self, f: Callable[[Any], tuple[Array, ...]], n: int) -> tuple[Array, ...]:
        """f(0), ..., f(n - 1), in any order, each of their arrays stacked along a new first axis."""
        results = [f(i) for i in range(n)]
        return tuple(self.xp.stack(parts) for parts in zip(*results, strict=True))

    def fold(self, n: Any, step: Callable[[Any, Any], Any], state: Any) -> Any:
        """step(n - 1, ... step(1, step(0, state))); n may be an element of a `table`."""
        for i in range(n):
            state = step(i, state)
        return state

    def scan(self, n: int, step: Callable[[Any, Any], tuple[Any, Array]], state: Any) -> tuple[Any, Array]:
        """`fold` whose step also gives an array: the last state, and those arrays stacked along a new first axis."""
        outputs = []
        for i in range(n):
            state, output = step(i, state)
            outputs.append(output)
        return state, self.xp.stack(outputs)

    def table(self, numbers: Any, like: Array) -> Any:
        """Nested lists of integers in a form that is indexed by what `map` and `fold` count with."""
        return numbers

    def tile(self, x: Array, start: Any, size: int, axis: int) -> Array:
        """`size` consecutive elements of `x` along the negative `axis`."""
        return x[(..., slice(start, start + size), *(slice(None),) * (-axis - 1))]

    def add_at(self, x: Array, start: Sequence[Any], tile: Array) -> Array:
        """`x` with `tile` added to the part that begins at `start`; may overwrite `x`."""
        x[tuple(slice(i, i + n) for i, n in zip(start, tile.shape, strict=True))] += tile
        return x

    def summed_at(self, x: Array, index: Array, count: int) -> Array:
        """(B, H, count) of x (B, H, n): at each place the sum of those whose `index` (1 or B, n) it is.

        Those with an index beyond 0 .. count - 1 count nowhere.
        """
        places = self.xp.reshape(self.arange(0, count, x), (1, 1, count))
        return self.matmul(x, self.astype(index[..., None] == places, x.dtype))

    def put(self, x: Array, start: Any, tile: Array, axis: int, *, over: bool = False) -> Array:
        """`x` with `tile` in place of the part that begins at `start` of the negative `axis`; `x` stays as it is.

        start: an integer, or a 0-d integer array that a compiler may trace. over: `x` itself may become the result.
        """
        xp = self.xp
        size, new = x.shape[axis], tile.shape[axis]
        column = (-1, *(1,) * (-axis - 1))
        index = self.arange(0, size, x) - start
        source = self.take(tile, xp.clip(index, 0, max(new - 1, 0)), axis) if new else x
        return xp.where(xp.reshape((index >= 0) & (index < new), column), source, x)

    def product(self, a: Array, b: Array, slot: int) -> Array:
        """`matmul` whose result the caller overwrites and lets go of before it asks for `slot` again."""
        return self.matmul(a, b)

    def exp_of_difference(self, x: Array, y: Array) -> Array:
        """exp(x - y); may overwrite `x`, which is a `product`."""
        return self.xp.exp(x - y)
