"""Masks on grids: pictures, videos and volumes, laid out in one sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyattn.arrays import Array
from polyattn.calls import answers
from polyattn.masks.algebra import Mask
from polyattn.masks.fitting import clipped, sizes
from polyattn.masks.tiles import FULL, PARTIAL, UNSURE, Box, Tile, decide, join
from polyattn.masks.words import word
from polyattn.places import FAR, Positions

Brick = tuple[range, ...]  # cells of a grid: a range along each axis


@dataclass(frozen=True, repr=False)
class Neighborhood(Mask):
    """Keys whose cell lies in the window of the query's cell, along every axis of a grid."""

    shape: tuple[int, ...]  # in cells, row-major
    window: tuple[int, ...]
    causal: tuple[int, ...]  # axes along which no later cell is seen
    each: int  # tokens of a cell, which follow each other
    name: str
    compares_positions = True

    @property
    def _tokens(self) -> int:
        return math.prod(self.shape) * self.each

    def _least(self, axis: int, cell: int) -> int:
        """The first cell of the window of a cell along an axis."""
        n, size = self.shape[axis], self.window[axis]
        if axis in self.causal:
            return max(cell - size + 1, 0)
        return min(max(cell - size // 2, 0), n - size)

    def allowed(self, at: Positions) -> Array:
        q, kv = at.q // self.each, at.kv // self.each
        allowed = self._inside(at.q) & self._inside(at.kv)
        for axis in reversed(range(len(self.shape))):
            n, size = self.shape[axis], self.window[axis]
            here, there = q % n, kv % n
            if axis in self.causal:
                allowed = allowed & (there <= here) & (there > here - size)
            else:
                first = clipped(here - size // 2, 0, n - size)
                allowed = allowed & (first <= there) & (there < first + size)
            q, kv = q // n, kv // n
        return allowed

    def _inside(self, position: Array) -> Array:
        return (position >= 0) & (position < self._tokens)

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        rows, keys = list(self._cells(q0, q1)), list(self._cells(k0, k1))
        tile = join(self._meet(row, key) for row in rows for key in keys)
        inside = min(q0, k0) >= 0 and max(q1, k1) < self._tokens
        return PARTIAL if tile is FULL and not inside else tile

    def _cells(self, first: int, last: int) -> Iterator[Brick]:
        """The cells of the positions from first to last, where they are on the grid."""
        first, last = max(first, 0), min(last, self._tokens - 1)
        return bricks(first // self.each, last // self.each + 1, self.shape) if first <= last else iter(())

    def _meet(self, queries: Brick, keys: Brick) -> Tile:
        """What cells see of cells: along every axis the windows of neighbours overlap or touch, and move one way."""
        tile = FULL
        for axis, (q, kv) in enumerate(zip(queries, keys, strict=True)):
            least = [self._least(axis, cell) for cell in (q[0], q[-1])]
            most = [
                cell if axis in self.causal else first + self.window[axis] - 1
                for cell, first in zip((q[0], q[-1]), least, strict=True)
            ]
            full, empty = least[1] <= kv[0] and kv[-1] <= most[0], kv[-1] < least[0] or most[1] < kv[0]
            tile = tile & decide(full, empty)
        return PARTIAL if tile is UNSURE else tile  # axes are independent: two that cut do not empty

    def __str__(self) -> str:
        causal = f", {list(self.causal)}" if self.causal else ""
        each = f" of {self.each} tokens" if self.each > 1 else ""
        return f"{self.name}({list(self.shape)}{each}, {list(self.window)}{causal})"


def bricks(start: int, stop: int, shape: Sequence[int]) -> Iterator[Brick]:
    """The cells from start to stop - 1 of a row-major grid, as few bricks: at most 2 axes - 1.

    >>> for brick in bricks(1, 9, (3, 4)):
    ...     print(brick)
    (range(0, 1), range(1, 4))
    (range(1, 2), range(0, 4))
    (range(2, 3), range(0, 1))
    """
    if len(shape) == 1:
        yield (range(start, stop),)
        return
    line = math.prod(shape[1:])
    whole = range(-(-start // line), stop // line)
    if whole.start > whole.stop:  # inside one line
        for rest in bricks(start % line, stop - whole.stop * line, shape[1:]):
            yield (range(whole.stop, whole.start), *rest)
        return
    if start % line:
        for rest in bricks(start % line, line, shape[1:]):
            yield (range(whole.start - 1, whole.start), *rest)
    if whole:
        yield (whole, *(range(n) for n in shape[1:]))
    if stop % line:
        for rest in bricks(0, stop % line, shape[1:]):
            yield (range(whole.stop, whole.stop + 1), *rest)


@word
@answers("polyattn.masks.neighborhood")
def neighborhood(
    shape: int | Sequence[int], window: int | Sequence[int], causal: int | Sequence[int] = ()
) -> Mask:
    """NATTEN's neighbourhood: along every axis of a grid a query at i of n sees the window w of cells from

        min(max(i - w // 2, 0), n - w),    on an axis in `causal`: those of i - w + 1, ..., i that there are.

    At a border the window is shifted inward, so that every query sees as many keys. Tokens lie row by row (the last axis
    runs fastest), by position; one that is not on the grid sees nobody and is seen by nobody.

    shape: the grid, one integer for each axis; window: one for all axes, or one for each, at most as large as the
    grid; causal: the axes, by number. ValueError otherwise. Source: Hassani 2022, arXiv:2204.07143; causal axes as in the
    NATTEN library. FULL and EMPTY tiles are found by arithmetic.

    >>> print(neighborhood(5, 3).show(5))
    # # # . .
    # # # . .
    . # # # .
    . . # # #
    . . # # #
    >>> print(neighborhood([2, 3], [2, 2], causal=[0]).show(6))  # axis 0 may be time
    # # . . . .
    # # . . . .
    . # # . . .
    # # . # # .
    # # . # # .
    . # # . # #
    """
    return _grid("neighborhood", shape, window, causal)


@word
@answers("polyattn.masks.sliding_tiles")
def sliding_tiles(shape: int | Sequence[int], tile: int | Sequence[int], window: int | Sequence[int]) -> Mask:
    """Sliding tile attention: a grid is cut into tiles, and a tile sees the `window` of tiles around it, whole.

        neighborhood(shape / tile, window) of the tiles,    tile of a position p = p // (tokens of a tile)

    So tokens lie tile by tile in the sequence, not row by row, and an engine with tiles of that many tokens meets full tiles
    and skips the rest.

    shape: the grid in tokens; tile: its tiles, which divide it; window: in tiles, shifted inward at borders. One integer for
    each axis; for tile and window also one for all. Source: Zhang 2025, arXiv:2502.04507.

    >>> print(sliding_tiles([2, 6], [2, 2], [1, 2]).show(12))  # 1 x 3 tiles of 4 tokens
    # # # # # # # # . . . .
    # # # # # # # # . . . .
    # # # # # # # # . . . .
    # # # # # # # # . . . .
    # # # # # # # # . . . .
    # # # # # # # # . . . .
    # # # # # # # # . . . .
    # # # # # # # # . . . .
    . . . . # # # # # # # #
    . . . . # # # # # # # #
    . . . . # # # # # # # #
    . . . . # # # # # # # #
    """
    grid = sizes(shape, "sliding_tiles", "shape")
    cut = sizes(tile, "sliding_tiles", "tile", len(grid))
    if any(n % size for n, size in zip(grid, cut, strict=True)):
        raise ValueError(
            f"polyattn.masks.sliding_tiles: expected tiles that divide the grid {grid}, got {cut}; pad the grid"
        )
    tiles = tuple(n // size for n, size in zip(grid, cut, strict=True))
    return _grid("sliding_tiles", tiles, window, (), math.prod(cut))


def _grid(
    name: str,
    shape: int | Sequence[int],
    window: int | Sequence[int],
    causal: int | Sequence[int],
    each: int = 1,
) -> Mask:
    who = f"polyattn.masks.{name}"
    shape = sizes(shape, name, "shape")
    window = sizes(window, name, "window", len(shape))
    if any(size > n for size, n in zip(window, shape, strict=True)):
        what = "tiles of the grid" if name == "sliding_tiles" else "grid"
        raise ValueError(
            f"{who}: expected a window within the {what}, {shape}, got {window}; make it smaller"
        )
    if math.prod(shape) * each >= FAR:
        raise ValueError(
            f"{who}: expected a grid of fewer than 2**30 tokens, got {math.prod(shape) * each}; cut it into parts"
        )
    axes = (causal,) if isinstance(causal, int) and not isinstance(causal, bool) else causal
    if not isinstance(axes, Sequence) or any(
        isinstance(axis, bool) or axis not in range(len(shape)) for axis in axes
    ):
        raise ValueError(
            f"{who}: expected causal to be numbers of axes, 0 to {len(shape) - 1}, got {causal!r}; write causal=[0] for the "
            "first axis"
        )
    return Neighborhood(shape, window, tuple(sorted(set(axes))), each, name)
