"""The best tiles for a problem: every candidate is run, forward, then with gradients beside the best forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from polyattn.implementations.fused.kernels import Kernels, Trial
from polyattn.implementations.fused.measured import Measured, Tiles, preferring

__all__ = ["WAYS", "Try", "tune"]

WAYS = ("forward", "backward")


class Try(NamedTuple):
    """Tiles of a trial, and what became of them."""

    way: str
    rows: int
    keys: int
    seconds: float | None
    why_not: str | None = None


def tune(
    kernels: Kernels, chip: tuple[str, str], trial: Trial, tell: Callable[[Try], None]
) -> tuple[Measured | None, tuple[Try, ...]]:
    """What was measured on a chip, None where no tiles of a way run; and all that was tried, told one by one."""
    width, dtype, length, interpret = trial
    fastest = {way: Tiles(*kernels.candidates(trial, way)[0], 0.0) for way in WAYS}
    tried: list[Try] = []

    def measured() -> Measured:
        return Measured(*chip, interpret, dtype, width, length, fastest["forward"], fastest["backward"])

    for way in WAYS:
        done: list[Tiles] = []
        for rows, keys in kernels.candidates(trial, way):
            fastest[way] = Tiles(rows, keys, 0.0)
            with preferring([measured()]):
                found = kernels.seconds(trial, way)
            if isinstance(found, str):
                tried.append(Try(way, rows, keys, None, found))
            else:
                tried.append(Try(way, rows, keys, found))
                done.append(Tiles(rows, keys, found))
            tell(tried[-1])
        if not done:
            return None, tuple(tried)
        fastest[way] = min(done, key=lambda tiles: tiles.seconds)
    return measured(), tuple(tried)
