"""Queries and keys of a probe turned in a fraction of a millisecond: its rows alone, in plain NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["turned"]


def turned(call: Call, settings: Settings, rows: Floats) -> Call:
    """The call with its rotary applied to the keys and to those query rows, which are all that is asked of it."""
    rotary = call.rotary
    plain = (
        settings.rotary
        == settings.operands
        == settings.layout
        == settings.merge
        == settings.norms
        == "as stated"
    )
    plain = (
        plain and settings.softmax != "queries" and not settings.precision.endswith(("inputs", "throughout"))
    )
    if rotary is None or rotary.sections is not None or not plain:
        return call
    at_q, at_k = np.arange(call.q.shape[2]) + call.offset, np.arange(call.k.shape[2])
    if call.positions is not None:
        at_q, at_k = call.positions
    q = np.zeros(call.q.shape)
    q[:, :, rows] = _turn(rotary, call.q[:, :, rows], at_q[..., rows])
    return replace(call, q=q, k=_turn(rotary, call.k, at_k), rotary=None, positions=None)


def _turn(rotary: Rotary, x: Floats, positions: Floats) -> Floats:
    width = x.shape[-1] if rotary.width is None else rotary.width
    if width % 2 or width > x.shape[-1]:
        raise ValueError(
            f"polyattn.conventions.fits: expected an even width up to {x.shape[-1]}, got {width}; turn less"
        )
    angle = positions[..., None] * np.array(rotary.frequencies(width))
    angle = angle[:, None] if angle.ndim > 2 else angle
    m = 1.0 if rotary.scaling is None else rotary.scaling.amplitude
    cos, sin = m * np.cos(angle), m * np.sin(angle)
    half = width // 2
    first, second = (
        (slice(0, width, 2), slice(1, width, 2)) if rotary.interleaved else (slice(half), slice(half, width))
    )
    a, b = x[..., first], x[..., second]
    out = x.copy()
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out
