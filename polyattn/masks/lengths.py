"""Masks by lengths, of all items or of each: padding, and the prefix of a prefix language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from polyattn.arrays import Array, backend_of, is_array
from polyattn.calls import answers
from polyattn.masks.algebra import Mask
from polyattn.masks.fitting import positive, reshape
from polyattn.masks.tiles import EMPTY, UNSURE, Box, Tile, decide
from polyattn.masks.words import word
from polyattn.places import INT32, Frame, Positions, brought_near, look_up, within

Lengths = int | tuple[int, ...] | Array


@dataclass(frozen=True, repr=False, eq=False)
class Below(Mask):
    """Where some index is below a length: one for all batch items, or one for each."""

    lengths: Lengths
    name: ClassVar[str]

    def index(self, at: Positions) -> Array:
        """What is below the length."""
        raise NotImplementedError

    def span(self, box: Box) -> tuple[int, int] | None:
        """The least and the largest index of a box; None while they are traced."""
        raise NotImplementedError

    def most(self, frame: Frame) -> int | None:
        """The largest length that makes sense."""
        return None

    def allowed(self, at: Positions) -> Array:
        index, lengths = self.index(at), self.lengths
        if isinstance(lengths, int):
            return index < within(lengths, index)
        if isinstance(lengths, tuple):
            held = [min(n, INT32 - 1) for n in lengths]
            return index < look_up(held, at.item, backend_of(index).xp.int32)
        lengths = brought_near(lengths)
        return index < (lengths if lengths.ndim == 0 else lengths[(at.item,)])

    def box(self, box: Box) -> Tile:
        values, span = self._values, self.span(box)
        if values is None or span is None:
            return UNSURE
        values = values if box.b is None or len(values) == 1 else (values[box.b],)
        return (
            decide(span[1] < min(values), span[0] >= max(values)) if values else EMPTY
        )  # no batch item at all

    @property
    def _values(self) -> tuple[int, ...] | None:
        """The lengths as Python numbers; None while they are traced."""
        if isinstance(self.lengths, int):
            return (self.lengths,)
        if isinstance(self.lengths, tuple):
            return self.lengths
        backend = backend_of(self.lengths)
        if not backend.is_concrete(self.lengths):
            return None
        values = backend.to_list(backend.xp.reshape(self.lengths, (-1,)))
        return tuple(values)

    def read(self) -> Below:
        values = self._values if is_array(self.lengths) else None
        return self if values is None else replace(self, lengths=values[0] if len(values) == 1 else values)

    def batch_size(self) -> int:
        return math.prod(self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        if isinstance(self.lengths, int):
            return ()
        return (len(self.lengths),) if isinstance(self.lengths, tuple) else tuple(self.lengths.shape)

    def fit(self, frame: Frame) -> Below:
        shape = self._shape
        if shape not in ((), (1,), (frame.batch,), frame.lead):
            raise ValueError(
                f"{frame.who}: expected the lengths of masks.{self.name} as one integer or as one per "
                f"batch item, shape ({frame.batch},), got shape {shape}; "
                "the batch is every axis before the head axis (give a rank-3 query a head axis: query[:, None])"
            )
        most = self.most(frame)
        for value in self._values or ():
            if value < 0 or (most is not None and value > most):
                within = ">= 0" if most is None else f"between 0 and {most}"
                counted = "query rows" if self.name == "query_lengths" else "keys"
                raise ValueError(
                    f"{frame.who}: expected the lengths of masks.{self.name} {within}, got {value}; clip them, or "
                    f"check that they count {counted}"
                )
        if isinstance(self.lengths, int) or len(shape) == 0 or shape == (frame.batch,):
            return self
        return replace(self, lengths=self.lengths[0] if shape == (1,) else reshape(self.lengths, (-1,)))

    def __str__(self) -> str:
        return f"{self.name}({self.lengths if isinstance(self.lengths, int) else '...'})"


class Prefix(Below):
    """Keys whose position is below a length."""

    name = "prefix"

    def index(self, at: Positions) -> Array:
        return at.kv

    def span(self, box: Box) -> tuple[int, int] | None:
        return box.key_span


class KeyLengths(Below):
    """Keys whose index is below a length."""

    name = "key_lengths"

    def index(self, at: Positions) -> Array:
        return at.column

    def span(self, box: Box) -> tuple[int, int]:
        return box.keys[0], box.keys[-1]

    def most(self, frame: Frame) -> int:
        return frame.keys

    def least_size(self) -> tuple[int, int]:
        return 0, max(self._values or (), default=0)


class QueryLengths(Below):
    """Rows whose index is below a length."""

    name = "query_lengths"

    def index(self, at: Positions) -> Array:
        return at.row

    def span(self, box: Box) -> tuple[int, int]:
        return box.rows[0], box.rows[-1]

    def most(self, frame: Frame) -> int:
        return frame.rows

    def least_size(self) -> tuple[int, int]:
        return max(self._values or (), default=0), 0


@word
@answers("polyattn.masks.prefix")
def prefix(n: int | Sequence[int] | Array) -> Mask:
    """kv < n: the keys at the first n positions, for every query. ``causal() | prefix(n)`` is the mask of a prefix LM.

    n: one integer, or one per batch item (sequence or integer array of shape (batch,)).

    >>> from polyattn.masks import causal
    >>> print((causal() | prefix(2)).show(3))
    # # .
    # # .
    # # #
    """
    return Prefix(_lengths(n, "prefix"))


@word
@answers("polyattn.masks.key_lengths")
def key_lengths(n: int | Sequence[int] | Array) -> Mask:
    """Padding of keys and values: only the first n are there. n: one integer, or one per batch item.

    Keys are counted from 0 whatever their positions.

    >>> key_lengths([1, 2]).dense(1, 2, batch=2)[:, 0, 0, :]
    array([[ True, False],
           [ True,  True]])
    """
    return KeyLengths(_lengths(n, "key_lengths"))


@word
@answers("polyattn.masks.query_lengths")
def query_lengths(n: int | Sequence[int] | Array) -> Mask:
    """Padding of queries: rows from n on see nothing, so their output is 0.

    n: one integer, or one per batch item. Rows are counted from 0 whatever the query offset.

    >>> print(query_lengths(1).show(2))
    # #
    . .
    """
    return QueryLengths(_lengths(n, "query_lengths"))


def _lengths(value: int | Sequence[int] | Array, function: str) -> Lengths:
    """Lengths as a Python int, a tuple of ints, or an integer array."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(positive(n, function, "every length", 0) for n in value)
    if is_array(value):
        if not backend_of(value).isdtype(value.dtype, "integral"):
            raise TypeError(
                f"polyattn.masks.{function}: expected integer lengths, got an array of {value.dtype}; "
                "a bool mask goes to masks.from_array"
            )
        return value
    return positive(value, function, "the length", 0)
