"""Rules of the functions that sum entries, multiply matrices, and move entries about; see `rules.py` for their form."""

from __future__ import annotations

import math
from typing import Any

from polyattn.arrays import Array, Backend
from polyattn.gradients.tape import Part, Rule

__all__ = ["ARRAYS"]

# sums: d goes to all that was summed


def _cut(x: Array, axis: int, start: int, stop: int | None) -> Array:
    """x from start to stop of an axis that is counted from the first."""
    return x[(*(slice(None),) * axis, slice(start, stop), ...)]


def _axes(x: Array, axis: Any) -> tuple[int, ...]:
    """An argument axis as the numbers of axes."""
    every = range(x.ndim) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    return tuple(i % x.ndim for i in every)


def _kept(b: Backend, d: Array, x: Array, axis: Any) -> Array:
    """d with the axes of x that were reduced, of size 1."""
    axes = _axes(x, axis)
    return b.xp.reshape(d, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _sum(b: Backend, d: Array, z: Array, x: Array, axis: Any = None, **_: Any) -> Array:
    return b.xp.broadcast_to(_kept(b, d, x, axis), x.shape)


def _mean(b: Backend, d: Array, z: Array, x: Array, axis: Any = None, **_: Any) -> Array:
    return _sum(b, d, z, x, axis) / math.prod(x.shape[i] for i in _axes(x, axis))


def _extreme(b: Backend, d: Array, z: Array, x: Array, axis: Any = None, **_: Any) -> Array:
    """d goes to the entry that is the largest, in equal shares to those that are."""
    there = b.astype(x == _kept(b, z, x, axis), d.dtype)
    number = b.xp.sum(there, axis=_axes(x, axis), keepdims=True)
    return _kept(b, d, x, axis) * there / number


def _running(b: Backend, d: Array, z: Array, x: Array, axis: Any = None, **_: Any) -> Array:
    """z_i = x_0 + ... + x_i:  dx_i = d_i + d_(i+1) + ..."""
    axis = 0 if axis is None else axis % x.ndim
    if z.shape[axis] != x.shape[axis]:  # include_initial: a 0 came first
        d = _cut(d, axis, 1, None)
    return b.xp.flip(b.cumulative_sum(b.xp.flip(d, axis=axis), axis), axis=axis)


# products


def _t(b: Backend, x: Array) -> Array:
    return b.xp.matrix_transpose(x)


def _solved(b: Backend, d: Array, z: Array, a: Array, y: Array) -> Array:
    """A Z = Y:  dY = A^-T dZ"""
    return b.xp.linalg.solve(_t(b, a), d)


# places: what moves entries about


def scattered(b: Backend, d: Array, places: Array, x: Array) -> Array:
    """Zeros like x, to which d was added at its places, counted through x from the first entry to the last."""
    flat = b.xp.reshape(d, (1, 1, -1)), b.xp.reshape(places, (1, -1))
    return b.xp.reshape(_summed(b, *flat, math.prod(x.shape)), x.shape)


def _summed(b: Backend, d: Array, index: Array, count: int) -> Array:
    return b.astype(b.summed_at(b.astype(d, b.compute_dtype(d.dtype)), index, count), d.dtype)


def _numbered(b: Backend, x: Array) -> Array:
    """The place of each entry of x."""
    return b.xp.reshape(b.arange(0, math.prod(x.shape), x), tuple(x.shape))


def _box(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Where the box begins that an index cuts out, and its sizes; None if it cuts out no box."""
    index = index if isinstance(index, tuple) else (index,)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
        return None
    named = [i for i in index if i is not None]
    gap = named.index(Ellipsis) if Ellipsis in named else len(named)
    rest = len(shape) - len(named) + (Ellipsis in named)
    named = [*named[:gap], *(slice(None),) * rest, *named[gap + 1 :]]
    start, sizes = [], []
    for i, n in zip(named, shape, strict=True):
        first, last, step = (i % n, i % n + 1, 1) if isinstance(i, int) else i.indices(n)
        if step != 1 or isinstance(i, bool):
            return None
        start.append(first)
        sizes.append(max(last - first, 0))
    return tuple(start), tuple(sizes)


def _getitem(b: Backend, d: Array, z: Array, x: Array, index: Any) -> Any:
    """z = x[index]:  dx is 0, and d added at [index]."""
    if x.ndim and (box := _box(index, tuple(x.shape))) is not None:
        return Part(box[0], b.xp.reshape(d, box[1]))
    return scattered(b, d, _numbered(b, x)[index], x)


def _take(b: Backend, d: Array, z: Array, x: Array, indices: Array, axis: Any = None) -> Array:
    """z_i = x_(index i):  dx_j = sum of d_i over all i whose index is j."""
    axis = 0 if axis is None else axis % x.ndim
    rest = math.prod(n for i, n in enumerate(x.shape) if i != axis)
    last = b.xp.reshape(b.xp.moveaxis(d, axis, -1), (1, rest, -1))
    count = x.shape[axis]
    index = b.xp.reshape(b.xp.where(indices < 0, indices + count, indices), (1, -1))
    there = (*(n for i, n in enumerate(x.shape) if i != axis), count)
    return b.xp.moveaxis(b.xp.reshape(_summed(b, last, index, count), there), -1, axis)


def _along(b: Backend, d: Array, x: Array, indices: Array, axis: int) -> Array:
    """The same with indices of its own for every row along the axis."""
    wide = tuple(n if i != axis % x.ndim else indices.shape[i] for i, n in enumerate(x.shape))
    indices = b.xp.broadcast_to(b.xp.where(indices < 0, indices + x.shape[axis], indices), wide)
    rows, index = (b.xp.moveaxis(y, axis, -1) for y in (d, indices))
    count, lead = x.shape[axis], tuple(rows.shape[:-1])
    n = rows.shape[-1]
    found = _summed(
        b, b.xp.reshape(rows, (math.prod(lead), 1, n)), b.xp.reshape(index, (math.prod(lead), n)), count
    )
    return b.xp.moveaxis(b.xp.reshape(found, (*lead, count)), -1, axis)


def _take_along_axis(b: Backend, d: Array, z: Array, x: Array, indices: Array, axis: int = -1) -> Array:
    return _along(b, d, x, indices, axis)


def _sort(b: Backend, d: Array, z: Array, x: Array, *, axis: int = -1, **order: Any) -> Array:
    """z_i = x_(order i), and the order is a constant."""
    return _along(b, d, x, b.xp.argsort(x, axis=axis, **order), axis)


def _permute_dims(b: Backend, d: Array, z: Array, x: Array, axes: Any) -> Array:
    back = [0] * len(axes)
    for new, old in enumerate(axes):
        back[old % len(axes)] = new
    return b.xp.permute_dims(d, tuple(back))


class _Concat(dict[int, Any]):
    """z = [x_0 x_1 ...]:  dx_i = that part of d."""

    def __missing__(self, i: int) -> Any:
        def pull(b: Backend, d: Array, z: Array, *arrays: Array, axis: int = 0) -> Array:
            axis %= d.ndim
            start = sum(x.shape[axis] for x in arrays[:i])
            return _cut(d, axis, start, start + arrays[i].shape[axis])

        return pull


def _reshaped(b: Backend, d: Array, z: Array, x: Array, *_: Any, **options: Any) -> Array:
    return b.xp.reshape(d, tuple(x.shape))


ARRAYS: dict[str, Rule] = {
    "sum": (_sum,),
    "mean": (_mean,),
    "max": (_extreme,),
    "min": (_extreme,),
    "cumulative_sum": (_running,),
    "matmul": (  # Z = X Y:  dX = dZ Y^T,  dY = X^T dZ
        lambda b, d, z, x, y: b.matmul(d, _t(b, y)),
        lambda b, d, z, x, y: b.matmul(_t(b, x), d),
    ),
    "linear": (  # the same, in the precision of the user
        lambda b, d, z, x, w: b.linear(d, _t(b, w)),
        lambda b, d, z, x, w: b.linear(_t(b, x), d),
    ),
    "solve": (  # A Z = Y:  dA = -dY Z^T
        lambda b, d, z, a, y: -b.matmul(_solved(b, d, z, a, y), _t(b, z)),
        _solved,
    ),
    "astype": (lambda b, d, z, x, *_, **options: d,),
    "reshape": (_reshaped,),
    "expand_dims": (_reshaped,),
    "squeeze": (_reshaped,),
    "broadcast_to": (lambda b, d, z, x, shape: d,),
    "permute_dims": (_permute_dims,),
    "matrix_transpose": (lambda b, d, z, x: _t(b, d),),
    "moveaxis": (lambda b, d, z, x, source, destination: b.xp.moveaxis(d, destination, source),),
    "flip": (lambda b, d, z, x, axis=None: b.xp.flip(d, axis=axis),),
    "concat": _Concat(),
    "getitem": (_getitem,),
    "take": (_take,),
    "take_along_axis": (_take_along_axis,),
    "sort": (_sort,),
    # of `Backend`
    "put": (  # z is x, but for the tile
        lambda b, d, z, x, start, tile, axis: b.put(d, start, b.xp.zeros_like(tile), axis),
        None,
        lambda b, d, z, x, start, tile, axis: b.tile(d, start, tile.shape[axis], axis),
    ),
    "add_at": (
        lambda b, d, z, x, start, tile: d,
        None,
        lambda b, d, z, x, start, tile: d[
            tuple(slice(i, i + n) for i, n in zip(start, tile.shape, strict=True))
        ],
    ),
    "summed_at": (lambda b, d, z, x, index, count: _spread(b, d, index, count),),
}


def _spread(b: Backend, d: Array, index: Array, count: int) -> Array:
    """z_j = sum of x_i over all i whose index is j:  dx_i = d_(index i), 0 beyond."""
    d = (
        b.xp.concat((d, b.xp.zeros_like(d[..., :1])), axis=-1)
        if count
        else b.xp.zeros((*d.shape[:2], 1), dtype=d.dtype, device=b.device(d))
    )
    index = b.xp.where((index >= 0) & (index < count), index, count)[:, None, :]
    wide = b.astype(index, b.xp.__array_namespace_info__().default_dtypes()["indexing"])
    return b.xp.take_along_axis(d, b.xp.broadcast_to(wide, (*d.shape[:2], index.shape[-1])), axis=-1)
