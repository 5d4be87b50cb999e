"""Masks on the distance of query and key: causal, windows, chunks, dilation."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array
from polyattn.calls import answers
from polyattn.masks.algebra import And, Mask
from polyattn.masks.fitting import positive
from polyattn.masks.tiles import UNSURE, Box, Tile, decide
from polyattn.masks.words import word
from polyattn.places import Positions, within


@dataclass(frozen=True, repr=False)
class Window(Mask):
    """q - left <= kv <= q + right; None = unbounded. `causal()` is the window (None, 0)."""

    left: int | None
    right: int | None
    compares_positions = True
    relative = True

    def allowed(self, at: Positions) -> Array:
        distance = at.kv - at.q
        left = None if self.left is None else distance >= -within(self.left, distance)
        right = None if self.right is None else distance <= within(self.right, distance)
        if left is None:
            return distance == distance if right is None else right
        return left if right is None else left & right

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        least, most = k0 - q1, k1 - q0
        left = -self.left if self.left is not None else least
        right = self.right if self.right is not None else most
        return decide(left <= least and most <= right, most < left or right < least)

    def intersection(self, other: Mask) -> Mask | None:
        if not isinstance(other, Window):
            return None

        def nearer(a: int | None, b: int | None) -> int | None:
            return b if a is None else a if b is None else min(a, b)

        return Window(nearer(self.left, other.left), nearer(self.right, other.right))

    def __str__(self) -> str:
        return "causal()" if (self.left, self.right) == (None, 0) else f"window({self.left}, {self.right})"


@dataclass(frozen=True, repr=False)
class Chunked(Mask):
    """Queries and keys in the same chunk of `size` positions."""

    size: int
    compares_positions = True

    def allowed(self, at: Positions) -> Array:
        return at.q // within(self.size, at.q) == at.kv // within(self.size, at.kv)

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = (position // self.size for position in box.corners)
        return decide(q0 == q1 == k0 == k1, q1 < k0 or k1 < q0)

    def __str__(self) -> str:
        return f"chunked({self.size})"


@dataclass(frozen=True, repr=False)
class Dilated(Mask):
    """Keys at a distance that is a multiple of `step`."""

    step: int
    compares_positions = True
    relative = True

    def allowed(self, at: Positions) -> Array:
        distance = at.q - at.kv
        return distance % within(self.step, distance) == 0

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        least, most = q0 - k1, q1 - k0
        hit = most // self.step * self.step >= least  # a multiple lies between
        return decide(hit and (self.step == 1 or least == most), not hit)

    def __str__(self) -> str:
        return f"dilated({self.step})"


def latest(mask: Mask | None) -> int | None:
    """How many of the latest keys a row sees at most, its own among them, if a mask says so by distance alone."""
    back, ahead = _reach(mask)
    return None if back is None or ahead != 0 else back + 1


def _reach(mask: Mask | None) -> tuple[int | None, int | None]:
    """How far behind a row and before it the keys lie at most that it sees; None = as far as they come."""
    if isinstance(mask, And):
        sides = zip(_reach(mask.left), _reach(mask.right), strict=True)
        back, ahead = (min((n for n in side if n is not None), default=None) for side in sides)
        return back, ahead
    if isinstance(mask, Chunked):
        return mask.size - 1, mask.size - 1
    return (mask.left, mask.right) if isinstance(mask, Window) else (None, None)


@word
@answers("polyattn.masks.causal")
def causal() -> Mask:
    """kv <= q: no query sees a later position.

    >>> print(causal().show(3))
    # . .
    # # .
    # # #
    """
    return Window(None, 0)


@word
@answers("polyattn.masks.window")
def window(left: int | None, right: int | None) -> Mask:
    """q - left <= kv <= q + right: neighbours on each side, the token itself not counted; None = unbounded.

    (1, 0) is two keys, the token and the one before it. FlashAttention and ONNX count in the same way;
    see `sliding_window` for the other convention of the field.

    >>> print(window(1, 1).show(4))
    # # . .
    # # # .
    . # # #
    . . # #
    """
    return Window(
        *(side if side is None else positive(side, "window", "both sides", 0) for side in (left, right))
    )


@word
@answers("polyattn.masks.sliding_window")
def sliding_window(size: int) -> Mask:
    """window(size - 1, 0) & causal(): the last `size` keys, the token itself included (Hugging Face, cuDNN).

    >>> print(sliding_window(2).show(3))
    # . .
    # # .
    . # #
    """
    return window(positive(size, "sliding_window", "size") - 1, 0) & causal()


@word
@answers("polyattn.masks.chunked")
def chunked(n: int) -> Mask:
    """q // n == kv // n: attention within chunks of n positions.

    >>> print(chunked(2).show(4))
    # # . .
    # # . .
    . . # #
    . . # #
    """
    return Chunked(positive(n, "chunked", "n"))


@word
@answers("polyattn.masks.dilated")
def dilated(step: int) -> Mask:
    """(q - kv) % step == 0: every step-th key.

    >>> print(dilated(2).show(4))
    # . # .
    . # . #
    # . # .
    . # . #
    """
    return Dilated(positive(step, "dilated", "step"))
