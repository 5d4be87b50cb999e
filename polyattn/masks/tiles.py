"""Which tiles of the score matrix a mask empties, fills, or cuts.

Every built-in mask answers exactly for any rectangle, by arithmetic on its corners. A combination of
masks may be unsure (two masks that each cut a tile can still empty it together); then the rectangle is
quartered until the answer is certain, which a single element always is, or evaluated where the mask
holds arrays. So the answer is exact for every combination of built-in masks.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from polyattn.arrays import Array, backend_of, eagerly
from polyattn.places.positions import Positions

if TYPE_CHECKING:
    from polyattn.masks.algebra import Mask


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


EMPTY, FULL, PARTIAL, UNSURE = Tile


def invert(tile: Tile) -> Tile:
    """The tile of the opposite mask."""
    return {EMPTY: FULL, FULL: EMPTY}.get(tile, tile)


class Box(NamedTuple):
    """A rectangle of the score matrix: rows x keys, of one batch item and head or of all (None)."""

    rows: range
    keys: range
    b: int | None
    h: int | None
    offset: int | Array  # position of row 0; an array if it differs by batch item or is traced

    @property
    def corners(self) -> tuple[int, int, int, int] | None:
        """First and last query position, first and last key position; None while the offset is unknown."""
        if not isinstance(self.offset, int):
            return None
        rows, keys = self.rows, self.keys
        return rows[0] + self.offset, rows[-1] + self.offset, keys[0], keys[-1]


def classify(mask: Mask, box: Box) -> Tile:
    """EMPTY, FULL or PARTIAL."""
    if not box.rows or not box.keys:
        return EMPTY
    if not isinstance(box.offset, int):
        return _with_offsets(mask, box)
    tile = mask.box(box)
    if tile is not UNSURE:
        return tile
    arrays = list(mask.arrays())
    if not mask.exact or not all(backend_of(a).is_concrete(a) for a in arrays):
        return PARTIAL
    if arrays:
        return _evaluate(mask, box, arrays[0])
    if box.b is None and mask.batch_size() > 1:
        return _join(classify(mask, box._replace(b=b)) for b in range(mask.batch_size()))
    return _join(classify(mask, quarter) for quarter in _quarters(box))


def grid(
    mask: Mask,
    rows: int,
    keys: int,
    tile: tuple[int, int],
    b: int | None,
    h: int | None,
    offset: int | Array,
    remember: bool,
) -> list[list[Tile]]:
    """`classify` for every tile."""
    if remember and isinstance(offset, int) and mask.exact and not any(True for _ in mask.arrays()):
        return _known_grid(mask, rows, keys, tile, b, h, offset)
    return _grid(mask, rows, keys, tile, b, h, offset)


def _grid(
    mask: Mask, rows: int, keys: int, tile: tuple[int, int], b: int | None, h: int | None, offset: int | Array
) -> list[list[Tile]]:
    down = [range(i, min(i + tile[0], rows)) for i in range(0, rows, tile[0])]
    across = [range(j, min(j + tile[1], keys)) for j in range(0, keys, tile[1])]
    with eagerly([*mask.arrays(), *(() if isinstance(offset, int) else (offset,))]):
        return [[classify(mask, Box(i, j, b, h, offset)) for j in across] for i in down]


_known_grid = lru_cache(maxsize=256)(_grid)


def _with_offsets(mask: Mask, box: Box) -> Tile:
    """The offset is an array: item by item where it can be read, PARTIAL where it is traced."""
    backend = backend_of(box.offset)
    if not mask.compares_positions and mask.exact:
        return classify(mask, box._replace(offset=0))
    if not backend.is_concrete(box.offset):
        tile = mask.box(box)
        return PARTIAL if tile is UNSURE else tile
    values = backend.to_list(box.offset)
    if isinstance(values, int):
        return classify(mask, box._replace(offset=values))
    if box.b is not None:
        return classify(mask, box._replace(offset=values[box.b if len(values) > 1 else 0]))
    return _join(classify(mask, box._replace(offset=value, b=b)) for b, value in enumerate(values))


def _quarters(box: Box) -> list[Box]:
    def halves(r: range) -> list[range]:
        middle = len(r) // 2
        return [r[:middle], r[middle:]] if middle else [r]

    return [box._replace(rows=rows, keys=keys) for rows in halves(box.rows) for keys in halves(box.keys)]


def _join(parts: object) -> Tile:
    """The tile made of disjoint parts, looking at no more of them than needed."""
    first: Tile | None = None
    for part in parts:  # type: ignore[attr-defined]
        if part is PARTIAL or (first is not None and part is not first):
            return PARTIAL
        first = part
    return EMPTY if first is None else first


def _evaluate(mask: Mask, box: Box, like: Array) -> Tile:
    """By looking at every element: for combinations of masks that hold arrays."""
    backend = backend_of(like)
    xp = backend.xp
    batches = range(mask.batch_size()) if box.b is None else range(box.b, box.b + 1)
    heads = range(mask.head_count()) if box.h is None else range(box.h, box.h + 1)

    def positions(r: range, axis: int) -> Array:
        return xp.reshape(backend.arange(r.start, r.stop, like), (-1,) + (1,) * (3 - axis))

    def cut(array: Array) -> Array:
        ranges = (batches, heads, box.rows, box.keys)
        return array[
            tuple(
                slice(None) if n == 1 else slice(r.start, r.stop)
                for r, n in zip(ranges, array.shape, strict=True)
            )
        ]

    row = positions(box.rows, 2)
    at = Positions(
        positions(batches, 0), positions(heads, 1), row, row + box.offset, positions(box.keys, 3), cut
    )
    allowed = mask.allowed(at)
    if not backend.to_list(xp.any(allowed)):
        return EMPTY
    return FULL if backend.to_list(xp.all(allowed)) else PARTIAL
