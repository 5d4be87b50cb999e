"""Which tiles of the score matrix a mask empties, fills, or cuts.

Every built-in mask answers exactly for any rectangle, by arithmetic on its corners. A combination of
masks may be unsure (two masks that each cut a tile can still empty it together); then the rectangle is
quartered until the answer is certain, which a single element always is, or evaluated where the mask
holds arrays. So the answer is exact for every combination of built-in masks; where positions are listed
it is exact or PARTIAL, which is never wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from polyattn.arrays import Array, backend_of, eagerly, readable
from polyattn.places import Places, Positions, Sides, positions


class Tile(Enum):
    EMPTY = 0  # no query may attend to any key
    FULL = 1  # every query may attend to every key
    PARTIAL = 2  # some may
    UNSURE = 3  # not known from the corners alone; never leaves this package

    def __and__(self, other: Tile) -> Tile:
        if self is EMPTY or other is EMPTY:
            return EMPTY
        if self is FULL:
            return other
        if other is FULL:
            return self
        return UNSURE

    def __invert__(self) -> Tile:
        """The tile of the opposite mask."""
        return FULL if self is EMPTY else EMPTY if self is FULL else self


EMPTY, FULL, PARTIAL, UNSURE = Tile


def decide(full: bool, empty: bool) -> Tile:
    """FULL or EMPTY if one of them is sure, else PARTIAL."""
    return FULL if full else EMPTY if empty else PARTIAL


class Box(NamedTuple):
    """A rectangle of the score matrix: rows x keys, by index, of one batch item and head or of all (None)."""

    rows: range
    keys: range
    b: int | None
    h: int | None
    places: Places
    sides: Sides  # the same as Python numbers

    @property
    def key_span(self) -> tuple[int, int] | None:
        """Least and largest key position; None while they are traced."""
        return self.sides.key.span(self.keys, self.b or 0)

    @property
    def corners(self) -> tuple[int, int, int, int] | None:
        """Least and largest query position, then the key span; None while they are traced."""
        q, kv = self.sides.query.span(self.rows, self.b or 0), self.key_span
        return None if q is None or kv is None else (*q, *kv)


class Divisible(Hashable, Protocol):
    """What is asked of a mask here."""

    relative: Any
    exact: Any

    def box(self, box: Box) -> Tile: ...
    def allowed(self, at: Positions) -> Array: ...
    def arrays(self) -> Iterator[Array]: ...
    def read(self) -> Divisible: ...
    def batch_size(self) -> int: ...
    def head_count(self) -> int: ...


Grid = tuple[tuple[Tile, ...], ...]  # a line per query tile
Run = tuple[int, int, Tile]  # tiles start .. stop - 1 of a line, which are alike
Cut = tuple[tuple[Run, ...], ...]  # a line per query tile: what is not empty, in order


def classify(mask: Divisible, box: Box) -> Tile:
    """EMPTY, FULL or PARTIAL."""
    if not box.rows or not box.keys:
        return EMPTY
    if box.b is None and box.sides.items > 1:
        return join(classify(mask, box._replace(b=b)) for b in range(box.sides.items))
    tile = mask.box(box)
    if tile is not UNSURE:
        return tile
    arrays = list(mask.arrays())
    if box.corners is None or not mask.exact or not readable(*arrays):
        return PARTIAL
    if arrays:
        return _evaluate(mask, box, arrays[0])
    if box.places.listed:
        return PARTIAL
    if box.b is None and mask.batch_size() > 1:
        return join(classify(mask, box._replace(b=b)) for b in range(mask.batch_size()))
    return join(classify(mask, quarter) for quarter in _quarters(box))


def grid(mask: Divisible, rows: int, keys: int, size: tuple[int, int], **where: Any) -> Grid:
    """The tiles of that size by query tile, each in its place, the empty ones too."""
    found = []
    for runs in both_ways(mask, rows, keys, size, **where)[0]:
        line = [EMPTY] * -(-keys // size[1])
        for start, stop, tile in runs:
            line[start:stop] = [tile] * (stop - start)
        found.append(tuple(line))
    return tuple(found)


def both_ways(
    mask: Divisible,
    rows: int,
    keys: int,
    size: tuple[int, int],
    *,
    b: int | None = None,
    h: int | None = None,
    places: Places,
    remember: bool = False,
) -> tuple[Cut, Cut]:
    """The tiles of that size that are not empty, the last ones ragged, by query tile and by key tile.

    remember: keep the answer for the next call with an equal mask, if it holds no arrays.
    """
    if remember and places.fixed and mask.exact and not any(True for _ in mask.arrays()):
        return _known_cut(mask, rows, keys, size, b, h, places.query, places.key)
    return _cut(mask, rows, keys, size, b, h, places)


def _cut(
    mask: Divisible,
    rows: int,
    keys: int,
    size: tuple[int, int],
    b: int | None,
    h: int | None,
    places: Places,
) -> tuple[Cut, Cut]:
    lines: list[list[Run]] = [[] for _ in range(0, rows, size[0])]
    columns: list[list[Run]] = [[] for _ in range(0, keys, size[1])]
    known: dict[tuple[int, ...], Tile] = {}  # boxes of a relative mask look the same along a diagonal

    def visit(down: range, across: range) -> None:
        """The tiles in those lines and columns: by halves, until what is seen of a box is one thing."""
        box = Box(
            range(down.start * size[0], min(down.stop * size[0], rows)),
            range(across.start * size[1], min(across.stop * size[1], keys)),
            *(b, h, places, sides),
        )
        one = len(down) == len(across) == 1
        if not (here.relative and places.fixed):
            tile = classify(here, box) if one else _glance(here, box)
        else:
            shape = (box.keys.start - box.rows.start, len(box.rows), len(box.keys), one)
            if shape not in known:
                known[shape] = classify(here, box) if one else _glance(here, box)
            tile = known[shape]
        if one or tile is FULL:
            for i in down if tile is not EMPTY else ():
                extend(lines[i], across.start, across.stop, tile)
            for j in across if tile is not EMPTY else ():
                extend(columns[j], down.start, down.stop, tile)
        elif tile is not EMPTY:
            for part in halves(down):
                for other in halves(across):
                    visit(part, other)

    with eagerly([*mask.arrays(), *places.arrays()]):
        here, sides = mask.read(), places.read()
        if rows and keys:
            visit(range(len(lines)), range(len(columns)))
    return tuple(map(tuple, lines)), tuple(map(tuple, columns))


def extend(line: list[Run], start: int, stop: int, tile: Tile) -> None:
    """A line with a run at its end, joined with the last one if they are alike."""
    if line and line[-1][1] == start and line[-1][2] is tile:
        start = line.pop()[0]
    line.append((start, stop, tile))


@lru_cache(maxsize=256)
def _known_cut(
    mask: Divisible,
    rows: int,
    keys: int,
    size: tuple[int, int],
    b: int | None,
    h: int | None,
    query: int,
    key: int,
) -> tuple[Cut, Cut]:
    return _cut(mask, rows, keys, size, b, h, Places(query, key))


def _glance(mask: Divisible, box: Box) -> Tile:
    """EMPTY or FULL if the corners say so for every batch item; else anything."""
    items = range(box.sides.items) if box.b is None and box.sides.items > 1 else (box.b,)
    found = {mask.box(box._replace(b=b)) for b in items}
    return found.pop() if len(found) == 1 else UNSURE


def halves(r: range) -> list[range]:
    middle = len(r) // 2
    return [r[:middle], r[middle:]] if middle else [r]


def _quarters(box: Box) -> list[Box]:
    return [box._replace(rows=rows, keys=keys) for rows in halves(box.rows) for keys in halves(box.keys)]


def join(parts: Iterable[Tile]) -> Tile:
    """The tile made of disjoint parts, looking at no more of them than needed."""
    first: Tile | None = None
    for part in parts:
        if part is PARTIAL or (first is not None and part is not first):
            return PARTIAL
        first = part
    return EMPTY if first is None else first


def _evaluate(mask: Divisible, box: Box, like: Array) -> Tile:
    """By looking at every element: for combinations of masks that hold arrays."""
    backend = backend_of(like)
    items = range(mask.batch_size()) if box.b is None else range(box.b, box.b + 1)
    heads = range(mask.head_count()) if box.h is None else range(box.h, box.h + 1)
    ranges = (items, heads, box.rows, box.keys)
    at = positions(
        backend,
        like,
        tuple(len(r) for r in ranges),  # type: ignore[arg-type]
        box.places,
        tuple(r.start for r in ranges),
    )
    return look(mask.allowed(at))


def look(allowed: Array) -> Tile:
    """What a concrete bool array makes of its tile."""
    backend = backend_of(allowed)
    if not backend.to_list(backend.xp.any(allowed)):
        return EMPTY
    return FULL if backend.to_list(backend.xp.all(allowed)) else PARTIAL
