"""Queries and keys of a probe turned in a fraction of a millisecond: its rows alone, in plain NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["turned", "turned_by_other_tables"]


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


def turned_by_other_tables(call: Call) -> Call:
    """The call with its rotary applied, each angle standing in the tables of cos and sin where the other pairing has it."""
    rotary = call.rotary
    if rotary is None:
        return call
    at_q, at_k = np.arange(call.q.shape[2]) + call.offset, np.arange(call.k.shape[2])
    if call.positions is not None:
        at_q, at_k = call.positions
    q, k = (_turn(rotary, x, at, mixed=True) for x, at in ((call.q, at_q), (call.k, at_k)))
    return replace(call, q=q, k=k, rotary=None, positions=None)


def _turn(rotary: Rotary, x: Floats, positions: Floats, mixed: bool = False) -> Floats:
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
    if mixed:
        cos, sin = (_repeated(t, not rotary.interleaved) for t in (cos, sin))
        beside = np.empty((*x.shape[:-1], width))
        beside[..., first], beside[..., second] = -b, a
        out[..., :width] = x[..., :width] * cos + beside * sin
        return out
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def _repeated(table: Floats, neighbours: bool) -> Floats:
    """A table for every entry: each angle twice in a row, or all of them twice."""
    return np.repeat(table, 2, -1) if neighbours else np.concatenate((table, table), -1)
