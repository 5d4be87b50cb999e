"""Scores, weights and output of a tile, with their conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyattn.truth.judged import Judged
from polyattn.truth.normalizers import NORMALIZERS, Weighing
from polyattn.truth.spec import Floats, Spec
from polyattn.truth.tiles import Operands, Place, cut, operands

__all__ = ["Forward", "Real", "forward"]

Real = type[np.floating]


class Forward(NamedTuple):
    """What a tile is on the way to its output, and what its gradients are made of."""

    out: Judged
    lse: Judged | None  # beside the softmax
    operands: Operands
    scale: Floats  # (h, 1, 1)
    product: Floats  # q k
    sabs: Floats
    raw_sabs: Floats  # before the soft cap
    bent: Floats | None  # tanh(raw / cap)
    slope: Floats | float  # of the soft cap
    allowed: Floats
    keep: Floats | float
    weighing: Weighing
    sink: Floats  # (h, 1, 1)


def forward(
    spec: Spec, place: Place, real: Real, see: Callable[[str, Judged], object], hides: bool
) -> Forward:
    """The tile at a place, carried in `real`; `see` is shown every stage. hides: whether a mask hides anything anywhere."""
    given = operands(spec, place, real)
    q, k, v, q_size, k_size = given
    scale = spec.scales.astype(real)[place.heads, None, None]
    shape = (*q.shape[:3], k.shape[2])
    allowed = np.broadcast_to(cut(spec.allowed, place), shape)
    bias = None if spec.bias is None else cut(spec.bias, place)
    if bias is not None:
        allowed = allowed & (bias != -np.inf)

    def before_the_mask(name: str) -> None:
        see(name, Judged(s, np.where(allowed, sabs + np.abs(s) + summing * slope * raw_sabs, np.inf)))

    product = q @ k.mT
    s = raw = scale * product
    sabs = raw_sabs = np.abs(scale) * (q_size @ k_size.mT)
    bent, slope = None, 1.0
    # A single score shows what its sum over D cost, log2(D) roundings pairwise; in what follows such errors average.
    summing = np.log2(max(q.shape[3], 1)) / 2
    before_the_mask("scores")
    if spec.softcap is not None:
        bent = np.tanh(raw / spec.softcap)
        s, slope = spec.softcap * bent, 1 - bent**2
        sabs = sabs * slope + 2 * spec.softcap * np.abs(bent)
        before_the_mask("after softcap")
    for term in (None if spec.shift is None else cut(spec.shift, place), bias):
        if term is not None:
            s = s + term.astype(real)
            sabs = sabs + np.where(allowed, np.abs(term) + np.abs(s), 0)
    if bias is not None:
        before_the_mask("biased")
    s = np.where(allowed, s, -np.inf)
    sabs = np.where(allowed, sabs, 0)
    if hides:
        see("masked", Judged(s, np.where(allowed, sabs + np.abs(s) + summing * slope * raw_sabs, 0)))

    sink = np.full((shape[1], 1, 1), -np.inf, real)
    if spec.sinks is not None:
        sink = np.asarray(spec.sinks, real)[place.heads, None, None]
    peak = np.maximum(s.max(axis=-1, keepdims=True, initial=-np.inf), sink)
    largest = 1 + sabs.max(axis=-1, initial=0) + np.where(np.isfinite(peak), np.abs(peak), 0)[..., 0]
    see("row maximum", Judged(peak[..., 0], largest))

    weighing = NORMALIZERS[spec.normalizer](s, sabs, sink, spec.parameter)
    w, w_abs = weighing.weights, weighing.condition
    see("weights", Judged(w, w_abs, np.ones_like(w)))
    keep = 1.0 if spec.keep is None else cut(spec.keep, place).astype(real)
    value, av = (w * keep) @ v, np.abs(v)
    out = Judged(
        value,
        (w_abs * keep) @ av,
        (allowed * keep).astype(real) @ av,
        # Half precision stores the weights, which it rounds once each, and the output.
        (np.abs(value) + (np.abs(w) * keep) @ av) / 2,
    )
    see("output", out)
    lse = _lse(s, sabs, peak) if spec.normalizer == "softmax" else None
    if lse is not None:
        see("lse", lse)
    return Forward(
        out, lse, given, scale, product, sabs, raw_sabs, bent, slope, allowed, keep, weighing, sink
    )


def _lse(s: Floats, sabs: Floats, peak: Floats) -> Judged:
    """Over the keys alone."""
    peak = np.where(peak == -np.inf, 0, peak)
    expo = np.exp(s - peak)
    over_keys = expo.sum(axis=-1, keepdims=True)
    none = over_keys == 0
    lse = np.where(none, -np.inf, peak + np.log(np.where(none, 1, over_keys)))[..., 0]
    own = expo / np.where(none, 1, over_keys)
    magnitude = 1 + np.abs(np.where(np.isfinite(lse), lse, 0))
    return Judged(lse, magnitude + (own * sabs).sum(-1))
