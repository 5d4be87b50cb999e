"""The definition as truth for a comparison: the whole of it, and stage by stage."""

from __future__ import annotations

import numpy as np

from polyattn.conventions.answers import CONTRACT, allowed_keys
from polyattn.conventions.call import Call
from polyattn.truth.definition import Judged
from polyattn.truth.spec import Floats, Spec


def spec_of(call: Call) -> Spec:
    """The problem that a call poses, for `truth`."""
    if call.rotary is not None:
        raise ValueError(
            "polyattn.parity.compare: expected query and key already turned, got rotary= in meant; apply it inside f and g"
        )
    allowed = np.broadcast_to(allowed_keys(call, CONTRACT, np.arange(call.shape[2])), call.shape)
    return Spec(
        call.q,
        call.k,
        call.v,
        allowed=allowed,
        scale=call.scale,
        softcap=call.softcap,
        shift=call.shift,
        bias=call.bias,
        sinks=call.sinks,
    )


def stage_truth(call: Call) -> dict[str, Judged]:
    """The stages of the definition in float64, and how much rounding may move each; hidden scores are free."""
    allowed = np.broadcast_to(allowed_keys(call, CONTRACT, np.arange(call.shape[2])), call.shape)

    def among_visible(condition: Floats) -> Floats:
        return np.where(allowed, condition, np.inf)

    group = call.q.shape[1] // call.k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (call.k, call.v))
    raw = call.q @ k.swapaxes(-1, -2)
    s = call.scale * raw
    sabs = abs(call.scale) * (np.abs(call.q) @ np.abs(k).swapaxes(-1, -2))
    found = {"scores": Judged(s, among_visible(sabs + np.abs(s)))}

    def broad(x: Floats) -> Floats:
        return np.broadcast_to(x.reshape((1,) * (4 - x.ndim) + x.shape), call.shape)

    if call.softcap is not None:
        bent = np.tanh(s / call.softcap)
        s, sabs = call.softcap * bent, sabs * (1 - bent**2) + 2 * call.softcap * np.abs(bent)
        found["after softcap"] = Judged(s, among_visible(sabs + np.abs(s)))
    if call.shift is not None:
        s = s + broad(call.shift)
        sabs = sabs + np.abs(broad(call.shift)) + np.abs(s)
    if call.bias is not None:
        with np.errstate(invalid="ignore"):
            s = s + broad(call.bias)
        sabs = (
            sabs + np.where(allowed, np.abs(broad(call.bias)), 0.0) + np.where(np.isfinite(s), np.abs(s), 0.0)
        )
        found["biased"] = Judged(s, among_visible(sabs))
    if not allowed.all():
        s = np.where(allowed, s, -np.inf)
        found["masked"] = Judged(s, np.where(allowed, sabs + np.abs(np.where(allowed, s, 0.0)), 0.0))
    sabs = np.where(allowed, sabs, 0.0)
    top = s.max(-1, initial=-np.inf)
    if call.sinks is not None:
        top = np.maximum(top, call.sinks[None, :, None])
    found["row maximum"] = Judged(
        top, 1 + sabs.max(-1, initial=0.0) + np.where(np.isfinite(top), np.abs(top), 0.0)
    )
    base = np.where(np.isfinite(top), top, 0.0)[..., None]
    e = np.exp(s - base)
    total = e.sum(-1, keepdims=True) + (
        0.0 if call.sinks is None else np.exp(call.sinks[None, :, None, None] - base)
    )
    w = e / np.where(total == 0, 1.0, total)
    mean = (w * sabs).sum(-1, keepdims=True)
    found["weights"] = Judged(w, w * (1 + sabs + mean), np.ones_like(w))
    found["output"] = Judged(w @ v, (w * (1 + sabs + mean)) @ np.abs(v), allowed @ np.abs(v))
    return found
