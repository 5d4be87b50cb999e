"""Scores bounded by a soft cap."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array, backend_of, is_array
from polyattn.calls import answers, real, shown
from polyattn.mods.mod import Mod
from polyattn.places import Positions

MOST = 2.0**60  # and least its inverse: score / cap is a number of every compute dtype


@dataclass(frozen=True, eq=False)
class Softcap(Mod):
    cap: float | Array

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        return backend_of(score).xp.tanh(score / self.cap) * self.cap

    def derivative(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        xp = backend_of(score).xp
        bent = xp.tanh(score / self.cap)
        slope = (1.0 - bent) * (1.0 + bent)
        if not is_array(self.cap):
            return cotangent * slope, ()
        return cotangent * slope, (xp.sum(cotangent * (bent - score / self.cap * slope)),)


@answers("polyattn.mods.softcap")
def softcap(cap: float | Array) -> Mod:
    """s -> cap * tanh(s / cap): scores bounded by cap > 0 (Gemma 2, arXiv:2408.00118, section 2).

    cap: a number, or a 0-d array that autodiff can see; below 2^60, so that float32 has s / cap.

    >>> import numpy as np
    >>> softcap(2.0)(np.array([0.0, 100.0]), None, None, None, None)
    array([0., 2.])
    """
    if isinstance(cap, bool) or not (isinstance(cap, (int, float)) or (is_array(cap) and cap.ndim == 0)):
        raise TypeError(
            f"polyattn.mods.softcap: expected a number or a 0-d array, got {shown(cap)}; pass cap > 0"
        )
    known: float | None = None
    if not is_array(cap):
        known = cap
    elif (backend := real("polyattn.mods.softcap", "cap", cap)).is_concrete(cap):
        known = backend.to_list(cap)
    if known is not None and not 1 / MOST < known < MOST:
        got = repr(known) if isinstance(known, float) or abs(known) < 2**64 else "a larger integer"
        raise ValueError(
            f"polyattn.mods.softcap: expected a cap between 0 and 2**60, got {got}; leave the mod out for no cap"
        )
    return Softcap(cap)
