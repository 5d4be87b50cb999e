"""Tokens written into arrays from an own place for every batch item, as ONNX's TensorScatter does, and read from such."""

from __future__ import annotations

import math

from polyattn.arrays import Array, backend_of, is_array
from polyattn.arrays.giving import may_write

__all__ = ["along_axis", "behind", "gather", "scatter"]


def scatter(cache: Array, new: Array, start: Array, axis: int, *, circular: bool = False) -> Array:
    """`cache` with `new` written along `axis` from `start` on, as a new array.

        out[b, ..., start[b] + i, ...] = new[b, ..., i, ...]

    cache (B, ..., N, ...), new (B, ..., n, ...) with n <= N, start integers (B,); the batch may be several axes.
    What would lie beyond the end is left out, or begins again at 0 if circular.

    >>> import numpy as np
    >>> scatter(np.zeros((2, 3)), np.ones((2, 2)), np.array([0, 2]), 1, circular=True)
    array([[1., 1., 0.],
           [1., 0., 1.]])
    """
    backend = backend_of(cache)
    xp, shape, axis = backend.xp, tuple(cache.shape), axis % cache.ndim
    room, count = shape[axis], new.shape[axis]
    if count == 0:
        return cache
    # Every place of the cache asks which new token comes to it.
    source = backend.arange(0, room, cache) - start[..., None]
    if circular:
        source = source % room
    batch = tuple(start.shape)
    along = (*batch, *(room if i == axis else 1 for i in range(len(batch), len(shape))))
    arrives = (source >= 0) & (source < count)
    index = xp.where(arrives, source, 0)
    if axis == len(shape) - 2 and len(batch) in (0, len(shape) - 3):
        found = gather(new, index)
    else:
        found = along_axis(new, xp.broadcast_to(xp.reshape(index, along), shape), axis)
    return xp.where(xp.reshape(arrives, along), found, cache)


def behind(old: Array, new: Array, length: int | Array) -> Array:
    """old (..., Hkv, N, W) with new (..., Hkv, n, W) from slot `length` on, a number or one for each batch item.

    Where a compiler traces length and it turns out not to fit, NaN at the end instead; integers cannot say that. A new
    array, but for one that was given up: its slots from `length` on nobody could see.
    """
    backend = backend_of(old)
    xp = backend.xp
    if is_array(length) and not backend.is_concrete(length):
        last = old.shape[-2] - new.shape[-2]
        if backend.isdtype(new.dtype, "real floating"):
            fits = xp.reshape(length <= last, (*length.shape, *(1,) * (3 if length.ndim else 0)))
            new = xp.where(fits, new, backend.asarray(float("nan"), new.dtype, new))
        length = xp.clip(length, 0, last)
    if is_array(length) and length.ndim:
        return scatter(old, new, length, -2)
    over = not is_array(length) and may_write(old, length, length + new.shape[-2])
    return backend.put(old, length, new, -2, over=over)


def gather(x: Array, index: Array) -> Array:
    """The slots of x (..., Hkv, N, W) at `index`, (n,) for all batch items or (..., n) for each: (..., Hkv, n, W).

    >>> import numpy as np
    >>> gather(np.array([[[0.0], [1.0], [2.0]]]), np.array([2, 2, 0])).ravel()
    array([2., 2., 0.])
    """
    backend = backend_of(x)
    if index.ndim == 1:
        return backend.take(x, index, -2)
    *lead, heads, slots, width = x.shape
    # Rows are read whole, each by its number among those of all items and heads.
    count = math.prod(lead) * heads
    first = backend.xp.reshape(backend.arange(0, count, x) * slots, (*lead, heads, 1))
    rows = backend.xp.reshape(first + index[..., None, :], (-1,))
    found = backend.take(backend.xp.reshape(x, (count * slots, width)), rows, 0)
    return backend.xp.reshape(found, (*lead, heads, index.shape[-1], width))


def along_axis(x: Array, index: Array, axis: int) -> Array:
    """take_along_axis by integers of any width: PyTorch takes its own alone."""
    backend = backend_of(x)
    own = backend.xp.arange(0, device=backend.device(x)).dtype
    return backend.xp.take_along_axis(x, backend.astype(index, own), axis=axis)
