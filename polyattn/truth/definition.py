"""The definition and its gradients in extended precision, with the condition number of every element.

A score carries an error of a few u * sabs, sabs = scale * sum_d |q_d| |k_d|; first-order analysis
takes it through the normaliser. The error of a correct computation is then at most a small number `eta`
times u times the condition `c` given here, whatever the dtype and the amplitude of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyattn.truth.normalizers import NORMALIZERS
from polyattn.truth.spec import Floats, Spec

__all__ = ["Judged", "truth"]


class Judged(NamedTuple):
    """A true value, its condition, and how it follows roundings to half precision and a weight that underflows.

    |computed - value| <= eta * (u * condition + tiny * floor), elementwise, with u the unit roundoff of the
    result and tiny the smallest normal number of the dtype in which weights are carried. In half precision a right
    program rounds to it only what it stores, and computes in float32: u * rounded + u32 * condition + tiny * floor.
    Where rounded is None nothing is known of what it stores, and u * condition stands.
    """

    value: Floats
    condition: Floats
    floor: Floats | float = 0.0
    rounded: Floats | None = None


See = Callable[[str, Judged], object]


@np.errstate(all="ignore")
def truth(
    spec: Spec, cotangent: Floats | None = None, see: See = lambda name, judged: None
) -> dict[str, Judged]:
    """out, and lse beside the softmax; with a cotangent of out also the gradients dq, dk, dv, dbias, dsinks, dscale.

    Condition of the output: c = sum_j w_j |v_j| (1 + sabs_j + sum_k w_k sabs_k). `see` is shown every stage on the
    way there, by its name in `polyattn.trace`; what hidden scores hold before the mask is free: an infinite condition.

    >>> x = np.array([[[[0.0], [1.0]]]])
    >>> truth(Spec(x, x, x, scale=1.0))["out"].value.ravel().astype(float).round(6).tolist()
    [0.5, 0.731059]
    """
    real = np.longdouble
    batch, heads, _, _ = shape = spec.shape
    group = heads // spec.k.shape[1] if spec.k.shape[1] else 1

    def full(x: Floats, repeat: int) -> Floats:
        x = np.repeat(np.asarray(x, real), repeat, axis=1)
        return np.broadcast_to(x, (batch, *x.shape[1:]))

    q, k, v = full(spec.q, 1), full(spec.k, group), full(spec.v, group)
    scale = spec.scales.astype(real)[:, None, None]
    allowed = np.broadcast_to(spec.allowed, shape)
    if spec.bias is not None:
        allowed = allowed & (spec.bias != -np.inf)

    def before_the_mask(name: str) -> None:
        see(name, Judged(s, np.where(allowed, sabs + np.abs(s), np.inf)))

    raw = scale * (q @ k.mT)
    sabs = raw_sabs = np.abs(scale) * (np.abs(q) @ np.abs(k).mT)
    s, slope = raw, np.ones(shape, real)
    before_the_mask("scores")
    if spec.softcap is not None:
        bent = np.tanh(raw / spec.softcap)
        s, slope = spec.softcap * bent, 1 - bent**2
        sabs = sabs * slope + 2 * spec.softcap * np.abs(bent)
        before_the_mask("after softcap")
    for term in (spec.shift, spec.bias):
        if term is not None:
            s = s + np.broadcast_to(term, shape).astype(real)
            sabs = sabs + np.where(allowed, np.abs(np.broadcast_to(term, shape)) + np.abs(s), 0)
    if spec.bias is not None:
        before_the_mask("biased")
    s = np.where(allowed, s, -np.inf)
    sabs = np.where(allowed, sabs, 0)
    if not allowed.all():
        see("masked", Judged(s, np.where(allowed, sabs + np.abs(s), 0)))

    top = s.max(axis=-1, keepdims=True, initial=-np.inf)
    sink = np.full((heads, 1, 1), -np.inf, real)
    if spec.sinks is not None:
        sink = np.asarray(spec.sinks, real)[:, None, None]
    peak = np.maximum(top, sink)
    largest = 1 + sabs.max(axis=-1, initial=0) + np.where(np.isfinite(peak), np.abs(peak), 0)[..., 0]
    see("row maximum", Judged(peak[..., 0], largest))
    peak = np.where(peak == -np.inf, 0, peak)
    expo = np.exp(s - peak)
    over_keys = expo.sum(axis=-1, keepdims=True)
    lse = np.where(over_keys == 0, -np.inf, peak + np.log(np.where(over_keys == 0, 1, over_keys)))[..., 0]
    own = expo / np.where(over_keys == 0, 1, over_keys)  # weights among the keys alone

    keep = np.ones(shape, real) if spec.keep is None else np.broadcast_to(spec.keep, shape).astype(real)
    w, w_abs, pull, w_sink = NORMALIZERS[spec.normalizer](s, sabs, sink, spec.parameter)
    see("weights", Judged(w, w_abs, np.ones_like(w)))
    value, aw = (w * keep) @ v, np.abs(w) * keep  # stored in half precision: the weights and the output
    judged = {
        "out": Judged(
            value,
            (w_abs * keep) @ np.abs(v),
            (allowed * keep) @ np.abs(v),
            (np.abs(value) + aw @ np.abs(v)) / 2,
        )
    }
    if spec.normalizer == "softmax":
        magnitude = 1 + np.abs(np.where(np.isfinite(lse), lse, 0))
        judged["lse"] = Judged(lse, magnitude + (own * sabs).sum(-1))
    see("output", judged["out"])
    if cotangent is None:
        return judged

    do = np.asarray(cotangent, real)
    dp, dp_abs = keep * (do @ v.mT), keep * (np.abs(do) @ np.abs(v).mT)
    ds, ds_abs, delta, delta_abs = pull(dp, dp_abs)
    d_raw, d_raw_abs = slope * ds, slope * ds_abs
    if spec.softcap is not None:
        # slope = 1 - bent^2: the roundings of bent, its square and the difference, then the error of raw.
        d_raw_abs = d_raw_abs + np.abs(ds) * (
            1 + 3 * bent**2 + 2 * np.abs(bent) * slope * raw_sabs / spec.softcap
        )
    weight = d_raw_abs + np.abs(d_raw)

    def ungroup(x: Floats, like: Floats) -> Floats:
        """Summed over the query heads that share a kv head, and over a batch axis that was broadcast."""
        kv_heads = like.shape[1]
        x = x.reshape(batch, kv_heads, heads // kv_heads, *x.shape[2:]).sum(2) if kv_heads else x
        return x.sum(0, keepdims=True) if like.shape[0] == 1 < batch else x

    def reduce(x: Floats, target: tuple[int, ...]) -> Floats:
        axes = tuple(a for a, n in enumerate(target) if n == 1)
        total: Floats = x.sum(axes, keepdims=True)
        return total

    ds_floor = allowed * (np.abs(dp) + np.abs(delta))
    floor = slope * ds_floor
    aq, ak, ascale = np.abs(q), np.abs(k), np.abs(scale)

    of_scores = (d_raw, weight, floor)
    for name, x, size, along in (("q", k, ak, of_scores), ("k", q, aq, [ds.mT for ds in of_scores])):
        parts = zip((scale, ascale, ascale), along, (x, size, size), strict=True)
        judged[f"d{name}"] = Judged(*(ungroup(c * (ds @ y), getattr(spec, name)) for c, ds, y in parts))
    judged["dv"] = Judged(
        *(
            ungroup((x * keep).mT @ y, spec.v)
            for x, y in ((w, do), (w_abs + w, np.abs(do)), (allowed, np.abs(do)))
        )
    )
    if spec.bias is not None:
        shape_of_bias = spec.bias.shape
        judged["dbias"] = Judged(*(reduce(x, shape_of_bias) for x in (ds, ds_abs + np.abs(ds), ds_floor)))
    if spec.sinks is not None:
        magnitude = np.abs(np.where(np.isfinite(sink), sink, 0))
        mean = magnitude + 1 + (w * sabs).sum(-1, keepdims=True) + w_sink * magnitude
        d_sink = -(w_sink * delta).sum((0, 2, 3))
        judged["dsinks"] = Judged(d_sink, (w_sink * (mean * np.abs(delta) + delta_abs)).sum((0, 2, 3)))
    per_head = (d_raw * (q @ k.mT)).sum((0, 2, 3))
    per_head_abs = (weight * (aq @ ak.mT)).sum((0, 2, 3))
    if np.ndim(spec.scale if spec.scale is not None else 0.0) == 0:
        per_head, per_head_abs = per_head.sum(), per_head_abs.sum()
    judged["dscale"] = Judged(per_head, per_head_abs, np.sum(floor * (aq @ ak.mT)))
    return judged
