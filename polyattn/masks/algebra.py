"""Masks joined by ``&``, ``|`` and ``~``: every mask is one, and every combination is a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from polyattn.arrays import Array
from polyattn.masks.forms import Forms
from polyattn.masks.tiles import Box, Tile
from polyattn.places import Frame, Positions


class Mask(Forms):
    """A set of visible (batch, head, query, key) places. Immutable; composes with ``&``, ``|``, ``~``.

    Calling it is its `mask_mod`: ``mask(b, h, q_idx, kv_idx)`` on integer arrays (or on the scalars that
    FlexAttention passes) gives bools, True where the query may attend to the key.

    >>> from polyattn import masks
    >>> print((masks.causal() & masks.window(1, 0)).show(4))
    # . . .
    # # . .
    . # # .
    . . # #
    """

    __array_ufunc__ = None  # NumPy leaves `array & mask` to the mask

    def intersection(self, other: Mask) -> Mask | None:
        """Both masks as one of the same kind, where there is such a one."""
        return None

    def __and__(self, other: Mask) -> Mask:
        return And(self, self._mask(other))

    def __or__(self, other: Mask) -> Mask:
        return Or(self, self._mask(other))

    def __rand__(self, other: Any) -> Mask:
        return And(self._mask(other), self)

    def __ror__(self, other: Any) -> Mask:
        return Or(self._mask(other), self)

    def __invert__(self) -> Mask:
        return Not(self)

    def _mask(self, other: Any) -> Mask:
        if not isinstance(other, Mask):
            raise TypeError(
                f"polyattn.masks: expected a mask to combine with {self}, got {type(other).__name__}; wrap an "
                "array in masks.from_array, a function in masks.mask_mod"
            )
        return other

    def _no_number(self, other: Any = None) -> Any:
        raise TypeError(
            f"polyattn.masks: the mask {self} is no number; combine masks with & | ~ (not + - *), or write mask.additive(n)"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _no_number

    def __bool__(self) -> bool:
        raise TypeError(
            f"polyattn.masks: the mask {self} has no truth value; combine masks with & | ~ (not and, or, not)"
        )


class Combination(Mask):
    """A mask made of others, which are its fields."""

    @property
    def _parts(self) -> dict[str, Mask]:
        return {name: part for name, part in vars(self).items() if isinstance(part, Mask)}

    @property
    def compares_positions(self) -> bool:  # type: ignore[override]
        return any(part.compares_positions for part in self._parts.values())

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return all(part.relative for part in self._parts.values())

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return all(part.exact for part in self._parts.values())

    def fit(self, frame: Frame) -> Mask:  # type: ignore[override]
        return replace(self, **{name: part.fit(frame) for name, part in self._parts.items()})  # type: ignore[type-var]

    def read(self) -> Self:
        return replace(self, **{name: part.read() for name, part in self._parts.items()})  # type: ignore[type-var]

    def batch_size(self) -> int:
        return max(part.batch_size() for part in self._parts.values())

    def head_count(self) -> int:
        return max(part.head_count() for part in self._parts.values())

    def own_size(self) -> tuple[int | None, int | None]:
        rows, keys = zip(*(part.own_size() for part in self._parts.values()), strict=True)
        return next(filter(None, rows), None), next(filter(None, keys), None)

    def least_size(self) -> tuple[int, int]:
        rows, keys = zip(*(part.least_size() for part in self._parts.values()), strict=True)
        return max(rows), max(keys)


@dataclass(frozen=True, repr=False)
class And(Combination):
    """Places visible in both."""

    left: Mask
    right: Mask

    def fit(self, frame: Frame) -> Mask:  # type: ignore[override]
        left, right = self.left.fit(frame), self.right.fit(frame)
        both = left.intersection(right)
        return And(left, right) if both is None else both

    def allowed(self, at: Positions) -> Array:
        return self.left.allowed(at) & self.right.allowed(at)

    def box(self, box: Box) -> Tile:
        return self.left.box(box) & self.right.box(box)

    def __str__(self) -> str:
        return " & ".join(f"({m})" if isinstance(m, Or) else str(m) for m in (self.left, self.right))


@dataclass(frozen=True, repr=False)
class Or(Combination):
    """Places visible in either."""

    left: Mask
    right: Mask

    def allowed(self, at: Positions) -> Array:
        return self.left.allowed(at) | self.right.allowed(at)

    def box(self, box: Box) -> Tile:
        return ~(~self.left.box(box) & ~self.right.box(box))

    def __str__(self) -> str:
        return f"{self.left} | {self.right}"


@dataclass(frozen=True, repr=False)
class Not(Combination):
    """Places hidden in another mask."""

    inner: Mask

    def allowed(self, at: Positions) -> Array:
        return ~self.inner.allowed(at)

    def box(self, box: Box) -> Tile:
        return ~self.inner.box(box)

    def __str__(self) -> str:
        return f"~({self.inner})" if isinstance(self.inner, (And, Or)) else f"~{self.inner}"
