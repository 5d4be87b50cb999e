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


def visits(p: Problem, rows: int, keys: int) -> tuple[Visits, Visits]:
    """Of query tiles to key tiles, and of key tiles to query tiles."""
    length, count = p.frame.rows, p.frame.keys
    down, across = -(-length // rows), -(-count // keys)
    cuts: Sequence[Cut]
    if p.mask is None:
        cuts = [(((0, across, FULL),),) * down]
    else:
        one = p.mask.batch_size() == 1 and not p.places.per_item
        cuts = [
            cut(p.mask, length, count, (rows, keys), b=b, places=p.places, remember=p.backend.may_remember())
            for b in ((None,) if one else range(p.frame.batch))
        ]
    whole = count // keys  # key tiles of whole size
    return (
        tuple(_lists(c, lambda i, j: j >= whole) for c in cuts),
        tuple(_lists(turned(c, across), lambda j, i: j >= whole) for c in cuts),
    )


def _lists(lines: Cut, beyond: Callable[[int, int], bool]) -> tuple[tuple[Visit, ...], ...]:
    """beyond: whether a tile has keys beyond the last one."""
    found = []
    for i, line in enumerate(lines):
        met = [
            Visit(j, tile is PARTIAL or beyond(i, j)) for start, stop, tile in line for j in range(start, stop)
        ]
        found.append(tuple(sorted(met, key=lambda visit: visit.masked)))
    return tuple(found)
