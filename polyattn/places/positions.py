"""Where a tile of the score matrix lies: the integer positions that masks and mods compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polyattn.arrays import Array, Backend, backend_of


class Positions(NamedTuple):
    """Broadcast index arrays of a tile of scores (B, H, L, S), and the way to cut arrays to it.

    `q = row + query_offset`; the key at index j has position j.
    """

    b: Array  # (B, 1, 1, 1) batch
    h: Array  # (1, H, 1, 1) query head
    row: Array  # (1, 1, L, 1) index of the query row
    q: Array  # (1 or B, 1, L, 1) position of the query
    kv: Array  # (1, 1, 1, S) position of the key
    cut: Callable[[Array], Array]  # the part of a (B|1, H|1, L|1, S|1) array in this tile


def whole(
    backend: Backend, like: Array, batch: int, heads: int, rows: int, keys: int, offset: int | Array = 0
) -> Positions:
    """The positions of the whole score matrix."""
    xp = backend.xp
    row = xp.reshape(backend.arange(0, rows, like), (1, 1, rows, 1))
    if not isinstance(offset, int) and offset.ndim:
        offset = xp.reshape(offset, (-1, 1, 1, 1))
    return Positions(
        b=xp.reshape(backend.arange(0, batch, like), (batch, 1, 1, 1)),
        h=xp.reshape(backend.arange(0, heads, like), (1, heads, 1, 1)),
        row=row,
        q=row + offset,
        kv=xp.reshape(backend.arange(0, keys, like), (1, 1, 1, keys)),
        cut=lambda array: array,
    )


def gather(b: Array, h: Array, q: Array, kv: Array) -> Positions:
    """Positions from the four index arrays of a `mask_mod`, with row = q; arrays are cut by indexing."""

    def cut(array: Array) -> Array:
        index = (b, h, q, kv)
        return array[tuple(i if size > 1 else i * 0 for i, size in zip(index, array.shape, strict=True))]

    return Positions(b, h, q, q, kv, cut)


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
