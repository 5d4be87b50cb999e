"""Mistakes without a number that most often are made: scale, masks, soft cap, bias, what is seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..defect import MASKED, Defect, computed, defect
from ..naming import Said, scaled
from ..problems import Problem
from ..stages import PLAIN, add, hide, softmax, visible


def everything(p: Problem) -> Tensor:
    return torch.ones(p.shape, dtype=torch.bool)


def scale(name: str, f, needs: str = "", without: str = "") -> Defect:  # type: ignore[no-untyped-def]
    return Defect(name, "scale", scaled(f), needs, {"scale": f}, without)


def order(name: str, group: str, named: str, needs: str, steps: str) -> Defect:
    return Defect(name, group, (Said(named),), needs, {"order": tuple(steps.split())}, "alibi")


def unguarded(p: Problem, s: Tensor) -> Tensor:
    """The textbook's softmax: a row of -inf is 0 / 0."""
    if p.sinks is None:
        return torch.softmax(s, -1)
    column = p.sinks[:, None, None].to(s.dtype).expand(*s.shape[:3], 1)
    return torch.softmax(torch.cat((s, column), -1), -1)[..., :-1]


INVERTED = "polarity.*(inverted|ignore)|mask inverted"
ADDED = "mask.* added"
AFTER = "mask.* after the softmax"
FILLED = (Said("hidden.*(filled|about 0)|fill"),)
EMPTY = "see nothing"
NOTHING = {"hidden": hide(0.0), "order": ("scaled", "capped", "leaned", "biased"), "weights": lambda p, w, allowed: w * allowed}  # fmt: skip

SCALES: tuple[Defect, ...] = (
    scale("scores not divided", lambda p: 1.0),
    scale("model width in the scale", lambda p: (p.q.shape[1] * p.q.shape[3]) ** -0.5),
    scale("default scale, another was asked for", lambda p: p.q.shape[3] ** -0.5, "scale"),
    Defect("scale applied twice", "scale", (Said("scale.*twice"), *scaled(lambda p: p.stated_scale**2)), "", {"scale": lambda p: p.stated_scale**2}),
    Defect("own scale applied twice", "scale", (Said("scale.*twice"), *scaled(lambda p: p.stated_scale**2)), "scale", {"scale": lambda p: p.stated_scale**2}),
    scale("no square root", lambda p: 1 / p.q.shape[3]),
    scale("multiplied by sqrt(D)", lambda p: p.q.shape[3] ** 0.5),
    scale("number of keys in the scale", lambda p: p.k.shape[2] ** -0.5),
    scale("width of the kv heads in the scale", lambda p: (p.k.shape[1] * p.q.shape[3]) ** -0.5, "gqa"),
    defect("base 2", "scale softmax", (Said("base 2"), *scaled(lambda p: p.stated_scale * math.log(2))), softmax=softmax(base=2.0), without="softcap bias sinks alibi"),
)  # fmt: skip

MASKS: tuple[Defect, ...] = (
    defect("mask inverted", "mask", INVERTED, "mask", mask=lambda p: ~p.mask),
    defect("padding mask inverted", "mask", INVERTED, "padding", mask=lambda p: ~p.mask),
    defect("causal mask inverted", "mask causal window", INVERTED, "causal", allowed=lambda p, allowed: ~allowed),
    defect("window inverted", "mask causal window", INVERTED, "window", allowed=lambda p, allowed: ~allowed),
    defect("mask ignored", "mask", "mask ignored", "mask", mask=everything),
    defect("padding ignored", "mask", "(mask|padding) ignored", "padding", mask=everything),
    defect("float mask added", "mask", ADDED, "mask", mask=everything, added=lambda p, s: s + p.mask),
    defect("causal float mask added", "mask causal window", ADDED, "causal", allowed=lambda p, allowed: torch.ones_like(allowed), added=lambda p, s: s + visible(p, PLAIN)),
    Defect("mask after the softmax", "mask hidden", (Said(AFTER),), "mask", NOTHING),
    Defect("causal mask after the softmax", "mask hidden", (Said(AFTER),), "causal", NOTHING),
    defect("padding on the query axis", "mask", "padding.*quer", "padding square", mask=lambda p: p.mask.mT),
    defect("hidden filled with 0", "hidden", FILLED, "mask", hidden=hide(0.0)),
    defect("hidden filled with 1e-10", "hidden", FILLED, "causal", hidden=hide(1e-10)),
    defect("causality ignored", "causal", "causal.* ignored", "causal", causal=lambda p, i, j: j <= i + 10**6),
    defect("causal from the first row", "causal", "top-left|causal.*(first|shift)", "causal end", causal=lambda p, i, j: j <= i - p.start),
    defect("causal from the last row", "causal", "bottom-right|causal.*(last|shift)", "causal first", causal=lambda p, i, j: j <= i - p.start + p.shape[3] - p.shape[2]),
    defect("diagonal hidden", "causal", "diagonal", "causal", causal=lambda p, i, j: j < i),
    defect("one token ahead", "causal", "causal.*(off by one|next|shift|ahead)", "causal", causal=lambda p, i, j: j <= i + 1),
    defect("causal mask transposed", "causal", "causal.*(transposed|later)", "causal", causal=lambda p, i, j: j >= i),
    defect("window ignored", "window", "window ignored", "window", window=lambda p, i, j, left, right: j < 10**6),
    defect("causal window ignored", "window", "window ignored", "window causal", window=lambda p, i, j, left, right: j < 10**6),
    defect("window one key more", "window", "window.*(one|size|\\d)", "window", window=lambda p, i, j, left, right: (i - left - 1 <= j) & (j <= i + right + 1)),
    defect("causal window one key more", "window", "window.*(one|size|\\d)", "window causal", window=lambda p, i, j, left, right: i - left - 1 <= j),
    defect("window one key less", "window", "window.*(one|size|\\d)", "window", window=lambda p, i, j, left, right: (i - left < j) & (j < i + right)),
    defect("causal window one key less", "window", "window.*(one|size|\\d)", "window causal", window=lambda p, i, j, left, right: i - left < j),
    defect("sliding window on both sides", "window", "window.*both", "sliding", "causal", window=lambda p, i, j, left, right: (i - j).abs() <= left),
    defect("window as wide on both sides", "window", "window.*(both|\\d)", "window", "causal", window=lambda p, i, j, left, right: (i - j).abs() <= left),
    defect("window without the offset", "window", "window.*(offset|first row)", "window end", window=lambda p, i, j, left, right: PLAIN["window"](p, i - p.start, j, left, right)),
    defect("finite mask constant", "empty", EMPTY, "empty", hidden=hide(-1e30)),
    defect("finite mask constant, left padding", "empty hidden", f"{EMPTY}|fill", "left causal", hidden=hide(-1e9)),
    defect("empty rows unmasked", "empty", EMPTY, "empty", allowed=lambda p, allowed: allowed | ~allowed.any(-1, keepdim=True)),
    defect("empty rows NaN", "empty softmax", EMPTY, "empty", softmax=unguarded),
    defect("empty rows NaN, left padding", "empty softmax", EMPTY, "left causal", softmax=unguarded),
)  # fmt: skip

SCORES: tuple[Defect, ...] = (
    defect("soft cap ignored", "softcap", "soft ?cap ignored", "softcap", capped=lambda p, s, allowed: s),
    defect("soft cap x / (1 + |x| / cap)", "softcap", "x / \\(1", "softcap", capped=lambda p, s, allowed: s / (1 + s.abs() / p.cap)),
    defect("soft cap without its factor", "softcap", "soft ?cap without its factor", "softcap", capped=lambda p, s, allowed: torch.tanh(s / p.cap)),
    order("soft cap after the mask", "softcap mask hidden", "cap.*after the mask", "softcap mask", "scaled biased hidden capped"),
    order("soft cap after the causal mask", "softcap mask hidden", "cap.*after the mask", "softcap causal", "scaled biased hidden capped"),
    order("soft cap before the scale", "softcap scale", "cap.*before the scale", "softcap", "capped scaled biased hidden"),
    order("soft cap after the bias", "softcap bias", "cap.*after the bias", "softcap bias", "scaled biased capped hidden"),
    order("bias before the scale", "bias scale", "bias.*before the scale", "bias", "biased scaled capped hidden"),
    defect("bias ignored", "bias", "bias ignored", "bias", biased=add(0.0)),
    defect("bias subtracted", "bias", "bias.*subtracted", "bias", biased=add(-1.0)),
    defect("sinks ignored", "sinks", "sinks (left out|ignored)", "sinks", softmax=softmax(sink=False)),
    defect("one more in the denominator", "softmax sinks", "1 added|plus one|zero key", "", "sinks", softmax=softmax(one=1.0)),
    defect("softmax over queries", "softmax", "softmax over the quer", "", "sinks", softmax=softmax(axis=-2)),
    defect("softmax over heads", "softmax", "softmax over the heads", "", "sinks", softmax=softmax(axis=1)),
    defect("softmax missing", "softmax", "no softmax", "", f"{MASKED} sinks", softmax=lambda p, s: s),
    defect("sigmoid", "softmax", "sigmoid", "", "sinks", softmax=lambda p, s: torch.sigmoid(s)),
)  # fmt: skip


def dropped(p: Problem) -> dict:  # type: ignore[type-arg]
    """Inverted dropout of the weights."""
    rng = p.rng("dropout")
    rate = float(rng.choice([0.1, 0.2, 0.5]))
    return {"weights": lambda p, w, allowed: w * torch.tensor(rng.random(w.shape) >= rate) / (1 - rate)}


DROPOUT = (computed("dropout left on", "dropout", "dropout", dropped),)

USUAL = SCALES + MASKS + SCORES + DROPOUT
