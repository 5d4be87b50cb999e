"""Scores as a right program in half precision may form them: step by step, each stored.

What lies between two numbers of the lower precision, to within the error of float32, another right program stores as the
other one. How far that is goes with the scores: beside 0 it is the distance of two neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from polyattn.conventions.call import Call, one_by_one
from polyattn.truth.measure import UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["Loose", "by_steps", "turned"]

U = UNIT_ROUNDOFF["float32"]  # in which everything is computed before it is stored


class Loose(NamedTuple):
    """A number, and how far another right program's may lie from it."""

    value: Floats
    off: Floats | float = 0.0


def _stored(x: Floats, off: Floats | float, dtype: str | None) -> Loose:
    """x, which is so far off, in a dtype; None leaves it in float32."""
    if dtype is None:
        return Loose(x, off)
    with np.errstate(all="ignore"):
        apart = np.abs(_nearest(x + off, dtype) - _nearest(x - off, dtype))
        return Loose(_nearest(x, dtype), np.where(np.isfinite(apart), apart, 0.0))


def _nearest(x: Floats, dtype: str) -> Floats:
    # By way of float32, as in a program: a number halfway after that is halfway for it too.
    return round_to(x.astype(np.float32).astype(np.float64), dtype)


def turned(call: Call, dtype: str) -> tuple[Loose, Loose]:
    """Query and key, turned by rotary and stored."""

    def both(one: Call) -> tuple[Floats, Floats]:
        assert one.rotary is not None
        q = one.rotary(one.q, np.arange(one.q.shape[2]) + one.offset)
        return q, one.rotary(one.k, np.arange(one.k.shape[2]))

    q, k = (np.concatenate(x) for x in zip(*map(both, one_by_one(call)), strict=True))
    return (
        _stored(q, 2 * U * np.abs(call.q).max(-1, keepdims=True, initial=0.0), dtype),
        _stored(k, 2 * U * np.abs(call.k).max(-1, keepdims=True, initial=0.0), dtype),
    )


def by_steps(
    call: Call, q: Loose, k: Loose, dtype: str, of_q: float = 1.0, of_k: float = 1.0, *, fused: bool = False
) -> tuple[Call, Floats]:
    """The call with its scores given, every step on the way to them stored: products, scaled, capped, added to; and how
    far off they may be.

    of_q, of_k: by what query and key are scaled before; what is left of the scale comes after the product. fused: only
    products are stored, the other steps are one program in float32.
    """
    q, k = _scaled(q, of_q, dtype), _scaled(k, of_k, dtype)
    group = q.value.shape[1] // k.value.shape[1]
    keys, keys_off = (np.repeat(np.broadcast_to(x, k.value.shape), group, axis=1).mT for x in k)
    size = np.abs(q.value) @ np.abs(keys)
    off = 2 * U * size + np.broadcast_to(q.off, q.value.shape) @ np.abs(keys) + np.abs(q.value) @ keys_off
    s = _stored(q.value @ keys, off, dtype)
    then = None if fused else dtype
    s = _scaled(s, call.scale / (of_q * of_k), then)
    if call.softcap is not None:
        cap = call.softcap
        s = _scaled(s, 1 / cap, then)
        s = _stored(np.tanh(s.value), s.off + U, then)
        s = _scaled(s, cap, then)
    for added in (call.shift, call.bias):
        if added is not None:
            total = s.value + np.where(np.isfinite(added), added, 0.0)
            s = _stored(total, s.off + U * np.abs(total), then)
    bias = None if call.bias is None else np.where(np.isfinite(call.bias), 0.0, call.bias)
    given = replace(call, q=0.0 * call.q, k=0.0 * call.k, rotary=None, shift=s.value, softcap=None, bias=bias)
    return given, np.asarray(s.off)


def _scaled(x: Loose, by: float, dtype: str | None) -> Loose:
    """Times a number, and stored; a power of 2 rounds nothing."""
    if by == 1.0:
        return x
    value = by * x.value
    return _stored(value, abs(by) * x.off + U * np.abs(value), dtype)
