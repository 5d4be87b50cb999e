"""The masks of the field, each a few lines: what is allowed, and what that means for a rectangle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from polyattn.arrays import Array, backend_of, is_array
from polyattn.masks.algebra import Frame, Mask
from polyattn.masks.fitting import Lengths, fill_rank, fit_array, reshape
from polyattn.masks.tiles import EMPTY, FULL, PARTIAL, UNSURE, Box, Tile
from polyattn.places.positions import Positions, look_up


def _decide(full: bool, empty: bool) -> Tile:
    return FULL if full else EMPTY if empty else PARTIAL


class Positional(Mask):
    """A mask that holds no arrays, only a rule on positions."""

    compares_positions = True

    def arrays(self) -> Iterator[Array]:
        return iter(())


@dataclass(frozen=True, repr=False)
class Window(Positional):
    """q - left <= kv <= q + right; None = unbounded. `causal()` is the window (None, 0)."""

    left: int | None
    right: int | None
    relative = True

    def allowed(self, at: Positions) -> Array:
        distance = at.kv - at.q
        if self.left is None and self.right is None:
            return distance == distance
        if self.left is None:
            return distance <= self.right
        if self.right is None:
            return distance >= -self.left
        return (distance >= -self.left) & (distance <= self.right)

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        least, most = k0 - q1, k1 - q0  # every distance between is there
        left = -self.left if self.left is not None else least
        right = self.right if self.right is not None else most
        return _decide(left <= least and most <= right, most < left or right < least)

    def intersection(self, other: Mask) -> Mask | None:
        if not isinstance(other, Window):
            return None

        def nearer(a: int | None, b: int | None) -> int | None:
            return b if a is None else a if b is None else min(a, b)

        return Window(nearer(self.left, other.left), nearer(self.right, other.right))

    def __str__(self) -> str:
        return "causal()" if (self.left, self.right) == (None, 0) else f"window({self.left}, {self.right})"


@dataclass(frozen=True, repr=False)
class Chunked(Positional):
    """Queries and keys in the same chunk of `size` positions."""

    size: int

    def allowed(self, at: Positions) -> Array:
        return at.q // self.size == at.kv // self.size

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = (position // self.size for position in box.corners)
        return _decide(q0 == q1 == k0 == k1, q1 < k0 or k1 < q0)

    def __str__(self) -> str:
        return f"chunked({self.size})"


@dataclass(frozen=True, repr=False)
class Dilated(Positional):
    """Keys at a distance that is a multiple of `step`."""

    step: int
    relative = True

    def allowed(self, at: Positions) -> Array:
        return (at.q - at.kv) % self.step == 0

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        least, most = q0 - k1, q1 - k0
        hit = most // self.step * self.step >= least  # a multiple lies between
        return _decide(hit and (self.step == 1 or least == most), not hit)

    def __str__(self) -> str:
        return f"dilated({self.step})"


@dataclass(frozen=True, repr=False, eq=False)
class Below(Mask):
    """Rows or keys whose index is below a length: one for all, or one for every batch item."""

    lengths: Lengths
    name: str  # "prefix", "key_lengths" (both bound the key) or "query_lengths" (bounds the row)

    def allowed(self, at: Positions) -> Array:
        index = at.row if self.name == "query_lengths" else at.kv
        lengths = self.lengths
        if isinstance(lengths, tuple):
            return index < look_up(lengths, at.b, backend_of(index).xp.int32)
        return index < (lengths if isinstance(lengths, int) or lengths.ndim == 0 else lengths[(at.b,)])

    def box(self, box: Box) -> Tile:
        if self._values is None:
            return UNSURE
        values = self._values if box.b is None or len(self._values) == 1 else (self._values[box.b],)
        if not values:  # no batch item at all
            return EMPTY
        indices = box.rows if self.name == "query_lengths" else box.keys
        return _decide(indices[-1] < min(values), indices[0] >= max(values))

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
        values = backend.to_list(self.lengths)
        return (values,) if isinstance(values, int) else tuple(values)

    def batch_size(self) -> int:
        return math.prod(self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        if isinstance(self.lengths, int):
            return ()
        return (len(self.lengths),) if isinstance(self.lengths, tuple) else tuple(self.lengths.shape)

    def fit(self, frame: Frame) -> Mask:
        shape = self._shape
        if shape not in ((), (1,), (frame.batch,), frame.lead):
            raise ValueError(
                f"{frame.who}: expected the lengths of masks.{self.name} as one integer or as one per "
                f"batch item, shape ({frame.batch},), got shape {shape}; "
                "the batch is every axis before the head axis (give a rank-3 query a head axis: query[:, None])"
            )
        limit = frame.rows if self.name == "query_lengths" else frame.keys
        for value in self._values or ():
            if not 0 <= value <= limit:
                raise ValueError(
                    f"{frame.who}: expected the lengths of masks.{self.name} between 0 and {limit}, "
                    f"got {value}; clip them, or check that they count "
                    f"{'query rows' if self.name == 'query_lengths' else 'keys'}"
                )
        if isinstance(self.lengths, int) or len(shape) == 0 or shape == (frame.batch,):
            return self
        return replace(self, lengths=self.lengths[0] if shape == (1,) else reshape(self.lengths, (-1,)))

    def __str__(self) -> str:
        return f"{self.name}({self.lengths if isinstance(self.lengths, int) else '...'})"


@dataclass(frozen=True, repr=False, eq=False)
class Segments(Mask):
    """Queries and keys with the same segment id (documents packed into one sequence)."""

    q_ids: Array  # (L,) or (batch, L)
    kv_ids: Array  # (S,) or (batch, S)
    memory: dict[Any, Any] = field(
        default_factory=dict, init=False
    )  # the ids once read, and the sets made of them

    def allowed(self, at: Positions) -> Array:
        q_ids, kv_ids = self._rank4
        return at.cut(q_ids) == at.cut(kv_ids)

    @property
    def _rank4(self) -> tuple[Array, Array]:
        q_ids = reshape(self.q_ids, (self.q_ids.shape[0] if self.q_ids.ndim > 1 else 1, 1, -1, 1))
        kv_ids = reshape(self.kv_ids, (self.kv_ids.shape[0] if self.kv_ids.ndim > 1 else 1, 1, 1, -1))
        return q_ids, kv_ids

    def box(self, box: Box) -> Tile:
        if self._values() is None:
            return UNSURE
        tile: Tile | None = None
        for b in range(self.batch_size()) if box.b is None else (box.b,):
            queries, keys = self._ids(0, b, box.rows), self._ids(1, b, box.keys)
            here = _decide(len(queries | keys) == 1, not queries & keys)
            if here is PARTIAL or (tile is not None and here is not tile):
                return PARTIAL
            tile = here
        return EMPTY if tile is None else tile

    def _values(self) -> tuple[list[list[int]], ...] | None:
        """The ids as Python numbers, a list per batch item; None while they are traced."""
        arrays = (self.q_ids, self.kv_ids)
        if not all(backend_of(a).is_concrete(a) for a in arrays):
            return None
        if "values" not in self.memory:
            lists = (backend_of(a).to_list(a) for a in arrays)
            self.memory["values"] = tuple(
                [x] if a.ndim == 1 else x for a, x in zip(arrays, lists, strict=True)
            )
        values: tuple[list[list[int]], ...] = self.memory["values"]
        return values

    def _ids(self, side: int, b: int, indices: range) -> frozenset[int]:
        """The ids that occur in a range of rows (side 0) or keys (side 1)."""
        key = (side, b, indices)
        if key not in self.memory:
            rows = self._values()[side]  # type: ignore[index]
            self.memory[key] = frozenset(rows[b if len(rows) > 1 else 0][indices.start : indices.stop])
        ids: frozenset[int] = self.memory[key]
        return ids

    def batch_size(self) -> int:
        return max(a.shape[0] if a.ndim > 1 else 1 for a in (self.q_ids, self.kv_ids))

    def fit(self, frame: Frame) -> Mask:
        for ids, name, size in ((self.q_ids, "q_ids", frame.rows), (self.kv_ids, "kv_ids", frame.keys)):
            shape = tuple(ids.shape)
            if shape not in ((size,), (1, size), (frame.batch, size), (*frame.lead, size)):
                raise ValueError(
                    f"{frame.who}: expected {name} of masks.segments to have shape ({size},) or "
                    f"({frame.batch}, {size}), got {shape}; give one id per "
                    f"{'query row' if name == 'q_ids' else 'key'} (kv_ids too where L != S)"
                )
        q_ids, kv_ids = (
            reshape(a, (-1, a.shape[-1])) if a.ndim > 2 else a for a in (self.q_ids, self.kv_ids)
        )
        return self if (q_ids is self.q_ids and kv_ids is self.kv_ids) else Segments(q_ids, kv_ids)

    def cumulative_lengths(self) -> list[list[int]]:
        """The boundaries of the query segments of every batch item: 0, ..., L, as "cu_seqlens" of varlen kernels.

        >>> import numpy as np
        >>> Segments(np.array([7, 7, 9]), np.array([7, 7, 9])).cumulative_lengths()
        [[0, 2, 3]]
        """
        values = self._values()
        if values is None:
            raise ValueError(
                "polyattn.masks: expected concrete segment ids for cumulative_lengths, got traced ones; "
                "call it outside jit"
            )
        return [[0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1]), len(ids)] for ids in values[0]]

    def __str__(self) -> str:
        return "segments(...)"


@dataclass(frozen=True, repr=False, eq=False)
class FromArray(Mask):
    """A bool array laid on the scores row by row, whatever their positions."""

    array: Array

    def allowed(self, at: Positions) -> Array:
        return at.cut(self._rank4)

    @property
    def _rank4(self) -> Array:
        return fill_rank(self.array, 4)

    def box(self, box: Box) -> Tile:
        array = self._rank4
        backend = backend_of(array)
        if not backend.is_concrete(array):
            return UNSURE
        index = tuple(
            slice(None) if n == 1 or r is None else slice(r.start, r.stop)
            for n, r in zip(
                array.shape,
                (_one(box.b), _one(box.h), box.rows, box.keys),
                strict=True,
            )
        )
        part = array[index]
        if not backend.to_list(backend.xp.any(part)):
            return EMPTY
        return FULL if backend.to_list(backend.xp.all(part)) else PARTIAL

    def batch_size(self) -> int:
        return int(self._rank4.shape[0])

    def head_count(self) -> int:
        return int(self._rank4.shape[1])

    def fit(self, frame: Frame) -> Mask:
        return FromArray(fit_array(self.array, frame, "mask"))

    def __str__(self) -> str:
        return f"from_array({' x '.join(map(str, self.array.shape))})"


@dataclass(frozen=True, repr=False, eq=False)
class Function(Mask):
    """An arbitrary mask_mod(b, h, q_idx, kv_idx) -> bool."""

    function: Callable[[Array, Array, Array, Array], Array]
    compares_positions = True  # it may: it is given both
    exact = False

    def allowed(self, at: Positions) -> Array:
        allowed = self.function(at.b, at.h, at.q, at.kv)
        if not is_array(allowed) or not backend_of(allowed).xp.isdtype(allowed.dtype, "bool"):
            raise TypeError(
                "polyattn.attention: expected mask_mod(b, h, q_idx, kv_idx) to return a bool array, got "
                f"{getattr(allowed, 'dtype', type(allowed).__name__)}; return a comparison, True = may attend"
            )
        return fill_rank(allowed, at.kv.ndim)

    def box(self, box: Box) -> Tile:
        return UNSURE

    def __str__(self) -> str:
        return f"mask_mod({getattr(self.function, '__name__', 'function')})"


def _one(index: int | None) -> range | None:
    return None if index is None else range(index, index + 1)
