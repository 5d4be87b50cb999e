"""Arrays out of masks, mods and problems, and back in: what compilers and derivatives need to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from polyattn.arrays.discovery import is_array
from polyattn.arrays.numbers import Array


class Slot(NamedTuple):
    """The place of an array that was taken out."""

    number: int


class Shape(NamedTuple):
    """What is left of a dataclass: its type and the shapes of its fields."""

    kind: type
    names: tuple[str, ...]
    values: tuple[Any, ...]


def take_out(value: Any, arrays: list[Array]) -> Any:
    """`value` with every array appended to `arrays` and replaced by a `Slot`; hashable if the rest is.

    >>> import numpy as np
    >>> arrays = []
    >>> take_out((1, np.zeros(3)), arrays)
    (1, Slot(number=0))
    >>> put_in(_, arrays)
    (1, array([0., 0., 0.]))
    """
    if is_array(value):
        arrays.append(value)
        return Slot(len(arrays) - 1)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(take_out(part, arrays) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = tuple([f.name for f in fields(value) if f.init])
        return Shape(type(value), names, tuple([take_out(getattr(value, name), arrays) for name in names]))
    return value


def put_in(shape: Any, arrays: Sequence[Array]) -> Any:
    """The inverse of `take_out`, with these arrays or others in their places."""
    if isinstance(shape, Slot):
        return arrays[shape.number]
    if isinstance(shape, Shape):
        filled = [put_in(part, arrays) for part in shape.values]
        return shape.kind(**dict(zip(shape.names, filled, strict=True)))
    if isinstance(shape, tuple) and not hasattr(shape, "_fields"):
        return tuple(put_in(part, arrays) for part in shape)
    return shape


def says_all(shape: Any) -> bool:
    """Whether equal values mean equal programs: true of what polyattn defines, but not of functions of the user."""
    if isinstance(shape, Shape):
        own = shape.kind.__module__.partition(".")[0].startswith("polyattn")
        return own and all(says_all(x) for x in shape.values)
    if isinstance(shape, tuple):
        return all(says_all(x) for x in shape)
    return isinstance(shape, type) or not callable(shape)
