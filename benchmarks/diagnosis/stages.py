"""Attention once more, plainly, in PyTorch: a chain of stages, of which a defect replaces some."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyattn.truth import Spec, eta, truth
from polyattn.truth.measure import unit_of

from .problems import DTYPES, Problem
from .rotations import rotate

Stages = dict[str, Any]


def softmax(
    axis: int = -1, base: float = math.e, sink: bool = True, one: float = 0.0
) -> Callable[..., Tensor]:
    """exp(s) / (sum exp(s) + exp(sink)); where nothing is seen, 0."""

    def run(p: Problem, s: Tensor) -> Tensor:
        top = s.amax(axis, keepdim=True)
        sinks = p.sinks[:, None, None].to(s.dtype) if sink and p.sinks is not None else None
        top = top if sinks is None else torch.maximum(top, sinks)
        top = torch.where(top.isfinite(), top, 0.0).clamp(min=0.0 if one else -math.inf)
        w = torch.exp((s - top) * math.log(base))
        total = w.sum(axis, keepdim=True)
        total = total + one * torch.exp(-top * math.log(base)) if one else total
        total = total if sinks is None else total + torch.exp((sinks - top) * math.log(base))
        return torch.where(total == 0, 0.0, w / total)

    return run


def hide(fill: float) -> Callable[..., Tensor]:
    return lambda p, s, allowed: s.masked_fill(~allowed, fill)


def add(times: float) -> Callable[..., Tensor]:
    return lambda p, s, allowed: s if p.bias is None else s + times * p.bias


def slopes(times: float = 1.0) -> Callable[..., Tensor]:
    """ALiBi, its slopes times a number."""

    def run(p: Problem, s: Tensor, allowed: Tensor) -> Tensor:
        if p.alibi is None:
            return s
        i, j = p.places
        return s - times * p.alibi.to(s.dtype)[:, None, None] * (i - j).abs()

    return run


def to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype).to(x.dtype)


def tf32(x: Tensor) -> Tensor:
    """Rounded to the 10 bits of a TF32 fraction."""
    bits = x.float().contiguous().view(torch.int32)
    bits = (bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF
    return torch.where(x.isfinite(), bits.view(torch.float32), x.float()).to(x.dtype)


PLAIN: Stages = {
    "split": lambda x: x,  # heads taken out of (B, L, H D)
    "arguments": lambda q, k, v: (q, k, v),
    "packed": lambda p, q, k, v: (q, k, v),  # how they lie in one projection
    "inputs": lambda x: x,
    "normed": lambda q, k, v: (q, k, v),
    "rotate": rotate(),
    "cached": lambda p, k, v: (k, v),  # what the cache gives back
    "operands": lambda x: x,
    "kv_heads": lambda x, heads: x.repeat_interleave(heads // x.shape[1], 1),
    "product": lambda s: s,
    "added": lambda p, s: s,  # what is added to the scores besides
    "finished": lambda s: s,  # before the mask
    "scale": lambda p: p.stated_scale,
    "sharpened": lambda p, s: s,  # by the place of the query
    "capped": lambda p, s, allowed: s if p.cap is None else p.cap * torch.tanh(s / p.cap),
    "leaned": slopes(),
    "biased": add(1.0),
    "hidden": hide(-math.inf),
    "order": ("scaled", "capped", "leaned", "biased", "hidden"),
    "mask": lambda p: p.mask,
    "causal": lambda p, i, j: j <= i,
    "window": lambda p, i, j, left, right: (i - left <= j) & (j <= i + right),
    "allowed": lambda p, allowed: allowed,
    "seen": lambda p, s, v: (s, v),  # keys that are there besides, or are not
    "softmax": softmax(),
    "weights": lambda p, w, allowed: w,
    "rounded": lambda w: w,
    "merge": lambda out: out,  # heads laid side by side again
    "output": lambda p, out: out,
}

#: step -> what `polyattn.trace` calls its result
NAMES = {"scaled": "scores", "capped": "after softcap", "biased": "biased", "hidden": "masked"}


def visible(p: Problem, stages: Stages) -> Tensor:
    """Who may attend to whom, (1 or B, 1 or H, L, S)."""
    i, j = p.places
    allowed = torch.ones(1, 1, *p.shape[2:], dtype=torch.bool)
    if p.is_causal:
        allowed = allowed & stages["causal"](p, i, j)
    if p.window is not None:
        left, right = p.window
        allowed = allowed & stages["window"](p, i, j, left, p.shape[3] if p.is_causal else right)
    if p.mask is not None:
        allowed = allowed & stages["mask"](p)
    return stages["allowed"](p, allowed)


def attend(
    p: Problem,
    changed: Stages | None = None,
    dtype: torch.dtype = torch.float32,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """Attention in a precision, some of its stages changed; `record` receives the values by the names of a trace."""
    record = {} if record is None else record
    f = PLAIN | (changed or {})
    q, k, v = f["arguments"](*(f["split"](x.to(dtype)) for x in (p.q, p.k, p.v)))
    q, k, v = (f["inputs"](x) for x in f["packed"](p, q, k, v))
    q, k, v = f["normed"](q, k, v)
    q, k, *turned = f["rotate"](p, q, k, v)
    k, v = f["cached"](p, k, turned[0] if turned else v)
    q, k, v = (f["operands"](x) for x in (q, k, v))
    k, v = (f["kv_heads"](x, q.shape[1]) for x in (k, v))
    s, scale = f["product"](q @ k.mT), f["scale"](p)
    over_tokens = s.shape[2:] == p.shape[2:]
    allowed = visible(p, f) if over_tokens else torch.ones(s.shape, dtype=torch.bool)
    for step in f["order"]:
        s = f["finished"](f["added"](p, s)) if step == "hidden" else s
        s = f["sharpened"](p, s * scale) if step == "scaled" else f[step](p, s, allowed)
        if step in NAMES:
            record[NAMES[step]] = s
    s, v = f["seen"](p, s, v)
    w = record["weights"] = f["rounded"](f["weights"](p, f["softmax"](p, s), allowed))
    return f["output"](p, f["merge"](w[..., : v.shape[2]] @ v))


def spec_of(p: Problem) -> Spec:
    """The problem as the oracle takes it."""
    q, k = PLAIN["rotate"](p, p.q.double(), p.k.double(), None)
    i, j = p.places

    def plain(x: Tensor | None) -> Any:
        return None if x is None else x.double().numpy()

    return Spec(
        q.numpy(),
        k.numpy(),
        plain(p.v),
        p.allowed.numpy(),
        p.stated_scale,
        p.cap,
        None if p.alibi is None else plain(-p.alibi.double()[:, None, None] * (i - j).abs())[None],
        plain(p.bias),
        plain(p.sinks),
    )


class Oracle:
    """The true output of a problem, and what errors are in units of what rounding explains."""

    def __init__(self, p: Problem) -> None:
        self.p, self.judged = p, truth(spec_of(p))["out"]

    def eta(self, out: Tensor) -> float:
        """The largest error of an output."""
        return eta(out.double().numpy(), self.judged, self.p.dtype)

    def moved(self, stages: Stages, beside: Stages) -> float:
        """By how many units stages, alone and in float64, change what others give."""
        one, other = (attend(self.p, x, torch.float64) for x in (stages, beside))
        apart = torch.where(one.isnan() & other.isnan(), 0.0, (one - other).abs()).numpy()
        with np.errstate(all="ignore"):
            ratio = np.where(apart == 0, 0.0, apart / unit_of(self.judged, self.p.dtype))
        return float(np.nan_to_num(ratio, nan=math.inf, posinf=math.inf).max())


def stored(x: Tensor, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype])
