"""The engine: a map over query tiles of a fold over key tiles.

    def query_tile(i):
        return finish(fold(key_tiles(i), lambda j, seen: merge(seen, lift(scores(i, j), v(j))), nothing))

`lift`, `merge`, `finish` and `nothing` are those of the normaliser (`polyattn.normalizers.Foldable`).
One source for every array library; loops and tiles come from its adapter. Tiles that the mask empties are skipped,
tiles that it fills are computed without mask arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from polyattn import mods
from polyattn.arrays import Array
from polyattn.implementations.blockwise.plan import Plan
from polyattn.implementations.blockwise.tile import Blocks, Spot
from polyattn.normalizers.softmax import beside
from polyattn.problem import Problem


class Averages(NamedTuple):
    """What the engine computes, in the compute dtype."""

    out: Array  # (B, Hq, L, E)
    lse: Array  # (B, Hq, L) over the keys alone; under another normaliser than the softmax its log_sum


def meet(blocks: Blocks, spot: Spot, q: Array, k: Array, v: Array, seen: Any) -> Any:
    """What the queries of a tile have seen, and its keys."""
    tile = blocks.tile(spot, q, k, v)
    # A function may return an array of its own, which is not ours to spoil.
    ours = not mods.functions(blocks.p.score_mod)
    by = blocks.normalizer
    return by.merge(seen, by.lift(tile.scores, tile.v, tile.keep, consume=ours))


def forward(p: Problem, plan: Plan, kind: type[Blocks] = Blocks) -> Averages:
    """Attention tile by tile."""
    blocks, backend, xp = kind(p, plan), p.backend, p.backend.xp
    by, length, rows = blocks.normalizer, p.frame.rows, blocks.rows

    def query_tile(g: Any, i: Any, size: int) -> Averages:
        q = blocks.query(g, i * rows, size)  # (b, h, size, D)

        def step(j: Any, keys: int, masked: bool, seen: Any) -> Any:
            key = j * blocks.keys
            k, v = (blocks.part(x, g, key, keys, kv=True) for x in (p.k, p.v))  # (b, hkv, keys, D)
            return blocks.run(meet, Spot(g, i * rows, key, masked), q, k, v, seen)

        nothing = by.nothing(q, p.v.shape[-1])
        seen = blocks.fold(plan.by_query, g, i, p.frame.keys, blocks.keys, step, nothing)
        lse = by.log_sum(seen)  # (b, h, size)
        if p.sinks is not None:
            seen = by.merge(seen, beside(blocks.per_head(p.sinks, g), seen.acc.shape[-1]))
        return Averages(by.finish(seen), lse)

    n, count = length // rows, blocks.count
    parts = []  # (n tiles, blocks, b, h, rows, ...)
    if n:
        tiles = backend.map(lambda t: query_tile(t % count, t // count, rows), n * count)
        parts.append([xp.reshape(x, (n, count, *x.shape[1:])) for x in tiles])
    if length % rows:
        last = backend.map(lambda g: query_tile(g, n, length % rows), count)
        parts.append([x[None, ...] for x in last])
    out, lse = ([blocks.assemble(part[which]) for part in parts] for which in (0, 1))
    return (
        Averages(out[0], lse[0])
        if len(parts) == 1
        else Averages(xp.concat(out, axis=2), xp.concat(lse, axis=2))
    )
