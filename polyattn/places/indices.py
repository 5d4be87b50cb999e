"""The index arrays of a tile of scores: what masks, modifications and dropout compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.places.frame import ORIGIN, Places


class Positions(NamedTuple):
    """Broadcast index arrays of a tile of scores (B, H, L, S), and the way to cut arrays to it."""

    b: Array  # (B, 1, 1, 1) number of the batch item; on a shard that of the whole
    h: Array  # (1, H, 1, 1) number of the query head, likewise
    item: Array  # (B, 1, 1, 1) index of the batch item
    row: Array  # (1, 1, L, 1) index of the query row
    column: Array  # (1, 1, 1, S) index of the key
    q: Array  # (1 or B, 1, L, 1) position of the query
    kv: Array  # (1 or B, 1, 1, S) position of the key; negative where a slot is empty
    cut: Callable[[Array], Array]  # the part of a (B|1, H|1, L|1, S|1) array in this tile


Sizes = tuple[int, int, int, int]


def positions(
    backend: Backend, like: Array, sizes: Sizes, places: Places = ORIGIN, start: Sequence[Any] = (0, 0, 0, 0)
) -> Positions:
    """The positions of the tile (B, H, L, S) of scores that begins at `start`, by index; start may be traced."""
    xp = backend.xp

    def index(axis: int) -> Array:
        at = _plus(backend.arange(0, sizes[axis], like), start[axis])
        return xp.reshape(at, (1,) * axis + (-1,) + (1,) * (3 - axis))

    def cut(x: Array) -> Array:
        for axis in range(4):
            if x.shape[axis] != 1 and x.shape[axis] != sizes[axis]:
                x = backend.tile(x, start[axis], sizes[axis], axis - 4)
        return x

    item, row, column = index(0), index(2), index(3)
    return Positions(
        b=_plus(item, places.batch),
        h=_plus(index(1), places.head),
        item=item,
        row=row,
        column=column,
        q=standing(places.query, row, 2, cut),
        kv=standing(places.key, column, 3, cut),
        cut=cut,
    )


def standing(where: int | Array, along: Array, axis: int, cut: Callable[[Array], Array]) -> Array:
    """The positions of the indices `along` an axis of the scores: an offset, one for each item, or a list."""
    if not is_array(where) or where.ndim == 0:
        return _plus(along, where)
    shape = [where.shape[0], 1, 1, 1]
    if where.ndim == 2:
        shape[axis] = where.shape[1]
    there = cut(backend_of(where).xp.reshape(where, tuple(shape)))
    return along + there if where.ndim == 1 else there


def _plus(x: Array, start: Any) -> Array:
    return x if isinstance(start, int) and start == 0 else x + start


def gather(b: Array, h: Array, q: Array, kv: Array, places: Places = ORIGIN) -> Positions:
    """Positions from the four index arrays of a `mask_mod`; arrays are cut by indexing."""

    def cut(array: Array) -> Array:
        index = (b, h, q, kv)
        return array[tuple(i if size > 1 else i * 0 for i, size in zip(index, array.shape, strict=True))]

    def stand(where: int | Array, along: Array) -> Array:
        if not is_array(where) or where.ndim == 0:
            return _plus(along, where)
        item = b if where.shape[0] > 1 else b * 0
        return along + where[(item,)] if where.ndim == 1 else where[item, along]

    return Positions(
        b=_plus(b, places.batch),
        h=_plus(h, places.head),
        item=b,
        row=q,
        column=kv,
        q=stand(places.query, q),
        kv=stand(places.key, kv),
        cut=cut,
    )


def look_up(numbers: Sequence[float], index: Array, dtype: Any) -> Array:
    """numbers[index]: Python numbers at the places that an index array says.

    For a scalar by comparisons: FlexAttention's compiler, which gives scalars, takes no new arrays in a mod.
    """
    backend = backend_of(index)
    if index.ndim:
        return backend.asarray(numbers, dtype, index)[(index,)]
    found = backend.astype(index * 0, dtype)
    for i, number in enumerate(numbers):
        found = backend.xp.where(index == i, number, found)
    return found
