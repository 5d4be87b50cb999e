"""How far a position may lie from 0: what is computed from two of them has to fit into 32 bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from polyattn.arrays import Array, backend_of, eagerly, is_array, readable

#: Positions, and sizes of a score matrix, are nearer to 0: their distances are int32 numbers.
FAR = 2**30
#: The first integer that int32 has not.
INT32 = 2**31


def check_near(who: str, sides: Iterable[tuple[str, Any, Any]]) -> None:
    """ValueError for positions too far from 0, if they can be read: sides are (name of the argument, value, length)."""
    for name, where, size in sides:
        if isinstance(where, int):
            least = most = where
        elif is_array(where) and readable(where) and 0 not in where.shape:
            least, most = _extent(where)
        else:
            continue
        if isinstance(size, int) and not (is_array(where) and where.ndim == 2):
            most += max(size - 1, 0)
        if least <= -FAR or most >= FAR:
            raise ValueError(
                f"{who}: expected positions between -2**30 and 2**30, got {least} to {most} by {name}; "
                "count from a place that is nearer"
            )


def _extent(x: Array) -> tuple[int, int]:
    """The least and the largest number of a concrete integer array."""
    backend = backend_of(x)
    xp = backend.xp
    with eagerly([x]):
        if xp.isdtype(x.dtype, "unsigned integer"):  # PyTorch computes with bytes only
            values = backend.to_list(xp.reshape(x, (-1,)))
            return min(values), max(values)
        return backend.to_list(xp.min(x)), backend.to_list(xp.max(x))


def brought_near(x: Array) -> Array:
    """Integers of any width as int32, those too far from 0 as `FAR`: what is traced cannot be refused."""
    backend = backend_of(x)
    xp = backend.xp
    if xp.iinfo(x.dtype).bits >= 32 and not xp.isdtype(x.dtype, "unsigned integer"):
        x = backend.clip(x, -FAR, FAR)
    return backend.astype(x, xp.int32)


def within(number: int, index: Any) -> int:
    """A number to be compared with an integer array: the array's largest one if it cannot hold it."""
    if number < INT32 or not is_array(index):
        return number
    return min(number, int(backend_of(index).xp.iinfo(index.dtype).max))
