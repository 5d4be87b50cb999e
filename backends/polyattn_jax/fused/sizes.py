"""The tiles that suit a chip, and what they take of its memory."""

from __future__ import annotations

from typing import NamedTuple

from polyattn.implementations.fused import FEW, Fused, measured_for
from polyattn.problem import Problem
from polyattn_jax.fused import gpu
from polyattn_jax.fused.chips import Chip
from polyattn_jax.fused.trace import Sizes

__all__ = ["SMALLEST", "Demand", "TileSizes", "demand_of", "memory_needed", "tile_sizes"]


class TileSizes(NamedTuple):
    """Rows and keys of the tiles of both ways."""

    forward: Sizes
    backward: Sizes


#: By platform and bytes of a number, largest first: what was compiled for the chips of `chips.py`; no real chip was
#: measured. `polyattn tune` measures.
TILES = {
    ("tpu", 2): (TileSizes(Sizes(512, 1024), Sizes(512, 512)), TileSizes(Sizes(256, 256), Sizes(256, 256))),
    ("tpu", 4): (TileSizes(Sizes(256, 512), Sizes(256, 512)), TileSizes(Sizes(128, 256), Sizes(128, 256))),
    ("gpu", 2): (TileSizes(Sizes(128, 64), Sizes(64, 64)), TileSizes(Sizes(64, 32), Sizes(32, 32))),
    ("gpu", 4): (TileSizes(Sizes(64, 32), Sizes(32, 32)), TileSizes(Sizes(32, 16), Sizes(16, 16))),
}
#: By platform, of both sides.
SMALLEST = {"tpu": 128, "gpu": 16}
#: Few rows leave room for many keys.
DECODING = {("tpu", 2): 2048, ("tpu", 4): 1024, ("gpu", 2): 128, ("gpu", 4): 64}


def tile_sizes(p: Problem, chip: Chip, wish: Fused) -> TileSizes:
    """Those asked for, else those measured, else the largest of the table that fit the chip, else its smallest."""
    rows = p.frame.rows * (p.frame.heads // max(p.k.shape[1], 1))
    few, demand = rows <= FEW, demand_of(p)
    measured = None if few else _measured(p, chip, wish, demand)
    choices = []
    for sizes in (*([measured] if measured else []), *TILES[chip.platform, demand.itemsize]):
        if few:
            sizes = TileSizes(*(Sizes(s.rows, DECODING[chip.platform, demand.itemsize]) for s in sizes))
        choices.append(TileSizes(*(Sizes(wish.rows or s.rows, wish.keys or s.keys) for s in sizes)))
    return next((s for s in choices if memory_needed(demand, chip, s) <= chip.memory), choices[-1])


def _measured(p: Problem, chip: Chip, wish: Fused, demand: Demand) -> TileSizes | None:
    """The sizes of a file for a problem."""
    width, dtype = max(demand.width, demand.value_width), str(p.q.dtype)
    m = measured_for(chip.kind, bool(wish.interpret), dtype, width, demand.rows)
    if m is None:
        return None
    sizes = TileSizes(*(Sizes(tiles.rows, tiles.keys) for tiles in (m.forward, m.backward)))
    alone = Demand(demand.itemsize, width, width, m.length, m.length, biased=False)
    needed = memory_needed(alone, chip, sizes)
    if needed > chip.memory and not wish.interpret:
        raise ValueError(
            f"{p.who}: expected a file of tile sizes that fit the memory of {chip.kind} in polyattn.implementations."
            f"tuned, got {m.forward.rows} x {m.forward.keys} and {m.backward.rows} x {m.backward.keys} for width "
            f"{width} of {dtype}, about {needed} bytes of {chip.memory}; write it anew with `polyattn tune --output FILE`"
        )
    return sizes


class Demand(NamedTuple):
    """What decides how much memory tiles take."""

    itemsize: int
    width: int
    value_width: int
    rows: int
    keys: int
    biased: bool  # by an array with a number for each score


def demand_of(p: Problem) -> Demand:
    biased = p.bias is not None and 1 not in p.bias.shape[2:]
    return Demand(p.q.dtype.itemsize, p.q.shape[3], p.v.shape[3], p.frame.rows, p.frame.keys, biased)


def memory_needed(demand: Demand, chip: Chip, sizes: TileSizes) -> int:
    """Bytes that the larger of the programs has at once, about."""
    bytes_, d, e = demand[:3]
    if chip.platform == "tpu":
        d, e = (-(-n // 128) * 128 for n in (d, e))
        biased = 2 * 4 if demand.biased else 0

        def of(size: Sizes, scores: int, blocks: int) -> int:
            rows, keys = (-(-min(n, m) // 8) * 8 for n, m in zip(size, demand[3:5], strict=True))
            # Blocks are fetched twice over, one ahead; sums and scores are float32 numbers.
            blocks *= 2 * bytes_ * (rows + keys) * (d + e)
            return blocks + 4 * max(rows, keys) * (d + e + 256) + rows * keys * (4 * scores + biased)

        return max(of(sizes.forward, 3, 1), of(sizes.backward, 4, 1))
    d, e = gpu.wide(d), gpu.wide(e)
    (rows, keys), (down, across) = (map(gpu.wide, size) for size in sizes)
    # Triton keeps the operands of products in shared memory, the tiles that a loop fetches in two stages.
    return bytes_ * max(rows * d + 2 * keys * (d + e), (down + 2 * across) * (d + e) + down * across)
