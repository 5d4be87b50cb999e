"""Programs of a TPU: a grid walks along the lists of visits, blocks are fetched ahead, sums stay in vector memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from polyattn.arrays import Array
from polyattn.implementations.fused import Visits
from polyattn_jax.fused.launch import KEY_AXIS, ROW_AXIS, Kernel, Laid, Shape, TileOf

__all__ = ["listed", "run"]

_HOW = {"open": 0, "masked": 1}
_NOT_AT_ALL = 2  # nothing is met: what is there is written


def listed(visits: Visits, splits: int) -> tuple[Any, Any, int]:
    """Visits one after the other, for each batch item: whose they are; and 4 * whom, and how, they meet; how many."""
    items = []
    for item in visits:
        steps = []
        for i, line in enumerate(item):
            met = [(i, 4 * other + run.masked) for run in line for other in range(run.start, run.stop)]
            steps += met or [(i, _NOT_AT_ALL)]
        items.append(steps)
    longest = max(map(len, items))
    steps = [step for item in items for step in item + [(item[-1][0], _NOT_AT_ALL)] * (longest - len(item))]
    whose, met = np.array(steps, np.int32).T
    return whose, met, longest


class Step(NamedTuple):
    """Where a program is: item, head, tile of queries and of keys; how they meet; whether it begins or ends."""

    b: Any
    h: Any
    i: Any
    j: Any
    how: Any
    first: Any
    last: Any


def _walk(kernel: Kernel) -> tuple[tuple[int, ...], Callable[..., Step]]:
    """The grid, and where its programs are."""
    if kernel.lists is None:
        return _over_items(kernel)
    shape, items, steps = kernel.shape, kernel.lists.items, kernel.lists.steps

    def where(b: Any, h: Any, n: Any, *rest: Any) -> Step:
        *inner, whose, met = rest
        start = b * steps if items > 1 else 0
        at = start + n
        line, visit = whose[at], met[at]
        other = visit >> 2
        first = (n == 0) | (whose[start + jnp.maximum(n - 1, 0)] != line)
        last = (n == steps - 1) | (whose[start + jnp.minimum(n + 1, steps - 1)] != line)
        if kernel.side == "query":
            return Step(b, h, line, other, visit & 3, first, last)
        if inner:
            (g,) = inner
            first, last = first & (g == 0), last & (g == kernel.inner - 1)
            h = h * kernel.inner + g
        return Step(b, h, other, line, visit & 3, first, last)

    inner = (kernel.inner,) if kernel.inner > 1 else ()
    return (shape.batch, shape.heads // kernel.inner, steps, *inner), where


def _over_items(kernel: Kernel) -> tuple[tuple[int, ...], Callable[..., Step]]:
    """One tile of scores after the other, each with all items and heads that it belongs to."""
    (items, each), (batch, heads) = kernel.over, kernel.outputs[0].array.shape[:2]

    def where(b: Any, h: Any, i: Any, j: Any, n: Any, *lists: Any) -> Step:
        item = b if items == 1 else n // each
        head = h if each == 1 else n % each
        return Step(item, head, i, j, _HOW["masked"], n == 0, n == items * each - 1)

    return (batch, heads, *kernel.shape.tiles, items * each), where


def _block(x: Laid, shape: Shape, where: Callable[..., Step]) -> pl.BlockSpec:
    """How an array is cut."""
    if x.kind == "by head":
        return pl.BlockSpec(memory_space=pltpu.SMEM)
    batch, heads, *_, width = x.array.shape
    rows, keys = shape.tile
    sizes = {
        "query": (rows, width),
        "key": (keys, width),
        "by row": (1, rows),
        "by key": (1, keys),
        "by score": (rows, keys),
    }[x.kind]

    def index(*at: Any) -> tuple[Any, ...]:
        s = where(*at)
        # The array may have a head for each head of the programs, for each kv head, or one for all.
        h = 0 if heads == 1 else s.h // (shape.heads // heads)
        place = {
            "query": (s.i, 0),
            "key": (s.j, 0),
            "by row": (0, s.i),
            "by key": (0, s.j),
            "by score": (s.i, s.j),
        }[x.kind]
        return (s.b if batch > 1 else 0, h, *place)

    return pl.BlockSpec((None, None, *sizes), index)


class _Program:
    """`Program` of polyattn.implementations.fused.body, at one step of the grid."""

    def __init__(self, kernel: Kernel, step: Step, refs: Sequence[Any]) -> None:
        n, m = len(kernel.inputs), len(kernel.outputs)
        self._kernel, self._step = kernel, step
        self._inputs = dict(zip(kernel.inputs, refs[:n], strict=True))
        self._outputs, self._state = refs[n : n + m], refs[n + m :]

    @property
    def sink(self) -> Array | None:
        return self._kernel.sink(self._load)

    def _load(self, name: str) -> Array:
        ref, x, step = self._inputs[name], self._kernel.inputs[name], self._step
        if x.kind == "by head":
            batch, heads = x.array.shape
            return ref[step.b if batch > 1 else 0, step.h if heads > 1 else 0]
        value = ref[...]
        if x.kind == "by row":
            value = jnp.reshape(value, (-1, 1))
        # What lies beyond the end of an array is anything.
        shape, beyond = self._kernel.shape, jnp.inf if name == "lse" else 0
        for axis, size, end, at in (
            (ROW_AXIS.get(x.kind), shape.tile.rows, shape.rows, step.i),
            (KEY_AXIS.get(x.kind), shape.tile.keys, shape.keys, step.j),
        ):
            if axis is not None and end % size:
                there = jax.lax.broadcasted_iota(jnp.int32, _line(value, axis), axis) < end - at * size
                value = jnp.where(there, value, jnp.full_like(value, beyond))
        return value

    def _tile(self, kind: str) -> TileOf:
        (rows, keys), step = self._kernel.shape.tile, self._step
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) + step.i * rows
        key = jax.lax.broadcasted_iota(jnp.int32, (1, keys), 1) + step.j * keys
        return TileOf(self._kernel, kind, self._load, (row, key))

    def fold(self, step: Callable[[Any, Any], Any], finished: Callable[[Any], None]) -> None:
        kind = type(self._kernel.state)

        def load() -> Any:
            return (
                kind._make(ref[...] for ref in self._state)
                if kind is not tuple
                else tuple(ref[...] for ref in self._state)
            )

        @pl.when(self._step.first)
        def _() -> None:
            for ref, (_, fill) in zip(self._state, self._kernel.state, strict=True):
                ref[...] = jnp.full(ref.shape, fill, ref.dtype)

        for name in self._kernel.kinds:

            @pl.when(self._step.how == _HOW[name])
            def _(name: str = name) -> None:
                for ref, x in zip(self._state, step(self._tile(name), load()), strict=True):
                    ref[...] = x

        @pl.when(self._step.last)
        def _() -> None:
            finished(load())

    def write(self, *results: Array) -> None:
        for ref, x, out in zip(self._outputs, results, self._kernel.outputs, strict=True):
            if out.kind == "by row":
                x = jnp.reshape(x, (1, -1))
                if x.shape != ref.shape:  # one number for all: in the first place
                    x = jnp.where(jax.lax.broadcasted_iota(jnp.int32, ref.shape, 1) == 0, x, 0.0)
            ref[...] = x.astype(ref.dtype)


def _line(x: Array, axis: int) -> tuple[int, int]:
    return (x.shape[0], 1) if axis == 0 else (1, x.shape[1])


def run(kernel: Kernel, interpret: Any, memory: int) -> list[Array]:
    """The outputs of a kernel; memory: bytes that it may take of a chip's vector memory."""
    grid, where = _walk(kernel)
    lists = () if kernel.lists is None else (kernel.lists.first, kernel.lists.second)

    def body(*refs: Any) -> None:
        step = where(*(pl.program_id(n) for n in range(len(grid))), *refs[: len(lists)])
        kernel.body(_Program(kernel, step, refs[len(lists) :]))

    return pl.pallas_call(
        body,
        out_shape=[x.array for x in kernel.outputs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(lists),
            grid=grid,
            in_specs=[_block(x, kernel.shape, where) for x in kernel.inputs.values()],
            out_specs=[_block(x, kernel.shape, where) for x in kernel.outputs],
            scratch_shapes=[pltpu.VMEM(sizes, jnp.float32) for sizes, _ in kernel.state],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 2 + ("arbitrary",) * (len(grid) - 2),
            vmem_limit_bytes=memory,
        ),
        interpret=interpret,
        name=f"polyattn_{kernel.body.__name__}",
    )(*lists, *(x.array for x in kernel.inputs.values()))
