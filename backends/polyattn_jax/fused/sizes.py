"""The tiles that suit a chip, and what they take of its memory."""

from __future__ import annotations

from typing import NamedTuple

from polyattn.implementations.fused import Fused
from polyattn.problem import Problem
from polyattn_jax.fused import gpu
from polyattn_jax.fused.chips import Chip
from polyattn_jax.fused.split import Sizes

__all__ = ["FEW", "TileSizes", "memory_needed", "tile_sizes"]

FEW = 64  # query rows of all heads that read one kv head: decoding


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
#: Few rows leave room for many keys.
DECODING = {("tpu", 2): 2048, ("tpu", 4): 1024, ("gpu", 2): 128, ("gpu", 4): 64}


def tile_sizes(p: Problem, chip: Chip, wish: Fused) -> TileSizes:
    """Those that were asked for, else the largest that fit the memory of the chip, else the smallest."""
    key = (chip.platform, p.q.dtype.itemsize)
    rows = p.frame.rows * (p.frame.heads // max(p.k.shape[1], 1))
    found = None
    for sizes in TILES[key]:
        if rows <= FEW:
            sizes = TileSizes(*(Sizes(s.rows, DECODING[key]) for s in sizes))
        found = TileSizes(*(Sizes(wish.rows or s.rows, wish.keys or s.keys) for s in sizes))
        if memory_needed(p, chip, found) <= chip.memory:
            break
    assert found is not None
    return found


def memory_needed(p: Problem, chip: Chip, sizes: TileSizes) -> int:
    """Bytes that the larger of the programs has at once, about."""
    bytes_, (d, e) = p.q.dtype.itemsize, (x.shape[3] for x in (p.q, p.v))
    if chip.platform == "tpu":
        d, e = (-(-n // 128) * 128 for n in (d, e))
        biased = 2 * 4 if p.bias is not None and 1 not in p.bias.shape[2:] else 0

        def of(size: Sizes, scores: int, blocks: int) -> int:
            rows, keys = (-(-min(n, m) // 8) * 8 for n, m in zip(size, p.frame[2:4], strict=True))
            # Blocks are fetched twice over, one ahead; sums and scores are float32 numbers.
            blocks *= 2 * bytes_ * (rows + keys) * (d + e)
            return blocks + 4 * max(rows, keys) * (d + e + 256) + rows * keys * (4 * scores + biased)

        return max(of(sizes.forward, 3, 1), of(sizes.backward, 4, 1))
    d, e = gpu.wide(d), gpu.wide(e)
    (rows, keys), (down, across) = (map(gpu.wide, size) for size in sizes)
    # Triton keeps the operands of products in shared memory, the tiles that a loop fetches in two stages.
    return bytes_ * max(rows * d + 2 * keys * (d + e), (down + 2 * across) * (d + e) + down * across)
