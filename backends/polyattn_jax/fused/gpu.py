"""Programs of a GPU, through Triton: each loops over its own list of visits, sums stay in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from polyattn.arrays import Array
from polyattn.implementations.fused import Run, Visits
from polyattn_jax.fused.launch import KEY_AXIS, ROW_AXIS, Kernel, Laid, Shape, TileOf

__all__ = ["listed", "run", "wide"]


def wide(n: int) -> int:
    """The sizes of tiles are powers of two, and products have at least 16 of everything."""
    return max(16, 1 << (n - 1).bit_length())


def listed(visits: Visits, splits: int) -> tuple[Any, Any, int]:
    """For each item, line and split: its first run, its first masked one and the one behind its last; and the runs."""
    bounds: list[tuple[int, int, int]] = []
    runs: list[tuple[int, int]] = []
    for item in visits:
        for line in item:
            tiles = sum(run.stop - run.start for run in line)
            for n in range(splits):
                part = list(_between(line, tiles * n // splits, tiles * (n + 1) // splits))
                masked = len(runs) + sum(not run.masked for run in part)
                bounds.append((len(runs), masked, len(runs) + len(part)))
                runs += [(run.start, run.stop) for run in part]
    return np.array(bounds, np.int32), np.array(runs or [(0, 0)], np.int32), len(bounds) // len(visits)


def _between(line: Sequence[Run], first: int, last: int) -> Iterator[Run]:
    """The tiles number first .. last - 1 of a line."""
    for run in line:
        size = run.stop - run.start
        start, stop = max(first, 0), min(last, size)
        if start < stop:
            yield Run(run.start + start, run.start + stop, run.masked)
        first, last = first - size, last - size


class _Program:
    """`Program` of polyattn.implementations.fused.body."""

    def __init__(self, kernel: Kernel, refs: Sequence[Any], lists: Sequence[Any]) -> None:
        n = len(kernel.inputs)
        self._kernel, self._lists = kernel, lists
        self._inputs = dict(zip(kernel.inputs, refs[:n], strict=True))
        self._outputs = refs[n:]
        down, across = kernel.shape.tiles
        at = pl.program_id(0)
        if kernel.lists is None:
            heads = kernel.outputs[0].array.shape[1]
            at, j = at // across, at % across
            at, i = at // down, at % down
            self._place = (i, j, at // heads, at % heads)
            self._split = 0
            return
        lines, heads = (
            (down, kernel.shape.heads)
            if kernel.side == "query"
            else (across, kernel.shape.heads // kernel.inner)
        )
        at, self._split = at // kernel.splits, at % kernel.splits
        at, line = at // lines, at % lines
        b, h = at // heads, at % heads
        self._list = ((b if kernel.lists.items > 1 else 0) * lines + line) * kernel.splits + self._split
        self._place = (line, 0, b, h) if kernel.side == "query" else (0, line, b, h * kernel.inner)

    @property
    def sink(self) -> Array | None:
        return self._kernel.sink(lambda name: self._load(name, *self._place))

    def _load(self, name: str, i: Any, j: Any, b: Any, h: Any) -> Array:
        x = self._kernel.inputs[name]
        part, mask = _part(self._kernel.shape, x, self._inputs[name], i, j, b, h)
        value = triton.load(part, mask=mask, other=None if mask is None else jnp.inf if name == "lse" else 0)
        if x.kind == "by row":
            return value[:, None]
        return value[None, :] if x.kind == "by key" else value

    def _tile(self, kind: str, *place: Any) -> TileOf:
        (rows, keys), (i, j, *_) = self._kernel.shape.tile, place
        row = jnp.arange(rows, dtype=jnp.int32)[:, None] + i * rows
        key = jnp.arange(keys, dtype=jnp.int32)[None, :] + j * keys
        return TileOf(self._kernel, kind, lambda name: self._load(name, *place), (row, key))

    def fold(self, step: Callable[[Any, Any], Any], finished: Callable[[Any], None]) -> None:
        state = self._kernel.state
        start = [jnp.full(sizes, fill, jnp.float32) for sizes, fill in state]
        kind = type(state)
        sums = tuple(start) if kind is tuple else kind._make(start)
        i, j, b, h = self._place
        if self._kernel.lists is None:
            items, each = self._kernel.over

            def item(n: Any, sums: Any) -> Any:
                place = (i, j, b if items == 1 else n // each, h if each == 1 else n % each)
                return step(self._tile("masked", *place), sums)

            return finished(_repeat(items * each, item, sums))
        bounds, runs = self._lists

        def head(g: Any, sums: Any) -> Any:
            for name, n in (("open", 0), ("masked", 1)):
                if name not in self._kernel.kinds:
                    continue

                def visit(other: Any, sums: Any, name: str = name) -> Any:
                    place = (i, other) if self._kernel.side == "query" else (other, j)
                    return step(self._tile(name, *place, b, h + g), sums)

                def run(r: Any, sums: Any, visit: Any = visit) -> Any:
                    return jax.lax.fori_loop(runs[r, 0], runs[r, 1], visit, sums)

                sums = jax.lax.fori_loop(bounds[self._list, n], bounds[self._list, n + 1], run, sums)
            return sums

        return finished(_repeat(self._kernel.inner, head, sums))

    def write(self, *results: Array) -> None:
        i, j, b, h = self._place
        for ref, x, out in zip(self._outputs, results, self._kernel.outputs, strict=True):
            shape = self._kernel.shape
            # Splits lie one behind the other along the batch.
            part, mask = _part(shape, out, ref, i, j, b + self._split * shape.batch, h)
            if out.kind == "by row":
                x = jnp.reshape(x, (-1,))
                if x.shape != (shape.tile.rows,):  # one number for all: in the first place
                    x = jnp.where(jnp.arange(shape.tile.rows, dtype=jnp.int32) == 0, x, 0.0)
            if out.kind == "by key":
                x = jnp.reshape(x, (-1,))
            triton.store(part, x.astype(ref.dtype), mask=mask)


def _repeat(n: int, step: Callable[[Any, Any], Any], state: Any) -> Any:
    return step(jnp.int32(0), state) if n == 1 else jax.lax.fori_loop(jnp.int32(0), jnp.int32(n), step, state)


def _part(shape: Shape, x: Laid, ref: Any, i: Any, j: Any, b: Any, h: Any) -> tuple[Any, Array | None]:
    """What a program has of an array, and which of it is there."""
    batch, heads = x.array.shape[:2]
    b, h = b if batch > 1 else 0, h // (shape.heads // heads) if heads > 1 else 0
    if x.kind == "by head":
        return ref.at[tuple(jnp.int32(n) if isinstance(n, int) else n for n in (b, h))], None
    axes = []  # first, size, end
    if x.kind in ROW_AXIS:
        axes.append((i * shape.tile.rows, shape.tile.rows, shape.rows))
    if x.kind in KEY_AXIS:
        axes.append((j * shape.tile.keys, shape.tile.keys, shape.keys))
    if x.kind in ("query", "key"):
        axes.append((jnp.int32(0), wide(x.array.shape[-1]), x.array.shape[-1]))
    mask = None
    for axis, (first, size, end) in enumerate(axes):
        if end % size:
            there = jnp.arange(size, dtype=jnp.int32) + first < end
            there = there if len(axes) == 1 else there[:, None] if axis == 0 else there[None, :]
            mask = there if mask is None else mask & there
    if mask is not None:
        mask = jnp.broadcast_to(mask, tuple(size for _, size, _ in axes))
    index: list[Any] = [b, h, 0][: 4 - len(axes)]
    index = [jnp.int32(n) if isinstance(n, int) else n for n in index]  # the interpreter wants arrays
    return ref.at[(*index, *(pl.ds(first, size) for first, size, _ in axes))], mask


def run(kernel: Kernel, interpret: Any, warps: int) -> list[Array]:
    """The outputs of a kernel."""
    shape = kernel.shape
    down, across = shape.tiles
    lists = () if kernel.lists is None else (kernel.lists.first, kernel.lists.second)
    if kernel.lists is None:
        batch, heads = kernel.outputs[0].array.shape[:2]
        programs = batch * heads * down * across
    else:
        lines = down if kernel.side == "query" else across
        programs = shape.batch * (shape.heads // kernel.inner) * lines * kernel.splits

    def body(*refs: Any) -> None:
        kernel.body(_Program(kernel, refs[len(lists) :], refs[: len(lists)]))

    return pl.pallas_call(
        body,
        out_shape=[x.array for x in kernel.outputs],
        grid=(programs,),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
        interpret=interpret,
        name=f"polyattn_{kernel.body.__name__}",
    )(*lists, *(x.array for x in kernel.inputs.values()))
