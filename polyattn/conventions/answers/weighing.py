"""How scores become weights, and by how many u each weight may be off."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from polyattn.conventions.answers.scores import Scores
from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.conventions.visible import allowed_keys
from polyattn.truth.normalizers import NORMALIZERS
from polyattn.truth.spec import Floats

__all__ = ["weighed"]

#: The axes of (B, H, L, S) over which weights sum to one.
_AXES: dict[str, int | tuple[int, ...]] = {
    "queries": -2,
    "heads": 1,
    "batch items": 0,
    "keys and heads": (1, -1),
}
_OTHERS = {
    "softpick": "softpick",
    "sparsemax": "sparsemax",
    "entmax-1.5": "entmax15",
}


def weighed(call: Call, settings: Settings, scores: Scores, rows: Floats) -> tuple[Floats, Floats]:
    """Weights (B, Hq, rows, S) and their conditions."""
    s, size = scores.hidden, scores.size
    kind = settings.softmax
    if kind == "missing":
        w = np.where(np.isfinite(s), s, 0.0)
        return _masked(w, np.abs(w) + np.where(np.isfinite(s), size, 0.0), settings, scores)
    if kind == "relu over n":
        w = np.maximum(s, 0.0) / max(s.shape[-1], 1)
        return _masked(w, w + np.where(w > 0, size, 0.0) / max(s.shape[-1], 1), settings, scores)
    if kind.startswith("sigmoid"):
        less = math.log(max(s.shape[-1], 1)) if kind == "sigmoid less log n" else 0.0
        with np.errstate(over="ignore"):
            w = 1.0 / (1.0 + np.exp(less - s))
        size = np.where(np.isfinite(s), size + (less + np.abs(s) if less else 0.0), 0.0)
        return _masked(w, w * (1.0 + (1.0 - w) * size), settings, scores)
    if kind in _OTHERS:
        none = np.full((1, 1, 1, 1), -np.inf, s.dtype)
        found = NORMALIZERS[_OTHERS[kind]](s, np.where(np.isfinite(s), size, 0.0), none, 0.0)
        return _masked(found.weights, found.condition, settings, scores)
    w = _softmax(call, settings, s)
    empty = ~scores.allowed.any(-1)
    filled = settings.mask != "after the softmax" and bool(empty.any())
    if filled:
        w = _empty_rows(w, np.broadcast_to(empty, w.shape[:-1])[..., None], call, settings, scores, rows)
    axis = _AXES.get(kind, -1)
    size = np.where(np.isfinite(s) | (w != 0), size, 0.0)
    spread = w * (1.0 + size + (w * size).sum(axis, keepdims=True))
    if kind == "twice":  # what is hidden has the weight 0, and exp(0) of the next
        w, size = _softmax(call, replace(settings, softmax="keys", sinks="dropped"), w), spread
        spread = w * (1.0 + size + (w * size).sum(-1, keepdims=True))
    return _masked(w, spread, settings, scores)


def _masked(w: Floats, spread: Floats, settings: Settings, scores: Scores) -> tuple[Floats, Floats]:
    if settings.mask == "after the softmax":
        return w * scores.allowed, spread * scores.allowed
    return w, spread


def _softmax(call: Call, settings: Settings, s: Floats) -> Floats:
    kind = settings.softmax
    axis = _AXES.get(kind, -1)
    base = math.log(2.0) if kind == "base 2" else 1.0
    s = s * s.dtype.type(base) if base != 1.0 else s
    highest = s.max(axis=axis, keepdims=True, initial=-np.inf)
    sink = _sink(call, settings, base)
    if kind == "plus one":
        sink = np.zeros((1, 1, 1, 1), s.dtype) if sink is None else np.logaddexp(sink, 0.0)
    raw = settings.sinks == "not shifted"  # exp(sink) beside exp(s - max s)
    top = highest if sink is None or raw else np.maximum(highest, sink)
    top = np.where(np.isfinite(top), top, 0.0)
    e = np.exp(s - top)
    total = e.sum(axis=axis, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink if raw else sink - top)
    if kind == "plus one, not shifted":
        total = total + 1.0
    return e / np.where(total == 0, 1.0, total)


def _sink(call: Call, settings: Settings, base: float) -> Floats | None:
    """The score that a row gives to nothing, (1, H, 1, 1)."""
    if call.sinks is None or settings.sinks == "dropped":
        return None
    sinks = call.sinks * call.sinks.dtype.type(base)
    changed: Floats = sinks
    if settings.sinks == "first head's":
        changed = np.broadcast_to(sinks[:1], sinks.shape)
    elif settings.sinks == "exponentiated twice":
        changed = np.exp(sinks)
    elif settings.sinks in ("subtracted", "scaled"):
        changed = sinks.dtype.type(-1.0 if settings.sinks == "subtracted" else call.scale) * sinks
    return changed[None, :, None, None]


def _empty_rows(
    w: Floats, empty: Floats, call: Call, settings: Settings, scores: Scores, rows: Floats
) -> Floats:
    """The weights, some of rows that see nothing."""
    kept = kept_keys(settings)
    hidden = ~allowed_keys(replace(call, bias=None), settings, rows)[..., kept]
    by_bias = empty & ~hidden.any(-1, keepdims=True)
    # A finite mask constant is above the -inf of a bias: what the mask hides shares the weight.
    share = np.where(
        by_bias, 1.0 / max(w.shape[-1], 1), hidden / np.maximum(hidden.sum(-1, keepdims=True), 1)
    ).astype(w.dtype)
    for which, fate in ((empty, settings.empty_rows), (by_bias, settings.bias_rows)):
        if fate == "mean of all values":
            w = np.where(which, share, w)
        elif fate == "as if unmasked":
            e = np.exp(scores.unhidden - scores.unhidden.max(-1, keepdims=True))
            w = np.where(which, e / e.sum(-1, keepdims=True), w)
        elif fate == "NaN":
            w = np.where(which, w.dtype.type(np.nan), w)
    return np.where(by_bias, w.dtype.type(0.0), w) if settings.bias_rows == "zero" else w


def kept_keys(settings: Settings) -> slice:
    """The keys that an implementation takes into account."""
    return {"last dropped": slice(None, -1), "first dropped": slice(1, None)}.get(settings.keys, slice(None))
