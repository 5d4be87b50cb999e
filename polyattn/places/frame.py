"""The score matrix that masks, biases and lengths are laid upon, and where on the number line it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from polyattn.arrays import Array, backend_of, eagerly, is_array


class Frame(NamedTuple):
    """The sizes of a score matrix (B, H, L, S)."""

    batch: int
    heads: int
    rows: int
    keys: int
    lead: tuple[int, ...]  # the axes before the head axis as the caller wrote them; batch is their product
    who: str = "polyattn.attention"  # the function that speaks in errors


@dataclass(frozen=True, eq=False)
class Places:
    """Positions of rows and keys, and the numbers of the first item and head (those of a shard are not 0).

    A side is an offset, the position of its index 0, for all items (a number, or an array ()) or for each (B,); or
    a list of the positions of all its indices, (1, L) or (B, L).
    """

    query: int | Array = 0
    key: int | Array = 0
    batch: int | Array = 0
    head: int | Array = 0

    @property
    def fixed(self) -> bool:
        """Whether both sides are offsets that Python knows, so that they can be part of a key."""
        return isinstance(self.query, int) and isinstance(self.key, int)

    @property
    def listed(self) -> bool:
        """Whether a side has a list of positions."""
        return any(is_array(side) and side.ndim == 2 for side in (self.query, self.key))

    @property
    def per_item(self) -> bool:
        """Whether batch items differ in their positions."""
        return any(is_array(side) and side.ndim > 0 and side.shape[0] > 1 for side in (self.query, self.key))

    def arrays(self) -> list[Array]:
        return [side for side in (self.query, self.key) if is_array(side)]

    def read(self) -> Sides:
        """The positions as Python numbers, where they can be read."""
        return Sides(Side.of(self.query), Side.of(self.key))


#: Everything from 0 on: a whole problem without offsets.
ORIGIN = Places()


class Side(NamedTuple):
    """The positions of one side as Python numbers, one entry for each batch item or one for all."""

    offsets: list[int] | None = None
    lists: list[list[int]] | None = None  # neither: traced, so nobody knows

    @classmethod
    def of(cls, where: int | Array) -> Side:
        if isinstance(where, int):
            return cls(offsets=[where])
        if not is_array(where) or not backend_of(where).is_concrete(where):
            return cls()
        backend = backend_of(where)
        with eagerly([where]):
            values = backend.to_list(where)
        if where.ndim == 2:
            return cls(lists=values)
        return cls(offsets=[values] if isinstance(values, int) else values)

    @property
    def items(self) -> int:
        """How many batch items have positions of their own."""
        return len(self.offsets or self.lists or [0])

    def span(self, indices: range, item: int) -> tuple[int, int] | None:
        """The least and the largest position of a range of indices; None while they are traced."""
        if self.offsets is not None:
            offset = self.offsets[item if len(self.offsets) > 1 else 0]
            return indices[0] + offset, indices[-1] + offset
        if self.lists is not None:
            here = self.lists[item if len(self.lists) > 1 else 0][indices.start : indices.stop]
            return min(here), max(here)
        return None


class Sides(NamedTuple):
    """Both sides as Python numbers."""

    query: Side = Side([0])
    key: Side = Side([0])

    @property
    def items(self) -> int:
        return max(self.query.items, self.key.items)
