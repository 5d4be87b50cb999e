"""The engine as one kernel on TPU and GPU, through Pallas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from polyattn import mods
from polyattn.arrays import Array
from polyattn.arrays.leaves import put_in, take_out
from polyattn.implementations import BLOCKWISE, Fused, Implementation, Output
from polyattn.implementations.blockwise import small, symbols
from polyattn.implementations.fused import unfit
from polyattn.implementations.reference import define
from polyattn.problem import Problem
from polyattn_jax.eager import device_of, is_certain
from polyattn_jax.fused.chips import Chip, chip_for
from polyattn_jax.fused.launch import scoring
from polyattn_jax.fused.plan import count, plan, shapes
from polyattn_jax.fused.rule import attend
from polyattn_jax.fused.sizes import demand_of, memory_needed, tile_sizes
from polyattn_jax.fused.trace import Refused

__all__ = ["FUSED", "known_chip", "wanted_chip"]


def _run(p: Problem, settings: Fused | None) -> Output:
    wish = settings or Fused()
    if 0 in (*p.scores_shape, p.q.shape[3], p.v.shape[3]):
        return define(p)
    chip = known_chip(p.q, wish)
    arrays: list[Array] = []
    static = take_out((p, plan(p, chip, wish)), arrays)
    if wish.interpret or wish.platform or is_certain(p.q):
        return Output(*p.backend.compiled(_attend, static, arrays))
    # Traced for whatever machine: the kernel where there is one, the engine where the program runs on another.

    def engine(*arrays: Array) -> tuple[Array, Array]:
        found = BLOCKWISE.run(put_in(static, arrays)[0], None)
        return found.out.astype(p.q.dtype), found.lse  # type: ignore[return-value]

    def kernel(*arrays: Array) -> tuple[Array, Array]:
        return _attend(static, arrays)

    name = "tpu" if chip.platform == "tpu" else "cuda"
    return Output(*jax.lax.platform_dependent(*arrays, default=engine, **{name: kernel}))


def _attend(static: Any, arrays: Sequence[Array]) -> tuple[Array, Array]:
    return attend(*put_in(static, arrays))


def wanted_chip(x: Array, wish: Fused) -> Chip | None:
    """The chip of a kernel for x; None where there is no kernel."""
    here, _ = device_of(x)
    return chip_for(x, wish.platform or ("tpu" if wish.interpret and here == "cpu" else None))


def known_chip(x: Array, wish: Fused) -> Chip:
    """The same, for whoever has asked whether there is one."""
    chip = wanted_chip(x, wish)
    if chip is None:
        raise ValueError(
            f"polyattn_jax.fused: expected arrays on a TPU or a GPU, got some on {device_of(x)[0]}; "
            "Fused(interpret=True) runs a kernel anywhere"
        )
    return chip


def _why_not(p: Problem, settings: Fused | None) -> str | None:
    """Why there is no kernel for a problem, said before one is compiled."""
    wish, (here, _) = settings or Fused(), device_of(p.q)
    chip = wanted_chip(p.q, wish)
    if reason := symbols(p):
        return reason
    if chip is None:
        return f"there are kernels for TPU and GPU, and the arrays are on {here}"
    if chip.platform != here and not wish.interpret and p.backend.is_concrete(p.q):
        return f"the kernel is for {chip.platform}, and the arrays are on {here}"
    if 0 in (*p.scores_shape, p.q.shape[3], p.v.shape[3]):
        return None
    return _no_numbers(p, chip) or _no_tiles(p, chip, wish) or _no_functions(p, chip, wish)


def _no_numbers(p: Problem, chip: Chip) -> str | None:
    if p.compute_dtype == jnp.float64:
        return "kernels have no float64"
    if chip.platform == "tpu" and p.q.dtype == jnp.float16:
        return "a TPU has no float16; bfloat16 is its half precision"
    return None


def _no_tiles(p: Problem, chip: Chip, wish: Fused) -> str | None:
    for name, size, length in (("rows", wish.rows, p.frame.rows), ("keys", wish.keys, p.frame.keys)):
        if size is None or wish.interpret or (chip.platform == "tpu" and size >= length):
            continue
        if reason := unfit(chip.platform, name, size):
            return reason
    needed = memory_needed(demand_of(p), chip, tile_sizes(p, chip, wish))
    if needed > chip.memory and not wish.interpret:
        return (
            f"tiles of width {p.q.shape[3]} and {p.v.shape[3]} take about {needed} bytes on the chip, and {chip.kind} "
            f"has {chip.memory} for them"
        )
    if chip.platform == "tpu" and not wish.interpret:
        # More than can be is not listed before it is refused.
        needed = max(8 * count(p, shape).met for shape in shapes(p, chip, wish))
        if needed <= chip.lists:
            needed = max(plan(p, chip, wish).list_bytes)
        if needed > chip.lists:
            return f"the lists of visits take {needed} bytes, and {chip.kind} has {chip.lists} for them: Fused(rows, keys) makes tiles larger"
    return None


def _no_functions(p: Problem, chip: Chip, wish: Fused) -> str | None:
    """Why a function of the user is none of a kernel; those of the library all are."""
    if not mods.functions(p.score_mod) and (p.mask is None or p.mask.exact):
        return None

    def operands() -> list[Array]:
        forward, _ = shapes(p, chip, wish)
        return [o.array for o in scoring(p, forward, chip.only).operands]

    try:
        jax.eval_shape(operands)
    except Refused as error:
        return str(error)
    except jax.errors.TracerArrayConversionError:
        return "its functions make NumPy arrays of what they are given, which kernels cannot"
    return None


# Written out, as for the engine.
ACCEPTS = "causal mask query_offset traced_offset positions bias score_mod scale sinks dropout origin lse"

FUSED = Implementation(
    name="fused",
    title="the engine as one kernel",
    accepts=frozenset(ACCEPTS.split()),
    run=_run,
    why_not_so=_why_not,
    passed_over=small,
    why="one kernel, and nothing of the scores in memory",
    settings=Fused,
    transforms=frozenset({"grad", "vmap", "compile"}),
)
