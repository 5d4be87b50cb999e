"""How a problem is cut for the kernels of a platform."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from polyattn.implementations.fused import Count, Fused, Visits, counted, visits
from polyattn.mods import Mod
from polyattn.problem import Problem
from polyattn_jax.fused import gpu, tpu
from polyattn_jax.fused.chips import Chip
from polyattn_jax.fused.launch import Lists, Shape
from polyattn_jax.fused.sizes import tile_sizes
from polyattn_jax.fused.trace import Sizes

__all__ = ["Cut", "Plan", "count", "plan", "shapes"]


@dataclass(frozen=True)
class Cut:
    """Tiles of one size, and who meets whom."""

    shape: Shape
    by_query: Lists
    by_key: Lists | None = None  # backward


@dataclass(frozen=True)
class Plan:
    chip: Chip
    interpret: bool
    splits: int
    forward: Cut
    backward: Cut

    @property
    def list_bytes(self) -> tuple[int, ...]:
        """Of the lists of visits, of which one kernel has one."""
        of = (self.forward.by_query, self.backward.by_query, self.backward.by_key)
        return tuple(4 * (lists.first.size + lists.second.size) for lists in of if lists is not None)


def shapes(p: Problem, chip: Chip, wish: Fused) -> tuple[Shape, Shape]:
    """The sizes of the kernels of both ways."""
    length, keys, group = p.frame.rows, p.frame.keys, p.frame.heads // p.k.shape[1]
    sizes = tile_sizes(p, chip, wish)
    # Few rows: those of all query heads that read one kv head are one tile, whose keys then are the same for all.
    apart = isinstance(p.score_mod, Mod) and p.score_mod.keys_per_head
    folded = group if group * length <= sizes.forward.rows and not apart else 1

    def shape(size: Sizes) -> Shape:
        tile = Sizes(group * length if folded > 1 else min(size.rows, length), min(size.keys, keys))
        return Shape(
            batch=p.frame.batch,
            heads=p.frame.heads // folded,
            group=group // folded,
            rows=length * folded,
            keys=keys,
            tile=Sizes(*map(gpu.wide, tile)) if chip.platform == "gpu" else tile,
            folded=folded,
        )

    return shape(sizes.forward), shape(sizes.backward)


def count(p: Problem, shape: Shape) -> Count:
    """How many tiles the kernels of one way meet, without a list of them."""
    return counted(p, _rows(shape), shape.tile.keys)


def _rows(shape: Shape) -> int:
    """Rows of the problem in a tile."""
    return (shape.rows if shape.folded > 1 else shape.tile.rows) // shape.folded


def plan(p: Problem, chip: Chip, wish: Fused) -> Plan:
    """The kernels of a problem: their tiles and the lists of their visits."""
    forward, backward = shapes(p, chip, wish)
    splits = 1
    if (
        chip.platform == "gpu" and forward.tiles[0] == 1
    ):  # a cache, whose keys two programs for each core share
        programs = forward.batch * forward.heads
        splits = max(min(2 * chip.cores // programs, forward.tiles[1]), 1)

    def cut(shape: Shape) -> Cut:
        by_query, by_key = visits(p, _rows(shape), shape.tile.keys)
        # Beside the words of dropout a mask costs nothing, and they are compiled for each way.
        alike = p.dropout_rate > 0
        if shape is forward:
            return Cut(shape, _lists(by_query, chip, splits, alike))
        return Cut(shape, _lists(by_query, chip, 1, alike), _lists(by_key, chip, 1, alike))

    return Plan(chip, wish.interpret, splits, cut(forward), cut(backward))


def _lists(of: Visits, chip: Chip, splits: int, alike: bool) -> Lists:
    """alike: masked tiles and others are met in one way, unless none is masked."""
    met = {run.masked for item in of for line in item for run in line}
    if alike and True in met:
        met = {True}
        of = tuple(tuple(tuple(run._replace(masked=True) for run in line) for line in item) for item in of)
    host = tpu if chip.platform == "tpu" else gpu
    first, second, steps = host.listed(of, splits)
    kinds = tuple(name for name, masked in (("open", False), ("masked", True)) if masked in met)
    return Lists(jnp.asarray(first), jnp.asarray(second), len(of), steps, kinds)
