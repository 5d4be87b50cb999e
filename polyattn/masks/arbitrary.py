"""Masks that are arrays or functions, the slots of a cache that are empty, and nothing hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

from polyattn.arrays import Array, backend_of, is_array
from polyattn.calls import ambiguous, answers, array, check_function, shown
from polyattn.masks.algebra import Mask
from polyattn.masks.fitting import check_bools, fill_rank, fit_array
from polyattn.masks.tiles import UNSURE, Box, Tile, decide, look
from polyattn.places import Frame, Positions


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
        if not backend_of(array).is_concrete(array):
            return UNSURE
        ranges = (_one(box.b), _one(box.h), box.rows, box.keys)
        return look(
            array[
                tuple(
                    slice(None) if n == 1 or r is None else slice(r.start, r.stop)
                    for n, r in zip(array.shape, ranges, strict=True)
                )
            ]
        )

    def batch_size(self) -> int:
        return int(self._rank4.shape[0])

    def head_count(self) -> int:
        return int(self._rank4.shape[1])

    def own_size(self) -> tuple[int | None, int | None]:
        rows, keys = self._rank4.shape[-2:]
        return None if rows == 1 else rows, None if keys == 1 else keys

    def fit(self, frame: Frame) -> FromArray:
        return FromArray(fit_array(self.array, frame, "mask"))

    def __str__(self) -> str:
        return f"from_array({' x '.join(map(str, self.array.shape))})"


@dataclass(frozen=True, repr=False, eq=False)
class Function(Mask):
    """An arbitrary mask_mod(b, h, q_idx, kv_idx) -> bool."""

    function: Callable[[Array, Array, Array, Array], Array]
    who: str = field(default="polyattn.masks.mask_mod", kw_only=True)  # speaks in errors
    compares_positions = True  # it may: it is given both
    exact = False

    def allowed(self, at: Positions) -> Array:
        try:
            allowed = self.function(at.b, at.h, at.q, at.kv)
        except Exception as error:
            check_function(self.who, "mask_mod", self.function, "b, h, q_idx, kv_idx", "bool")
            if not ambiguous(error):
                raise
            raise TypeError(
                f"{self.who}: expected mask_mod(b, h, q_idx, kv_idx) to compare whole arrays of positions, got "
                "if, and, or, not, min or max, which want single numbers; write & for and, | for or, ~ for not"
            ) from error
        if not is_array(allowed) or not backend_of(allowed).isdtype(allowed.dtype, "bool"):
            raise TypeError(
                f"{self.who}: expected mask_mod(b, h, q_idx, kv_idx) to return a bool array, got "
                f"{getattr(allowed, 'dtype', type(allowed).__name__)}; return a comparison, True = may attend"
            )
        return fill_rank(allowed, at.kv.ndim)

    def fit(self, frame: Frame) -> Self:
        return replace(self, who=frame.who)

    def box(self, box: Box) -> Tile:
        return UNSURE

    def __str__(self) -> str:
        return f"mask_mod({getattr(self.function, '__name__', 'function')})"


@dataclass(frozen=True, repr=False)
class Filled(Mask):
    """Keys whose position is not negative: a cache marks its empty slots so."""

    def allowed(self, at: Positions) -> Array:
        return at.kv >= 0

    def box(self, box: Box) -> Tile:
        span = box.key_span
        return UNSURE if span is None else decide(span[0] >= 0, span[1] < 0)

    def __str__(self) -> str:
        return "filled()"


@answers("polyattn.masks.from_array")
def from_array(allowed: Array) -> Mask:
    """A bool array, True = may attend, broadcasting to (..., H, L, S); laid on the rows, not on positions.

    >>> import numpy as np
    >>> from polyattn import masks
    >>> print((from_array(np.array([[True, False]])) | masks.causal()).show(2))
    # .
    # #
    """
    who = "polyattn.masks.from_array"
    array(who, "allowed", allowed)
    check_bools(who, allowed, "masks.from_array(allowed{})", "attention(..., bias=allowed)")
    return FromArray(allowed)


@answers("polyattn.masks.mask_mod")
def mask_mod(f: Callable[[Array, Array, Array, Array], Any]) -> Mask:
    """An arbitrary function (b, h, q_idx, kv_idx) -> bool on broadcast integer arrays, as FlexAttention has it.

    >>> print(mask_mod(lambda b, h, q, kv: (q + kv) % 2 == 0).show(2))
    # .
    . #
    """
    if isinstance(f, Mask):
        return f
    if not callable(f):
        raise TypeError(
            f"polyattn.masks.mask_mod: expected a function (b, h, q_idx, kv_idx) -> bool, got {shown(f)}; "
            "a bool array goes to masks.from_array"
        )
    return Function(f)


def _one(index: int | None) -> range | None:
    return None if index is None else range(index, index + 1)
