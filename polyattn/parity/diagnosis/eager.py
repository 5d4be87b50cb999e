"""Scores as a right program in half precision may form them: step by step, each stored.

What lies between two numbers of the lower precision, to within the error of float32, another right program stores as the
other one. How far that is goes with the scores: beside 0 it is the distance of two neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.items import one_by_one
from polyattn.rotary import Rotary
from polyattn.truth.measure import UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["TURNS", "Loose", "by_steps", "turned"]

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


#: What may happen to rotary embedding and is repeated here.
TURNS = ("as stated", "dropped", "other pairing", "queries alone", "keys alone", "queries one late", "queries from 0", "applied", "applied interleaved")  # fmt: skip


def turned(call: Call, choice: str, dtype: str) -> tuple[Loose, Loose]:
    """Query and key, turned by rotary in one of the ways of `TURNS`, and stored."""
    parts = [_turned(one, choice) for one in one_by_one(call)]
    q, k = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    off = 2 * U  # of the longest entry of a vector
    return (
        _stored(q, off * np.abs(call.q).max(-1, keepdims=True, initial=0.0), dtype),
        _stored(k, off * np.abs(call.k).max(-1, keepdims=True, initial=0.0), dtype),
    )


def _turned(call: Call, choice: str) -> tuple[Floats, Floats]:
    if choice == "dropped":
        return call.q, call.k
    rotary = Rotary() if call.rotary is None else call.rotary
    if choice in ("other pairing", "applied interleaved"):
        rotary = replace(rotary, interleaved=not rotary.interleaved)
    start = call.offset + {"queries one late": 1, "queries from 0": -call.offset}.get(choice, 0)
    q = call.q if choice == "keys alone" else rotary(call.q, np.arange(call.q.shape[2]) + start)
    return q, call.k if choice == "queries alone" else rotary(call.k, np.arange(call.k.shape[2]))


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
