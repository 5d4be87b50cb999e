"""Which tiles the programs of a kernel meet, as runs of tiles that are alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from polyattn.masks.tiles import FULL, PARTIAL, Cut, both_ways
from polyattn.problem import Problem


class Run(NamedTuple):
    """Tiles start .. stop - 1 of the other side; masked: their scores are compared with the mask, or with the end."""

    start: int
    stop: int
    masked: bool


#: Per batch item (or one for all), per tile of a side: what it meets, unmasked tiles first.
Visits = tuple[tuple[tuple[Run, ...], ...], ...]


class Count(NamedTuple):
    """How many tiles there are in a head of all items with masks of their own, and what becomes of them."""

    every: int
    met: int
    masked: int


def visits(p: Problem, rows: int, keys: int) -> tuple[Visits, Visits]:
    """Of query tiles to key tiles, and of key tiles to query tiles."""
    length, count = p.frame.rows, p.frame.keys
    down, across, whole = (
        -(-length // rows),
        -(-count // keys),
        count // keys,
    )  # key tiles, those of whole size
    if p.mask is None:
        cuts: list[tuple[Cut, Cut]] = [((((0, across, FULL),),) * down, (((0, down, FULL),),) * across)]
    else:
        one = p.mask.batch_size() == 1 and not p.places.per_item
        how = {"places": p.places, "remember": p.backend.may_remember()}
        cuts = [
            both_ways(p.mask, length, count, (rows, keys), b=b, **how)  # type: ignore[arg-type]
            for b in ((None,) if one else range(p.frame.batch))
        ]
    return (
        tuple(tuple(_sorted(_ending(line, whole)) for line in by_query) for by_query, _ in cuts),
        tuple(
            tuple(
                _sorted(Run(a, b, tile is PARTIAL or j >= whole) for a, b, tile in line)
                for j, line in enumerate(by_key)
            )
            for _, by_key in cuts
        ),
    )


def _ending(line: Iterable[tuple[int, int, object]], whole: int) -> Iterable[Run]:
    """The runs of a query tile: the last key tile may have less than all keys."""
    for start, stop, tile in line:
        if tile is PARTIAL:
            yield Run(start, stop, True)
            continue
        for part, masked in ((range(start, min(stop, whole)), False), (range(max(start, whole), stop), True)):
            if part:
                yield Run(part.start, part.stop, masked)


def _sorted(runs: Iterable[Run]) -> tuple[Run, ...]:
    return tuple(sorted(runs, key=lambda run: run.masked))


def counted(p: Problem, rows: int, keys: int) -> Count:
    """The tiles of `visits`, in numbers."""
    by_query, _ = visits(p, rows, keys)
    runs = [run for item in by_query for line in item for run in line]
    return Count(
        every=len(by_query) * -(-p.frame.rows // rows) * -(-p.frame.keys // keys),
        met=sum(run.stop - run.start for run in runs),
        masked=sum(run.stop - run.start for run in runs if run.masked),
    )
