"""Norms and rotary embedding of query, key and value: left out, not asked for, or at other positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["Operand", "turned"]

_STEP = 2.0**-12  # of an angle, relative: small, and not lost in float32


class Operand(NamedTuple):
    """One operand of the two products, and how it came about."""

    x: Floats
    computed: bool = False  # normalised or turned, rather than given
    by_angle: Floats | float = 0.0  # how many u it is off where an angle is off by one
    apart: Floats | float = 0.0  # how many u away a right rounding may put it besides

    @property
    def off(self) -> Floats | float:
        """How many u it may be off before it is rounded."""
        if not self.computed:
            return 0.0
        return self.by_angle + 2.0 * np.abs(self.x).max(-1, keepdims=True, initial=0.0)

    @property
    def more(self) -> Floats | float:
        """How many u it adds to a product besides |x|: errors of angles have both signs, and mostly cancel there."""
        return self.by_angle / 64.0 + self.apart

    def each(self, change: Callable[[Floats], Floats]) -> Operand:
        """The same of all its arrays."""
        angle, apart = (change(np.asarray(y)) if np.ndim(y) else y for y in (self.by_angle, self.apart))
        return Operand(change(self.x), self.computed, angle, apart)


def turned(
    call: Call, settings: Settings, rows: Floats | slice = slice(None)
) -> tuple[Operand, Operand, Operand]:
    """Some rows of the query, the key and the value as they go into the two products."""
    q, k, v = Operand(call.q[:, :, rows]), Operand(call.k), Operand(call.v)
    kind, _, detail = settings.norms.partition(" ")
    if kind == "values":
        v = _normed(v, *detail.split())
    elif settings.norms != "as stated":
        q, k = (_normed(x, kind, detail) for x in (q, k))
    choice = settings.rotary
    if choice == "dropped" or (call.rotary is None and choice == "as stated"):
        return q, k, v
    rotary = Rotary() if call.rotary is None else call.rotary
    if choice in ("other pairing", "applied interleaved"):
        rotary = replace(rotary, interleaved=not rotary.interleaved)
    if choice == "positions are heads":
        return _by_heads(rotary, q), _by_heads(rotary, k), v
    shift = {"queries one late": 1, "queries from 0": -call.offset}.get(choice, 0)
    times = {"other direction": -1, "twice": 2}.get(choice, 1)
    places = np.arange(call.q.shape[2]) + call.offset, np.arange(call.k.shape[2])
    of_q, of_k = places if call.positions is None else call.positions
    at_q, at_k = times * (of_q + shift)[..., rows], times * of_k
    return (
        q if choice == "keys alone" else _rotated(rotary, q, at_q),
        k if choice == "queries alone" else _rotated(rotary, k, at_k),
        _rotated(rotary, v, at_k) if choice == "values too" else v,
    )


def _normed(operand: Operand, kind: str, eps: str) -> Operand:
    """x / sqrt(mean x^2 + eps) over the width of a head ("rms") or of all ("rms-all"); of x less its mean
    ("layer"); x / |x| ("l2")."""
    x = operand.x
    if kind == "l2":
        return Operand(x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 1e-12), True)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    square = (x * x).mean((1, 3) if kind == "rms-all" else -1, keepdims=True)
    return Operand(x / np.sqrt(square + x.dtype.type(eps)), True)


def _rotated(rotary: Rotary, operand: Operand, at: Floats) -> Operand:
    """Turned; and an angle, position * frequency, is right to one rounding in the dtype of the program."""
    turned: Floats = rotary(operand.x, at)
    further: Floats = rotary(operand.x, at * (1.0 + _STEP))
    return Operand(turned, True, np.abs(further - turned) / _STEP)


def _by_heads(rotary: Rotary, operand: Operand) -> Operand:
    """Turned by the number of the head, as if that axis were the tokens."""
    turned = _rotated(rotary, operand.each(_across), np.arange(operand.x.shape[1]))
    return turned.each(_across)


def _across(x: Floats) -> Floats:
    return x.swapaxes(1, 2)
