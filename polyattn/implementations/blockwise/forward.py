"""Attention as a map over query tiles of a fold over key tiles: O(L + S) memory, forward and backward.

    def query_tile(i):
        return finish(fold(key_tiles(i), lambda j, seen: merge(seen, lift(scores(i, j), v(j))), nothing))

One source for every array library; loops, tiles and derivatives come from its adapter. Tiles that the mask
empties are skipped, tiles that it fills are computed without mask arithmetic. The backward rule saves
(q, k, v, out, lse) alone and computes every tile again (Dao 2022, arXiv:2205.14135, algorithm 4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from polyattn import mods
from polyattn.arrays import Array, Backend
from polyattn.implementations.blockwise.plan import Plan, Visits
from polyattn.implementations.reference import allowed_at, dropout_at, scores_at, sink, visible_keys
from polyattn.normalizers.softmax import Partial, finish, lift, log_sum, merge
from polyattn.places.positions import Positions
from polyattn.problem.problem import Problem


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

    def assemble(self, x: Array) -> Array:
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
    ours = not mods.functions(
        p.score_mod
    )  # a function may return an array of its own, which is not ours to spoil

    def query_tile(g: Any, i: Any, size: int) -> tuple[Array, Array]:
        q = blocks.query(g, i * rows, size)

        def meet(j: Any, key_size: int, masked: bool, seen: Partial) -> Partial:
            tile = blocks.tile(g, q, i * rows, j * keys, key_size, masked)
            return merge(seen, lift(tile.scores, tile.v, tile.keep, consume=ours))

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
