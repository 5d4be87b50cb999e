"""Attention as a map over query tiles of a fold over key tiles: O(L + S) memory, forward and backward.

    def query_tile(i):
        return finish(fold(key_tiles(i), lambda j, seen: merge(seen, lift(scores(i, j), v(j))), nothing))

One source for every array library; loops, tiles and derivatives come from its adapter. Tiles that the mask
empties are skipped, tiles that it fills are computed without mask arithmetic. The backward rule saves
(q, k, v, out, lse) alone and computes every tile again (Dao 2022, arXiv:2205.14135, algorithm 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from polyattn.backend import Array, Backend, Schedule
from polyattn.masks.tiles import EMPTY, FULL
from polyattn.positions import Positions
from polyattn.problem import Problem
from polyattn.reference import allowed_at, dropout_at, scores_at, sink, visible_keys
from polyattn.softmax import Partial, finish, lift, log_sum, merge


@dataclass(frozen=True)
class Blockwise:
    """The blockwise implementation with tiles of a given size; None leaves the size to the adapter.

    >>> import numpy as np
    >>> from polyattn import Blockwise, attention
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> attention(x, x, x, is_causal=True, implementation=Blockwise(rows=2, keys=2))
    array([[0.        ],
           [0.73105858],
           [1.85093709]])
    """

    rows: int | None = None
    keys: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "keys"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(
                    f"polyattn.Blockwise: expected {name} to be a positive integer, got {size!r}; "
                    "it is the number of score matrix entries along one side of a tile"
                )


class Visits(NamedTuple):
    """Which tiles of the other axis every tile has to meet, per batch item (or one list for all).

    `full[b][i]` and `part[b][i]` are indices of tiles of whole size, padded to one length; `full_n` and
    `part_n` say how many count. `rest[b][i]` is 1 if the ragged last tile is to be met, which is masked.
    """

    full: Any  # 0 where no tile has any
    full_n: Any
    part: Any
    part_n: Any
    rest: Any


class Plan(NamedTuple):
    """A problem cut: sizes, and the visits of query tiles to key tiles and of key tiles to query tiles."""

    schedule: Schedule
    by_query: Visits
    by_key: Visits


def plan(p: Problem, wish: Blockwise) -> Plan:
    """The cut of a problem. Masks that cannot be read now (traced) leave every tile partial."""
    schedule = _finer_where_sparse(p, p.backend.schedule(p))
    rows = min(wish.rows or schedule.rows, max(p.frame.rows, 1))
    keys = min(wish.keys or schedule.keys, max(p.frame.keys, 1))
    heads = math.gcd(schedule.heads, p.k.shape[1])  # 0 means all
    schedule = Schedule(rows, keys, heads if schedule.heads else 0)
    n_rows, n_keys = -(-p.frame.rows // rows), -(-p.frame.keys // keys)
    if p.mask is None:
        grids = [[[FULL] * n_keys for _ in range(n_rows)]]
    else:
        shared = p.mask.batch_size() == 1 and (isinstance(p.offset, int) or math.prod(p.offset.shape) == 1)
        items: Any = [None] if shared or schedule.heads == 0 else range(p.frame.batch)
        sizes = (p.frame.rows, p.frame.keys, (rows, keys))
        grids = [
            p.mask.tiles(*sizes, b=b, query_offset=p.offset, remember=p.backend.may_remember()) for b in items
        ]
    ragged_rows, ragged_keys = bool(p.frame.rows % rows), bool(p.frame.keys % keys)
    turned = [[list(column) for column in zip(*grid, strict=True)] for grid in grids]
    if not n_rows:
        turned = [[[] for _ in range(n_keys)] for _ in grids]
    return Plan(schedule, _visits(p, grids, ragged_keys), _visits(p, turned, ragged_rows))


def _finer_where_sparse(p: Problem, schedule: Schedule) -> Schedule:
    """Smaller tiles for a mask that cuts most of the tiles it meets, as narrow windows do.

    The cost of a visit is its area and a constant, the time of about 2^14 scores (measured 2026-11-21).
    """
    known = p.mask is not None and isinstance(p.offset, int) and not any(True for _ in p.mask.arrays())
    if not known or not p.mask.exact:  # type: ignore[union-attr]
        return schedule

    def cost(choice: Schedule) -> int:
        assert p.mask is not None
        grid = p.mask.tiles(
            p.frame.rows, p.frame.keys, choice[:2], query_offset=p.offset, remember=p.backend.may_remember()
        )
        return sum(tile is not EMPTY for line in grid for tile in line) * (choice.rows * choice.keys + 2**14)

    sizes = [(schedule.rows // n, schedule.keys // n) for n in (1, 2, 4) if min(schedule[:2]) // n >= 64]
    return min((Schedule(*size, schedule.heads) for size in sizes or [schedule[:2]]), key=cost)


def _visits(p: Problem, grids: Any, ragged: bool) -> Visits:
    full: Any = []
    part: Any = []
    rest: Any = []
    for grid in grids:
        whole = [line[:-1] if ragged else line for line in grid]
        full.append([[j for j, tile in enumerate(line) if tile is FULL] for line in whole])
        part.append([[j for j, t in enumerate(line) if t is not FULL and t is not EMPTY] for line in whole])
        rest.append([int(ragged and line[-1] is not EMPTY) for line in grid])
    table = p.backend.table

    def padded(lists: Any) -> Any:
        longest = max((len(line) for grid in lists for line in grid), default=0)
        return longest and table(
            [[line + [0] * (longest - len(line)) for line in grid] for grid in lists], p.q
        )

    def counts(lists: Any) -> Any:
        return table([[len(line) for line in grid] for grid in lists], p.q)

    return Visits(padded(full), counts(full), padded(part), counts(part), table(rest, p.q))


class Blocks:
    """The blocks of a problem: some kv heads of one batch item, with the query heads that read them."""

    def __init__(self, p: Problem, cut: Plan) -> None:
        self.p, self.cut, self.backend = p, cut, p.backend
        self.rows, self.keys, heads = cut.schedule
        self.batch = 1 if heads else p.frame.batch
        self.kv_heads = heads or p.k.shape[1]
        self.group = p.frame.heads // p.k.shape[1]
        self.heads = self.kv_heads * self.group
        self.per_item = p.k.shape[1] // self.kv_heads
        self.count = (p.frame.batch // self.batch) * self.per_item

    def part(self, x: Array, g: Any, start: Any = 0, size: int | None = None, *, kv: bool = False) -> Array:
        """Of x (B|1, H|1, N, W): the batch items and heads of block g, and a range of the third axis."""
        b, h = self._corner(g)
        if x.shape[0] > 1:
            x = self.backend.tile(x, b, self.batch, -4)
        if x.shape[1] > 1:
            x = self.backend.tile(x, h * (1 if kv else self.group), self.kv_heads if kv else self.heads, -3)
        return x if size is None or x.shape[2] == 1 else self.backend.tile(x, start, size, -2)

    def _corner(self, g: Any) -> tuple[Any, Any]:
        """First batch item and first kv head of a block."""
        return (g // self.per_item) * self.batch, (g % self.per_item) * self.kv_heads

    def row(self, visits: Any, g: Any, i: Any) -> Any:
        """A line of a table of visits: that of tile i for the batch item of block g."""
        return visits[g // self.per_item if len(visits) > 1 else 0][i]

    def per_head(self, x: float | Array, g: Any) -> float | Array:
        """Of a number or (H|1, 1, 1): what belongs to block g."""
        if isinstance(x, float) or x.shape[0] == 1:
            return x
        return self.backend.tile(x, self._corner(g)[1] * self.group, self.heads, -3)

    def positions(self, g: Any, row: Any, rows: int, key: Any, keys: int) -> Positions:
        """Where the tile of block g lies that begins at (row, key)."""
        p, xp, backend = self.p, self.backend.xp, self.backend
        b, h = self._corner(g)
        h = h * self.group
        sizes = (self.batch, self.heads, rows, keys)
        starts = (b, h, row, key)

        def index(axis: int) -> Array:
            at = backend.arange(0, sizes[axis], p.q) + starts[axis]
            return xp.reshape(at, (1,) * axis + (-1,) + (1,) * (3 - axis))

        def cut(array: Array) -> Array:
            for axis in range(4):
                if array.shape[axis] > 1:
                    array = backend.tile(array, starts[axis], sizes[axis], axis - 4)
            return array

        offset = p.offset
        if not isinstance(offset, int) and offset.ndim:
            offset = xp.reshape(offset, (-1, 1, 1, 1))
            offset = backend.tile(offset, b, self.batch, -4) if offset.shape[0] > 1 else offset
        rows_at = index(2)
        return Positions(index(0), index(1), rows_at, rows_at + offset, index(3), cut)

    def query(self, g: Any, start: Any, size: int) -> Array:
        """The query tile in the compute dtype, scaled."""
        q = self.backend.astype(self.part(self.p.q, g, start, size), self.p.compute_dtype)
        return q * self.per_head(self.p.scale, g)

    def key_value(self, g: Any, start: Any, size: int) -> tuple[Array, Array]:
        k, v = (self.part(x, g, start, size, kv=True) for x in (self.p.k, self.p.v))
        return self.backend.astype(k, self.p.compute_dtype), self.backend.astype(v, self.p.compute_dtype)

    def tile(self, g: Any, q: Array, row: Any, key: Any, size: int, masked: bool) -> Tile:
        """Everything about one tile that forward and backward share."""
        p, xp, backend = self.p, self.backend.xp, self.backend
        k, v = self.key_value(g, key, size)
        bias = allowed = keep = at = None
        if masked or p.bias is not None or p.score_mod is not None or p.dropout_rate:
            at = self.positions(g, row, q.shape[2], key, size)
        if p.bias is not None:
            bias = backend.astype(at.cut(p.bias), p.compute_dtype)  # type: ignore[union-attr]
        if masked or bias is not None:
            allowed = allowed_at(p if masked else replace(p, mask=None), at, bias)  # type: ignore[arg-type]
        if allowed is not None:
            visible = visible_keys(allowed, self.kv_heads, xp)
            k, v = xp.where(visible, k, 0.0), xp.where(visible, v, 0.0)
        raw = grouped_product(backend, q, xp.matrix_transpose(k), slot=0)
        scores = raw if at is None else scores_at(p, at, raw, bias, allowed)
        if p.dropout_rate:
            keep = dropout_at(p, at)  # type: ignore[arg-type]
        return Tile(scores, raw, k, v, keep, allowed, at)

    def meet_all(self, visits: Visits, g: Any, i: Any, extent: int, size: int, meet: Any, state: Any) -> Any:
        """meet(j, size, masked, state) for every tile j of the other axis that tile i has to meet."""
        fold, whole, ragged = self.backend.fold, extent // size, extent % size

        def over(indices: Any, count: Any, masked: bool, state: Any) -> Any:
            if isinstance(indices, int):  # no tile of this kind anywhere
                return state
            indices, count = self.row(indices, g, i), self.row(count, g, i)
            return fold(count, lambda n, state: meet(indices[n], size, masked, state), state)

        state = over(visits.full, visits.full_n, False, state)
        state = over(visits.part, visits.part_n, True, state)
        if ragged:
            masked = self.p.mask is not None
            state = fold(
                self.row(visits.rest, g, i), lambda _, state: meet(whole, ragged, masked, state), state
            )
        return state

    def assemble(self, x: Array, kv: bool = False) -> Array:
        """Results of all blocks (tiles, blocks, batch, heads, rows, ...) as (B, H, L, ...)."""
        xp, item = self.backend.xp, self.per_item
        n, count, batch, heads, rows, *width = x.shape
        x = xp.reshape(x, (n, count // item, item, batch, heads, rows, *width))
        x = xp.permute_dims(x, (1, 3, 2, 4, 0, 5, *range(6, 6 + len(width))))
        return xp.reshape(x, (count // item * batch, item * heads, n * rows, *width))


class Tile(NamedTuple):
    """A tile of scores, and what it was made of."""

    scores: Array
    raw: Array  # scale (q . k), before mods, bias and mask
    k: Array
    v: Array
    keep: Array | None
    allowed: Array | None
    at: Positions | None


def grouped_product(backend: Backend, a: Array, b: Array, slot: int) -> Array:
    """`grouped_matmul` into a scratch slot."""
    if a.shape[1] == b.shape[1]:
        return backend.product(a, b, slot)
    n, heads, rows, inner = a.shape
    group = heads // b.shape[1]
    folded = backend.xp.reshape(a, (n, b.shape[1], group * rows, inner))
    product = backend.product(folded, b, slot)
    return backend.xp.reshape(product, (product.shape[0], heads, rows, b.shape[-1]))


def forward(p: Problem, cut: Plan) -> tuple[Array, Array]:
    """(out, lse) in the compute dtype."""
    blocks, backend, xp, frame = Blocks(p, cut), p.backend, p.backend.xp, p.frame
    rows, keys = blocks.rows, blocks.keys

    def query_tile(g: Any, i: Any, size: int) -> tuple[Array, Array]:
        q = blocks.query(g, i * rows, size)

        def meet(j: Any, key_size: int, masked: bool, seen: Partial) -> Partial:
            tile = blocks.tile(g, q, i * rows, j * keys, key_size, masked)
            return merge(seen, lift(tile.scores, tile.v, tile.keep, consume=True))

        seen = blocks.meet_all(cut.by_query, g, i, frame.keys, keys, meet, _nothing(p, blocks, size))
        lse = log_sum(seen)
        if p.sinks is not None:
            seen = merge(seen, sink(blocks.per_head(p.sinks, g), seen))
        return finish(seen), lse

    n, count = frame.rows // rows, blocks.count
    parts = []
    if n:
        tiles = backend.map(lambda t: query_tile(t % count, t // count, rows), n * count)
        parts.append([xp.reshape(x, (n, count, *x.shape[1:])) for x in tiles])
    if frame.rows % rows:
        last = backend.map(lambda g: query_tile(g, n, frame.rows - n * rows), count)
        parts.append([x[None, ...] for x in last])
    out, lse = ([blocks.assemble(part[which]) for part in parts] for which in (0, 1))
    return (out[0], lse[0]) if len(parts) == 1 else (xp.concat(out, axis=2), xp.concat(lse, axis=2))


def _nothing(p: Problem, blocks: Blocks, size: int) -> Partial:
    """The average over no keys."""
    xp, where = p.backend.xp, {"dtype": p.compute_dtype, "device": p.backend.device(p.q)}
    shape = (blocks.batch, blocks.heads, size)
    return Partial(
        xp.full((*shape, 1), -xp.inf, **where),
        xp.zeros((*shape, 1), **where),
        xp.zeros((*shape, p.v.shape[-1]), **where),
    )
