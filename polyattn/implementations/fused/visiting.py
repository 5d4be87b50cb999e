"""Which tiles the programs of a kernel meet, as lists of integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from polyattn.implementations.blockwise.plan import turned
from polyattn.masks.tiles import FULL, PARTIAL, Cut, cut
from polyattn.problem import Problem


class Visit(NamedTuple):
    """A tile of the other side; masked: its scores have to be compared with the mask, or with the end."""

    other: int
    masked: bool


#: Per batch item (or one for all), per tile of a side: what it meets, unmasked tiles first.
Visits = tuple[tuple[tuple[Visit, ...], ...], ...]


class Count(NamedTuple):
    """How many tiles there are in a head of all items with masks of their own, and what becomes of them."""

    every: int
    met: int
    masked: int


def visits(p: Problem, rows: int, keys: int) -> tuple[Visits, Visits]:
    """Of query tiles to key tiles, and of key tiles to query tiles."""
    cuts = _cuts(p, rows, keys)
    across, whole = -(-p.frame.keys // keys), p.frame.keys // keys  # key tiles, those of whole size
    return (
        tuple(_lists(c, lambda i, j: j >= whole) for c in cuts),
        tuple(_lists(turned(c, across), lambda j, i: j >= whole) for c in cuts),
    )


def counted(p: Problem, rows: int, keys: int) -> Count:
    """What `visits` lists, in numbers."""
    cuts = _cuts(p, rows, keys)
    down, across, whole = -(-p.frame.rows // rows), -(-p.frame.keys // keys), p.frame.keys // keys
    runs = [run for c in cuts for line in c for run in line]
    return Count(
        every=len(cuts) * down * across,
        met=sum(stop - start for start, stop, _ in runs),
        masked=sum(
            stop - start if tile is PARTIAL else max(stop - max(start, whole), 0)
            for start, stop, tile in runs
        ),
    )


def _cuts(p: Problem, rows: int, keys: int) -> Sequence[Cut]:
    """The tiles that are not empty, for each batch item or once for all."""
    length, count = p.frame.rows, p.frame.keys
    if p.mask is None:
        return [(((0, -(-count // keys), FULL),),) * -(-length // rows)]
    one = p.mask.batch_size() == 1 and not p.places.per_item
    return [
        cut(p.mask, length, count, (rows, keys), b=b, places=p.places, remember=p.backend.may_remember())
        for b in ((None,) if one else range(p.frame.batch))
    ]


def _lists(lines: Cut, beyond: Callable[[int, int], bool]) -> tuple[tuple[Visit, ...], ...]:
    """beyond: whether a tile has keys beyond the last one."""
    found = []
    for i, line in enumerate(lines):
        met = [
            Visit(j, tile is PARTIAL or beyond(i, j))
            for start, stop, tile in line
            for j in range(start, stop)
        ]
        found.append(tuple(sorted(met, key=lambda visit: visit.masked)))
    return tuple(found)
