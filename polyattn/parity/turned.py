"""A rotary as the truth takes it: turned and turned back in extended precision, with what rounding does on the way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyattn.rotary import Rotary
from polyattn.truth.judged import Judged
from polyattn.truth.spec import Floats

__all__ = ["Turning", "turning"]


class Turning(NamedTuple):
    """A matrix for each token, of blocks (c, -s; s, c) on its pairs. angle: the size of each."""

    cos: Floats  # (B|1, 1, L, width/2), amplitude included
    sin: Floats
    angle: Floats
    interleaved: bool

    def item(self, i: int) -> Turning:
        """The same for one batch item."""
        cos, sin, angle = (x[i : i + 1] if x.shape[0] > 1 else x for x in (self.cos, self.sin, self.angle))
        return Turning(cos, sin, angle, self.interleaved)

    def turn(self, x: Floats) -> Floats:
        """x (B, H, L, D) turned."""
        return self._turn(x, self.cos, -self.sin, self.sin)

    def back(self, x: Floats) -> Floats:
        """The transposed matrix on x: the gradient for what was turned from that for the result."""
        return self._turn(x, self.cos, self.sin, -self.sin)

    def size(self, x: Floats) -> Floats:
        """How large an error of one rounding in x, and of one in each angle, may be after the turn: |R| |x|, and as much
        times the angle, which a program holds to its own precision."""
        c, s = np.abs(self.cos), np.abs(self.sin)
        x = np.abs(x)
        return self._turn(x, c, s, s) + self._turn(
            x, self.angle * s, self.angle * c, self.angle * c, rest=0.0
        )

    def judged(self, gradient: Judged) -> Judged:
        """The gradient for what was turned, from that for the result."""
        value, condition, floor, rounded = gradient
        c, s = np.abs(self.cos), np.abs(self.sin)

        def moved(x: Floats | float) -> Floats:
            return self._turn(np.broadcast_to(x, value.shape), c, s, s)

        turned = self.back(value)
        # Half precision stores the gradient before it is turned back, and after.
        stored = None if rounded is None else moved(rounded) + np.abs(turned) / 2
        return Judged(turned, moved(condition) + self.size(value), moved(floor), stored)

    def _turn(self, x: Floats, c: Floats, down: Floats, up: Floats, rest: float = 1.0) -> Floats:
        """Pairs (a, b) as (a c + b down, a up + b c); rest: what the entries are multiplied by that are not turned."""
        half = self.cos.shape[-1]
        pairs = x[..., : 2 * half]
        a, b = (
            (pairs[..., 0::2], pairs[..., 1::2])
            if self.interleaved
            else (pairs[..., :half], pairs[..., half:])
        )
        new = a * c + b * down, a * up + b * c
        turned = (
            np.stack(new, -1).reshape((*new[0].shape[:-1], 2 * half))
            if self.interleaved
            else np.concatenate(new, -1)
        )
        return np.concatenate((turned, rest * x[..., 2 * half :]), -1)


def turning(rotary: Rotary, positions: Floats, width: int, real: type[np.floating]) -> Turning:
    """What a rotary does to tokens of this width at positions (B|1, L)."""
    if rotary.sections is not None:
        raise ValueError(
            "polyattn.parity.compare: expected a rotary with one axis of positions, got sections "
            f"{rotary.sections}; turn query and key inside f and g, and leave rotary= out of meant"
        )
    frequencies = np.asarray(rotary.frequencies(rotary.width or width), real)
    angle = positions.astype(real)[:, None, :, None] * frequencies
    amplitude = 1.0 if rotary.scaling is None else rotary.scaling.amplitude
    return Turning(amplitude * np.cos(angle), amplitude * np.sin(angle), np.abs(angle), rotary.interleaved)
