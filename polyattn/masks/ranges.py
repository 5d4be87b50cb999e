"""A range of keys for every query row."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polyattn.arrays import Array, backend_of, readable
from polyattn.calls import answers, integral
from polyattn.masks.algebra import Mask
from polyattn.masks.fitting import reshape
from polyattn.masks.tiles import UNSURE, Box, Tile, decide
from polyattn.places import Frame, Positions


@dataclass(frozen=True, repr=False, eq=False)
class KeyRanges(Mask):
    """Keys from a start, and before a stop, of each row."""

    starts: Array  # (L,) or (batch, L)
    stops: Array
    known: tuple[tuple[tuple[int, int], ...], ...] | None = (
        None  # both, while boxes are looked at: (items, L)
    )

    def allowed(self, at: Positions) -> Array:
        starts, stops = (
            at.cut(reshape(x, (x.shape[0] if x.ndim > 1 else 1, 1, -1, 1))) for x in (self.starts, self.stops)
        )
        return (starts <= at.column) & (at.column < stops)

    def read(self) -> KeyRanges:
        if not readable(self.starts, self.stops):
            return self
        starts, stops = (
            [x] if given.ndim == 1 else x
            for given, x in ((x, backend_of(x).to_list(x)) for x in (self.starts, self.stops))
        )
        items = range(self.batch_size())
        ranges = (zip(starts[b % len(starts)], stops[b % len(stops)], strict=True) for b in items)
        return replace(self, known=tuple(map(tuple, ranges)))

    def box(self, box: Box) -> Tile:
        if self.known is None:
            return UNSURE
        items = self.known if box.b is None or len(self.known) == 1 else (self.known[box.b],)
        ranges = [x for item in items for x in item[box.rows.start : box.rows.stop]]
        first, last = box.keys.start, box.keys.stop
        return decide(
            all(start <= first and last <= stop for start, stop in ranges),
            all(max(start, first) >= min(stop, last) for start, stop in ranges),
        )

    def batch_size(self) -> int:
        return max(x.shape[0] if x.ndim > 1 else 1 for x in (self.starts, self.stops))

    def own_size(self) -> tuple[int, None]:
        return self.starts.shape[-1], None

    def fit(self, frame: Frame) -> KeyRanges:
        for name, x in (("starts", self.starts), ("stops", self.stops)):
            shape, rows = tuple(x.shape), frame.rows
            if shape not in ((rows,), (1, rows), (frame.batch, rows), (*frame.lead, rows)):
                raise ValueError(
                    f"{frame.who}: expected {name} of masks.key_ranges to have shape ({rows},) or "
                    f"({frame.batch}, {rows}), got {shape}; give one per query row"
                )
        starts, stops = (
            reshape(x, (-1, x.shape[-1])) if x.ndim > 2 else x for x in (self.starts, self.stops)
        )
        return replace(self, starts=starts, stops=stops)

    def __str__(self) -> str:
        return "key_ranges(...)"


@answers("polyattn.masks.key_ranges")
def key_ranges(starts: Array, stops: Array) -> Mask:
    """starts[q] <= kv < stops[q]: query row q sees one range of keys; tiles that no row sees are skipped.

    starts, stops: integers (L,) or (batch, L), one per query row, by index of the row and of the key. Documents packed one
    behind the other, each with its own alignment, are ranges; several ranges of a row are joined by `|`.

    >>> import numpy as np
    >>> print(key_ranges(np.array([0, 1, 1]), np.array([1, 3, 1])).show(3))
    # . .
    . # #
    . . .
    """
    for name, x in (("starts", starts), ("stops", stops)):
        integral("polyattn.masks.key_ranges", name, x, "of integers")
        if x.ndim == 0:
            raise ValueError(
                f"polyattn.masks.key_ranges: expected {name} of shape (L,) or (batch, L), got a single number; give one per "
                "query row"
            )
    return KeyRanges(starts, stops)
