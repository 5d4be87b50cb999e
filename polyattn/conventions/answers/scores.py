"""Scores and their conditions: scale, soft cap, what is added, and what hides, in right orders and in wrong ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from polyattn.conventions.answers.products import Products
from polyattn.conventions.answers.rounding import rounded, stage_of
from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.conventions.visible import allowed_keys, at_rows, bias_of
from polyattn.truth.spec import Floats

__all__ = ["Scores", "scale_of", "scored"]


class Scores(NamedTuple):
    """Scores, and by how many u they may be off."""

    hidden: Floats  # (B, Hq, rows, S), -inf or another number where the mask hides
    size: Floats  # likewise
    unhidden: Floats  # before the mask
    allowed: Floats  # broadcasts to them


def scale_of(call: Call, choice: str) -> float:
    """The factor on the scores."""
    width = max(call.q.shape[3], 1)
    choices: dict[str, float] = {
        "as stated": call.scale,
        "after the softmax": 1.0,
        "twice": call.scale**2,
        "1": 1.0,
        "1/D": 1.0 / width,
        "1/sqrt(D)": 1.0 / math.sqrt(width),
        "sqrt(D)": math.sqrt(width),
        "1/sqrt(E)": 1.0 / math.sqrt(max(call.v.shape[3], 1)),
        "1/sqrt(embed_dim)": 1.0 / math.sqrt(max(call.embed_dim, 1)),
        "1/sqrt(S)": 1.0 / math.sqrt(max(call.k.shape[2], 1)),
        "1/sqrt(kv_heads D)": 1.0 / math.sqrt(width * call.k.shape[1]),
    }
    return choices[choice]


def scored(call: Call, settings: Settings, made: Products, rows: Floats) -> Scores:
    """The scores of these settings on some query rows."""
    scale, cap = scale_of(call, settings.scale), call.softcap
    low, stage = stage_of(settings.precision)
    bias = None if (found := bias_of(call, settings)) is None else _finite_part(at_rows(found, rows))
    shift = None if call.shift is None else _finite_part(at_rows(call.shift, rows))
    product = made.product
    if settings.bias == "before the scale" and bias is not None:
        product = product + bias
    if settings.shift == "before the scale" and shift is not None:
        product = product + shift
    size = made.size
    if call.temperature is not None:
        by_row = at_rows(call.temperature, rows)
        product, size = by_row * product, np.abs(by_row) * size
    s, size = scale * product, abs(scale) * size
    if cap is not None and settings.softcap in ("as stated", "rational", "before the scale", "tanh alone"):
        s, size = _capped(s, size, cap, settings.softcap, scale)
    if shift is not None and settings.shift == "as stated":
        s, size = _plus(s, size, shift)
    if bias is not None and settings.bias not in ("before the scale", "dropped", "after the softmax"):
        s, size = _plus(s, size, {"subtracted": -1.0, "twice": 2.0}.get(settings.bias, 1.0) * bias)
    if cap is not None and settings.softcap == "after the bias":
        s, size = _capped(s, size, cap, "as stated", scale)
    if settings.mask == "added as 0/1" and call.mask is not None:
        s = s + np.where(at_rows(call.mask, rows), 1.0, 0.0).astype(s.dtype)
    if settings.mask == "all added as 0/1":
        hides = allowed_keys(replace(call, bias=None), replace(settings, mask="hides"), rows)
        s = s + np.where(hides, 1.0, 0.0).astype(s.dtype)
    if stage in ("scores", "throughout"):
        s, apart = rounded(s, low, made.most * (size + np.abs(s)))
        size = size + apart
    allowed = allowed_keys(call, settings, rows)
    if found is not None and settings.mask == "after the softmax" and settings.bias != "dropped":
        s = np.where(at_rows(found, rows) == -np.inf, s.dtype.type(-np.inf), s)  # that hides before it
    return Scores(_hidden(s, allowed, settings, call, made.poisoned), size, s, allowed)


def _hidden(s: Floats, allowed: Floats, settings: Settings, call: Call, poisoned: bool) -> Floats:
    fill = {"-inf": -np.inf, "0": 0.0, "-1e4": -1e4}.get(settings.hidden, -np.inf)
    fill = fill if call.fill is None else call.fill
    cap = call.softcap
    if settings.mask != "after the softmax" and not allowed.all():
        fills = np.where(np.isfinite(s), fill, np.nan) if poisoned else s.dtype.type(fill)
        s = np.where(allowed, s, fills)
    if cap is not None and settings.softcap == "after the mask":
        least = -cap if fill == -np.inf else cap * math.tanh(fill / cap)
        s = np.where(allowed, cap * np.tanh(s / cap), s.dtype.type(least))
    return s


def _finite_part(x: Floats) -> Floats:
    """x, with 0 for what hides."""
    finite = np.isfinite(x)
    return x if finite.all() else np.where(finite, x, 0.0).astype(x.dtype)


def _plus(s: Floats, size: Floats, term: Floats) -> tuple[Floats, Floats]:
    s = s + term
    return s, size + np.abs(s) + np.abs(term)


def _capped(s: Floats, size: Floats, cap: float, how: str, scale: float) -> tuple[Floats, Floats]:
    if how == "rational":
        return s / (1.0 + np.abs(s) / cap), size + np.abs(s)
    if how == "before the scale":
        bent = np.tanh(s / (scale * cap))
        return scale * cap * bent, size * (1 - bent**2) + 2 * abs(scale) * cap * np.abs(bent)
    bent = np.tanh(s / cap)
    factor = 1.0 if how == "tanh alone" else cap
    return factor * bent, (size * (1 - bent**2) + 2 * cap * np.abs(bent)) * factor / cap
