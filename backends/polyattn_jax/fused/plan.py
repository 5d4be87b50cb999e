"""How a problem is cut for the kernels of a platform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from polyattn.implementations.fused import Fused, Visits, visits
from polyattn.problem import Problem
from polyattn_jax.fused import gpu, tpu
from polyattn_jax.fused.launch import Lists, Shape
from polyattn_jax.fused.sizes import Chip, tile_sizes
from polyattn_jax.fused.split import Sizes

__all__ = ["Cut", "Plan", "plan"]


@dataclass(frozen=True)
class Cut:
    """Tiles of one size, and who meets whom."""

    shape: Shape
    by_query: Lists
    by_key: Lists | None


@dataclass(frozen=True)
class Plan:
    chip: Chip
    interpret: bool
    splits: int
    forward: Cut
    backward: Cut


def plan(p: Problem, chip: Chip, wish: Fused) -> Plan:
    """The kernels of a problem: their tiles and the lists of their visits."""
    heads, kv_heads, length = p.frame.heads, max(p.k.shape[1], 1), p.frame.rows
    group = heads // kv_heads
    sizes = tile_sizes(p, chip, wish)
    # Few rows: those of all query heads that read one kv head are one tile.
    folded = group if group * length <= sizes.forward.rows else 1
    splits = 1

    def cut(size: Sizes, backward: bool) -> Cut:
        rows, keys = (group * length if folded > 1 else min(size.rows, length)), min(size.keys, p.frame.keys)
        if chip.platform == "gpu":
            rows, keys = gpu.wide(rows), gpu.wide(keys)
        shape = Shape(
            batch=p.frame.batch,
            heads=heads // folded,
            group=group // folded,
            rows=length * folded,
            keys=p.frame.keys,
            tile=Sizes(rows, keys),
            folded=folded,
        )
        by_query, by_key = visits(p, length if folded > 1 else rows, keys)
        return Cut(shape, _lists(by_query, chip, splits), _lists(by_key, chip, 1) if backward else None)

    return Plan(chip, wish.interpret, splits, cut(sizes.forward, False), cut(sizes.backward, True))


def _lists(of: Visits, chip: Chip, splits: int) -> Lists:
    host = tpu if chip.platform == "tpu" else gpu
    first, second, steps = host.listed(of, splits)
    met = {visit.masked for item in of for line in item for visit in line}
    kinds: Any = tuple(name for name, masked in (("open", False), ("masked", True)) if masked in met)
    return Lists(jnp.asarray(first), jnp.asarray(second), len(of), steps, kinds)
