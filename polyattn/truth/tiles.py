"""A problem cut into tiles: some batch items, heads and query rows against every key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from polyattn.truth.spec import Floats, Spec

__all__ = ["LARGEST", "Operands", "Place", "cut", "operands", "places"]

LARGEST = 2**19  # scores of a tile; about thirty arrays of that size are alive at once


class Place(NamedTuple):
    """Where a tile lies among the scores."""

    batch: slice
    heads: slice
    rows: slice


def places(shape: tuple[int, int, int, int], largest: int | None = LARGEST) -> Iterator[Place]:
    """The tiles of scores (B, H, L, S), none with more than `largest` of them but for one row that is longer.

    None: all in one.

    >>> [place.rows for place in places((1, 1, 5, 8), 24)]
    [slice(0, 3, None), slice(3, 5, None)]
    """
    if largest is None:
        yield Place(*(slice(0, n) for n in shape[:3]))
        return
    sizes = list[int]()
    room = largest // max(shape[3], 1)
    for n in reversed(shape[:3]):
        sizes.append(min(max(room, 1), n))
        room = room // max(n, 1)
    for batch in _pieces(shape[0], sizes[2]):
        for heads in _pieces(shape[1], sizes[1]):
            for rows in _pieces(shape[2], sizes[0]):
                yield Place(batch, heads, rows)


def _pieces(n: int, size: int) -> Iterator[slice]:
    """One empty piece of nothing."""
    yield from (slice(i, min(i + size, n)) for i in range(0, n, size)) if n else (slice(0, 0),)


def cut(x: Floats, place: tuple[slice, ...]) -> Floats:
    """The part at a place of what broadcasts to the scores."""
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    return x[tuple(s if n > 1 else slice(None) for s, n in zip(place, x.shape, strict=False))]


class Operands(NamedTuple):
    """Query, key and value of a tile, keys and values once for every query head, and what their roundings are parts of."""

    q: Floats
    k: Floats
    v: Floats
    q_size: Floats
    k_size: Floats


def operands(spec: Spec, place: Place, real: type[np.floating]) -> Operands:
    """The arrays of a tile."""
    heads = spec.shape[1]
    group = heads // spec.k.shape[1] if spec.k.shape[1] else 1
    of_kv = np.arange(heads)[place.heads] // group
    size = place.batch.stop - place.batch.start

    def part(x: Floats, rows: slice, of: Floats | slice) -> Floats:
        x = cut(x, (place.batch,))[:, of][:, :, rows].astype(real)
        return np.broadcast_to(x, (size, *x.shape[1:]))

    every = slice(None)
    q, k = part(spec.q, place.rows, place.heads), part(spec.k, every, of_kv)
    q_size = np.abs(q) if spec.q_size is None else part(spec.q_size, place.rows, place.heads)
    k_size = np.abs(k) if spec.k_size is None else part(spec.k_size, every, of_kv)
    return Operands(q, k, part(spec.v, every, of_kv), q_size, k_size)
