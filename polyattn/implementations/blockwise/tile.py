"""Blocks and tiles of a problem: what forward and backward share.

A block is some kv heads of one batch item, with the query heads that read them, or all heads of all items; a tile is
a rectangle of its scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from polyattn.arrays import Array, Backend
from polyattn.implementations.blockwise.plan import Plan, Visits
from polyattn.implementations.reference import allowed_at, dropout_at, scores_at, visible_keys
from polyattn.normalizers import Foldable
from polyattn.places import Positions, positions
from polyattn.problem import Problem


class ScoreTile(NamedTuple):
    """A tile of scores, and what it was made of."""

    scores: Array  # (b, h, rows, keys)
    raw: Array  # scale (q . k), before mods, bias and mask
    k: Array  # (b, hkv, keys, D), hidden keys replaced
    v: Array
    keep: Array | None  # dropout's factors
    allowed: Array | None
    at: Positions | None


class Spot(NamedTuple):
    """Where a tile lies: its block, its first row and key, and whether the mask cuts it."""

    g: Any
    row: Any
    key: Any
    masked: bool


class Blocks:
    """The blocks of a problem, numbered g = 0 .. count - 1."""

    def __init__(self, p: Problem, plan: Plan) -> None:
        self.p, self.plan, self.backend = p, plan, p.backend
        self.normalizer: Foldable = p.normalizer  # type: ignore[assignment]  # the engine accepts no other
        self.rows, self.keys, kv_heads = plan.sizes  # of a tile
        all_kv_heads = p.k.shape[1]
        self.items = p.frame.batch if kv_heads is None else 1  # batch items of a block
        self.kv_heads = all_kv_heads if kv_heads is None else kv_heads
        self.group = p.frame.heads // all_kv_heads  # query heads that read one kv head
        self.heads = self.kv_heads * self.group
        self.per_item = all_kv_heads // self.kv_heads  # blocks with the same items
        self.count = (p.frame.batch // self.items) * self.per_item

    def corner(self, g: Any) -> tuple[Any, Any]:
        """First batch item and first kv head of a block."""
        return (g // self.per_item) * self.items, (g % self.per_item) * self.kv_heads

    def part(self, x: Array, g: Any, start: Any = 0, size: int | None = None, *, kv: bool = False) -> Array:
        """Of x (B|1, H|1, N, W): the batch items and heads of block g, and a range of the third axis."""
        item, head = self.corner(g)
        if x.shape[0] > 1:
            x = self.backend.tile(x, item, self.items, -4)
        if x.shape[1] > 1:
            x = self.backend.tile(
                x, head * (1 if kv else self.group), self.kv_heads if kv else self.heads, -3
            )
        return x if size is None or x.shape[2] == 1 else self.backend.tile(x, start, size, -2)

    def per_head(self, x: float | Array, g: Any) -> float | Array:
        """Of a number or (1, H|1, 1, 1): what belongs to block g."""
        if isinstance(x, float) or x.shape[1] == 1:
            return x
        return self.backend.tile(x, self.corner(g)[1] * self.group, self.heads, -3)

    def query(self, g: Any, start: Any, size: int) -> Array:
        """The query tile (b, h, size, D) in the compute dtype, scaled."""
        q = self.backend.astype(self.part(self.p.q, g, start, size), self.p.compute_dtype)
        if q.shape[0] != self.items:  # values alone may have a batch: the scores get it here
            q = self.backend.xp.broadcast_to(q, (self.items, *q.shape[1:]))
        return q * self.per_head(self.p.scale, g)

    def run(self, body: Callable[..., Any], spot: Spot, *given: Any) -> Any:
        """body(self, spot, *given), the work of one tile: who inherits may compile it."""
        return body(self, spot, *given)

    def tile(self, spot: Spot, q: Array, k: Array, v: Array) -> ScoreTile:
        """The tile of scores of the queries q and the keys k (b, hkv, keys, D) that lie there."""
        p, xp, backend = self.p, self.backend.xp, self.backend
        g, row, key, masked = spot
        k, v = (backend.astype(x, p.compute_dtype) for x in (k, v))
        bias = allowed = keep = at = None
        if masked or p.bias is not None or p.score_mod is not None or p.dropout_rate:
            item, head = self.corner(g)
            sizes = (self.items, self.heads, q.shape[2], k.shape[2])
            at = positions(backend, p.q, sizes, p.places, (item, head * self.group, row, key))
            bias = None if p.bias is None else backend.astype(at.cut(p.bias), p.compute_dtype)
            allowed = allowed_at(p.mask if masked else None, at, bias)
            keep = dropout_at(p, at)
        if allowed is not None:
            visible = visible_keys(allowed, self.kv_heads, xp)
            k, v = xp.where(visible, k, 0.0), xp.where(visible, v, 0.0)
            q = xp.where(xp.any(allowed, axis=-1, keepdims=True), q, 0.0)
        raw = grouped_product(backend, q, xp.matrix_transpose(k), slot=0)  # (b, h, rows, keys)
        scores = raw if at is None else scores_at(p, at, raw, bias, allowed)
        return ScoreTile(scores, raw, k, v, keep, allowed, at)

    def fold(
        self, visits: Visits, g: Any, i: Any, extent: int, size: int, step: Callable[..., Any], state: Any
    ) -> Any:
        """step(j, size, masked, state) over every tile j of the other axis, `extent` long, that tile i has to meet."""
        fold, whole, ragged = self.backend.fold, extent // size, extent % size

        def line(table: Any) -> Any:
            return table[g // self.per_item if len(table) > 1 else 0][i]

        def over(indices: Any, count: Any, masked: bool, state: Any) -> Any:
            if isinstance(indices, int):  # no tile of this kind anywhere
                return state
            there = line(indices)
            return fold(line(count), lambda n, state: step(there[n], size, masked, state), state)

        state = over(visits.full, visits.full_n, False, state)
        state = over(visits.part, visits.part_n, True, state)
        if ragged:
            masked = self.p.mask is not None
            state = fold(line(visits.rest), lambda _, state: step(whole, ragged, masked, state), state)
        return state

    def assemble(self, x: Array) -> Array:
        """Results of all blocks (tiles, blocks, b, h, rows, ...) as (B, H, L, ...)."""
        xp, item = self.backend.xp, self.per_item
        n, count, batch, heads, rows, *width = x.shape
        x = xp.reshape(x, (n, count // item, item, batch, heads, rows, *width))
        x = xp.permute_dims(x, (1, 3, 2, 4, 0, 5, *range(6, 6 + len(width))))  # (B', b, H', h, n, rows, ...)
        return xp.reshape(x, (count // item * batch, item * heads, n * rows, *width))


def grouped_product(backend: Backend, a: Array, b: Array, slot: int) -> Array:
    """a (b, h, N, I) @ b (b, hkv, I, M) into a scratch slot: (b, h, N, M)."""
    if a.shape[1] == b.shape[1]:
        return backend.product(a, b, slot)
    n, heads, rows, inner = a.shape
    folded = backend.xp.reshape(a, (n, b.shape[1], heads // b.shape[1] * rows, inner))
    product = backend.product(folded, b, slot)  # (b, hkv, group N, M)
    return backend.xp.reshape(product, (product.shape[0], heads, rows, b.shape[-1]))
