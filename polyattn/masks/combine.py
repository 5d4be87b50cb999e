"""Masks joined by ``&``, ``|`` and ``~``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polyattn.arrays import Array
from polyattn.masks.algebra import Frame, Mask
from polyattn.masks.tiles import Box, Tile, invert
from polyattn.places.positions import Positions


@dataclass(frozen=True, repr=False)
class Pair(Mask):
    """Two masks joined by a boolean operation."""

    left: Mask
    right: Mask

    @property
    def compares_positions(self) -> bool:  # type: ignore[override]
        return self.left.compares_positions or self.right.compares_positions

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.left.relative and self.right.relative

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.left.exact and self.right.exact

    def fit(self, frame: Frame) -> Mask:
        return replace(self, left=self.left.fit(frame), right=self.right.fit(frame))

    def batch_size(self) -> int:
        return max(self.left.batch_size(), self.right.batch_size())

    def head_count(self) -> int:
        return max(self.left.head_count(), self.right.head_count())


class And(Pair):
    """Places visible in both."""

    def fit(self, frame: Frame) -> Mask:
        left, right = self.left.fit(frame), self.right.fit(frame)
        both = left.intersection(right)
        return And(left, right) if both is None else both

    def allowed(self, at: Positions) -> Array:
        return self.left.allowed(at) & self.right.allowed(at)

    def box(self, box: Box) -> Tile:
        return self.left.box(box) & self.right.box(box)

    def __str__(self) -> str:
        return " & ".join(f"({m})" if isinstance(m, Or) else str(m) for m in (self.left, self.right))


class Or(Pair):
    """Places visible in either."""

    def allowed(self, at: Positions) -> Array:
        return self.left.allowed(at) | self.right.allowed(at)

    def box(self, box: Box) -> Tile:
        return invert(invert(self.left.box(box)) & invert(self.right.box(box)))

    def __str__(self) -> str:
        return f"{self.left} | {self.right}"


@dataclass(frozen=True, repr=False)
class Not(Mask):
    """Places hidden in another mask."""

    inner: Mask

    @property
    def compares_positions(self) -> bool:  # type: ignore[override]
        return self.inner.compares_positions

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.inner.exact

    def allowed(self, at: Positions) -> Array:
        return ~self.inner.allowed(at)

    def box(self, box: Box) -> Tile:
        return invert(self.inner.box(box))

    def fit(self, frame: Frame) -> Mask:
        return Not(self.inner.fit(frame))

    def batch_size(self) -> int:
        return self.inner.batch_size()

    def head_count(self) -> int:
        return self.inner.head_count()

    def __str__(self) -> str:
        return f"~({self.inner})" if isinstance(self.inner, Pair) else f"~{self.inner}"
