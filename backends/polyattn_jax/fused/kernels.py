"""What commands ask of the kernels: how fast tiles are here, and what would run on a chip that is not here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyattn._attention import attention
from polyattn.implementations import Fused
from polyattn.implementations.fused import Count, Trial
from polyattn.problem import Problem
from polyattn_jax.fused import FUSED, known_chip, wanted_chip
from polyattn_jax.fused.chips import Chip
from polyattn_jax.fused.launch import Shape
from polyattn_jax.fused.plan import count, plan, shapes
from polyattn_jax.fused.sizes import SMALLEST, Demand, TileSizes, demand_of, memory_needed, tile_sizes
from polyattn_jax.fused.trace import Sizes
from polyattn_jax.targets import TARGETS, first_line, target

__all__ = ["KERNELS"]

HEADS = 8
NOWHERE = "there are kernels for TPU and GPU, and JAX computes on {}"
ROUNDS, LONG = 5, 0.05  # how often calls are timed, and for how many seconds together


class Kernels:
    """`polyattn.implementations.fused.Kernels`."""

    targets = ("tpu", "gpu", *TARGETS)

    def chip(self, interpret: bool) -> tuple[str, str] | None:
        chip = _here(interpret)
        return None if chip is None else (chip.kind, chip.platform)

    def why_not(self, trial: Trial) -> str | None:
        chip = _here(trial.interpret)
        if chip is None:
            return NOWHERE.format(jax.default_backend())
        if chip.platform == "tpu" and trial.dtype == "float16":
            return "a TPU has no float16"
        if not self.candidates(trial, "forward") or not self.candidates(trial, "backward"):
            return f"tiles of width {trial.width} have no room in the {chip.memory} bytes of {chip.kind}"
        return None

    def candidates(self, trial: Trial, way: str) -> list[tuple[int, int]]:
        chip = _certain(trial)
        if trial.interpret:
            return [(16, 16), (32, 16)]
        least = SMALLEST[chip.platform]
        smallest = Sizes(least, least)
        demand = Demand(
            jnp.dtype(trial.dtype).itemsize, trial.width, trial.width, trial.length, trial.length, False
        )

        def fits(size: Sizes) -> bool:
            sizes = TileSizes(size, smallest) if way == "forward" else TileSizes(smallest, size)
            return memory_needed(demand, chip, sizes) <= chip.memory

        sides = [n for n in (least << i for i in range(5)) if n == least or n < 2 * trial.length]
        found = [Sizes(rows, keys) for rows in sides for keys in sides if fits(Sizes(rows, keys))]
        return sorted(((s.rows, s.keys) for s in found), key=lambda s: (s[0] * s[1], s))

    def seconds(self, trial: Trial, way: str) -> float | str:
        chip = _certain(trial)
        fused = Fused(platform=chip.platform, interpret=trial.interpret)
        shape = (1, 1 if trial.interpret else HEADS, trial.length, trial.width)
        random = np.random.default_rng(0)
        arrays = [jnp.asarray(random.standard_normal(shape, np.float32), trial.dtype) for _ in range(3)]

        def attend(*arrays: Any) -> Any:
            return attention(*arrays, is_causal=True, implementation=fused)

        def total(*arrays: Any) -> Any:
            return jnp.sum(attend(*arrays), dtype=jnp.float32)

        run = jax.jit(attend if way == "forward" else jax.grad(total, (0, 1, 2)))
        try:
            jax.block_until_ready(run(*arrays))
        except Exception as error:  # Mosaic and Triton have errors of many kinds
            return first_line(error)
        return _least(lambda: run(*arrays), 1 if trial.interpret else ROUNDS)

    def trace(
        self, name: str, look: Callable[..., None], arrays: Iterable[tuple[tuple[int, ...], str]]
    ) -> None:
        known = list(arrays)
        chip = target({"tpu": "v5e", "gpu": "h100"}.get(name, name))
        wide = any(dtype == "float64" for _, dtype in known)
        with jax.enable_x64(wide), jax.sharding.use_abstract_mesh(chip.mesh):
            jax.eval_shape(look, *(jax.ShapeDtypeStruct(*array) for array in known))

    def describe(self, p: Problem) -> list[str]:
        wish = Fused()
        if reason := FUSED.refuses(p, settings=wish):
            return [f"fused is refused: {reason}"]
        if 0 in (*p.scores_shape, p.q.shape[3], p.v.shape[3]):
            return ["fused has nothing to compute"]
        chip = known_chip(p.q, wish)
        cuts = dict(zip(("forward", "backward"), shapes(p, chip, wish), strict=True))
        counts = {way: count(p, shape) for way, shape in cuts.items()}
        needed = memory_needed(demand_of(p), chip, tile_sizes(p, chip, wish))
        lists = f"at most {max(plan(p, chip, wish).list_bytes)} bytes"
        lists += f" of {chip.lists} for each" if chip.platform == "tpu" else " in its main memory"
        return [
            *(_line(way, shape, counts[way]) for way, shape in cuts.items()),
            f"fused, on the chip: about {needed} bytes of {chip.memory}",
            f"fused, lists of visits: {lists}",
        ]


def _here(interpret: bool) -> Chip | None:
    return wanted_chip(jnp.zeros(()), Fused(interpret=interpret))


def _certain(trial: Trial) -> Chip:
    """The same, for whoever has asked `why_not`."""
    chip = _here(trial.interpret)
    if chip is None:
        raise ValueError(f"polyattn_jax.fused: {NOWHERE.format(jax.default_backend())}; ask why_not before")
    return chip


def _line(way: str, shape: Shape, tiles: Count) -> str:
    """The tiles of one way in words."""
    heads = f", {shape.folded} heads in one" if shape.folded > 1 else ""
    return (
        f"fused, {way}: tiles of {shape.tile.rows} x {shape.tile.keys}{heads}; of {tiles.every} of a head {tiles.met} are "
        f"met, {tiles.masked} with the mask, and {tiles.every - tiles.met} skipped"
    )


def _least(call: Callable[[], Any], rounds: int) -> float:
    """Seconds of a call, in the fastest of some rounds."""

    def timed(n: int) -> float:
        started, last = time.perf_counter(), None
        for _ in range(n):
            last = call()  # one after the other on the chip, the others are let go
        jax.block_until_ready(last)
        return (time.perf_counter() - started) / n

    n = max(1, min(int(LONG / timed(1)), 1000)) if rounds > 1 else 1
    return min(timed(n) for _ in range(rounds))


KERNELS = Kernels()
