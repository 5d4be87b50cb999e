"""Norms and rotary embedding of query, key and value: left out, not asked for, or at other positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["turned"]


def turned(call: Call, settings: Settings) -> tuple[Floats, Floats, Floats]:
    """Query, key and value as they go into the two products."""
    q, k, v = call.q, call.k, call.v
    kind, _, detail = settings.norms.partition(" ")
    if kind == "values":
        v = _normed(v, *detail.split())
    elif settings.norms != "as stated":
        q, k = (_normed(x, kind, detail) for x in (q, k))
    if call.rotary is not None or settings.rotary != "as stated":
        q, k, v = _rotated(call, settings.rotary, q, k, v)
    return q, k, v


def _normed(x: Floats, kind: str, eps: str) -> Floats:
    """x / sqrt(mean x^2 + eps) over the width of a head ("rms") or of all ("rms-all"); of x less its mean
    ("layer"); x / |x| ("l2")."""
    if kind == "l2":
        return x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    square = (x * x).mean((1, 3) if kind == "rms-all" else -1, keepdims=True)
    return x / np.sqrt(square + x.dtype.type(eps))


def _rotated(call: Call, choice: str, q: Floats, k: Floats, v: Floats) -> tuple[Floats, Floats, Floats]:
    if choice == "dropped":
        return q, k, v
    rotary = Rotary() if call.rotary is None else call.rotary
    if choice in ("other pairing", "applied interleaved"):
        rotary = replace(rotary, interleaved=not rotary.interleaved)
    shift = {"queries one late": 1, "queries from 0": -call.offset}.get(choice, 0)
    at_q, at_k = np.arange(q.shape[2]) + call.offset + shift, np.arange(k.shape[2])
    if choice == "positions are heads":
        return _by_heads(rotary, q), _by_heads(rotary, k), v
    if choice in ("other direction", "twice"):
        times = -1 if choice == "other direction" else 2
        at_q, at_k = times * at_q, times * at_k
    return (
        q if choice == "keys alone" else rotary(q, at_q),
        k if choice == "queries alone" else rotary(k, at_k),
        rotary(v, at_k) if choice == "values too" else v,
    )


def _by_heads(rotary: Rotary, x: Floats) -> Floats:
    """Turned by the number of the head, as if that axis were the tokens."""
    turned: Floats = rotary(x.swapaxes(1, 2), np.arange(x.shape[1]))
    return turned.swapaxes(1, 2)
