"""The operator TensorScatter."""

from __future__ import annotations

from typing import TypedDict, Unpack

from polyattn.arrays import Array
from polyattn.caches.scatter import scatter
from polyattn.onnx.signatures import NEWEST, arguments

_WHO = "polyattn.onnx.tensor_scatter"


__all__ = ["TensorScatterAttributes", "tensor_scatter"]


class TensorScatterAttributes(TypedDict, total=False):
    """The attributes of TensorScatter."""

    axis: int  # the axis of tokens, -2 by default, never that of the batch
    mode: str  # "linear", or "circular": what would lie beyond the end begins again at 0


def tensor_scatter(
    past_cache: Array,
    update: Array,
    write_indices: Array | None = None,
    *,
    opset: int = NEWEST,
    **attributes: Unpack[TensorScatterAttributes],
) -> Array:
    """TensorScatter of ONNX, opset 24: a cache with new tokens written in, from an own place for every batch item.

        present[b, ..., write_indices[b] + i, ...] = update[b, ..., i, ...]

    past_cache (B, ..., N, ...) and update (B, ..., n, ...) with n <= N at `axis`, of any dtype; write_indices
    (B,), 0 where left out. The cache that came in stays as it is. In mode "linear" everything must fit; where a
    compiler traces write_indices that cannot be known, and what does not fit is left out.

    Source: the definition of the operator, onnx 1.23.

    >>> import numpy as np
    >>> cache, new = np.zeros((2, 3, 1)), np.ones((2, 2, 1))
    >>> tensor_scatter(cache, new, np.array([0, 2]), mode="circular")[..., 0]
    array([[1., 1., 0.],
           [1., 0., 1.]])
    """
    given = {"past_cache": past_cache, "update": update, "write_indices": write_indices}
    backend, a = arguments(_WHO, "TensorScatter", opset, given, attributes)
    xp, shape = backend.xp, tuple(past_cache.shape)
    axis = a["axis"] + len(shape) if a["axis"] < 0 else a["axis"]
    if not 0 < axis < len(shape):
        raise ValueError(
            f"{_WHO}: expected an axis of past_cache, of shape {shape}, other than the first, which is the batch, "
            f"got {a['axis']}; it is the axis of tokens"
        )
    if a["mode"] not in ("linear", "circular"):
        raise ValueError(
            f"{_WHO}: expected mode 'linear' or 'circular', got {a['mode']!r}; in the second one what lies beyond the "
            "end begins again at 0"
        )
    if update.dtype != past_cache.dtype:
        raise TypeError(
            f"{_WHO}: expected update of the dtype of past_cache, {past_cache.dtype}, got {update.dtype}; cast it"
        )
    room, new = shape[axis], tuple(update.shape)
    if new[:axis] + new[axis + 1 :] != shape[:axis] + shape[axis + 1 :] or new[axis] > room:
        raise ValueError(
            f"{_WHO}: expected update of the shape of past_cache, {shape}, with at most {room} at axis {axis}, got "
            f"{new}; it holds the new tokens alone"
        )
    count, batch = new[axis], shape[0]
    circular = a["mode"] == "circular"
    start = xp.zeros(batch, dtype=xp.int32, device=backend.device(past_cache))
    if write_indices is not None:
        if tuple(write_indices.shape) != (batch,) or not backend.isdtype(write_indices.dtype, "integral"):
            raise ValueError(
                f"{_WHO}: expected write_indices of integers and of shape ({batch},), got {write_indices.dtype} of "
                f"shape {tuple(write_indices.shape)}; one place per batch item"
            )
        places = backend.to_list(write_indices) if backend.is_concrete(write_indices) else []
        if not circular and any(not 0 <= place <= room - count for place in places):
            raise ValueError(
                f"{_WHO}: expected write_indices from 0 to {room - count}, where {count} tokens fit into {room}, got "
                f"{places}; make the cache longer, or use mode='circular'"
            )
        start = write_indices
    return scatter(past_cache, update, start, axis, circular=circular)
