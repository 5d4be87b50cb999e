"""What is known of chips: their memory, and the tiles that suit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polyattn.implementations.fused import Fused
from polyattn.problem import Problem
from polyattn_jax.fused.split import Sizes

__all__ = ["Chip", "TileSizes", "tile_sizes"]


@dataclass(frozen=True)
class Chip:
    """A kind of chip."""

    platform: str  # "tpu" or "gpu"
    kind: str  # as JAX names it, or what it is taken for
    memory: int  # bytes for the tiles of one program
    cores: int  # programs that run at once

    @property
    def only(self) -> frozenset[str]:
        """Operations that its kernels have beside those of all."""
        return frozenset({"erf", "erf_inv"} if self.platform == "tpu" else ())


class TileSizes(NamedTuple):
    forward: Sizes
    backward: Sizes


def tile_sizes(p: Problem, chip: Chip, wish: Fused) -> TileSizes:
    half = p.q.dtype.itemsize == 2
    if chip.platform == "tpu":
        sizes = TileSizes(Sizes(512, 1024), Sizes(512, 512)) if half else TileSizes(Sizes(256, 512), Sizes(256, 512))
    else:
        sizes = TileSizes(Sizes(128, 64), Sizes(64, 64)) if half else TileSizes(Sizes(64, 32), Sizes(32, 32))
    return TileSizes(*(Sizes(wish.rows or s.rows, wish.keys or s.keys) for s in sizes))
