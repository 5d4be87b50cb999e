"""How often `polyattn.parity.diagnose` names the right cause: defects are planted and diagnosed.

    python benchmarks/diagnosis.py                      a table per defect, then the figures and their targets
    python benchmarks/diagnosis.py --seeds 5            more random problems per defect
    python benchmarks/diagnosis.py --first 1000         other random problems, other pairs
    python benchmarks/diagnosis.py --dtype bfloat16     one dtype
    python benchmarks/diagnosis.py --pairs 20           fewer pairs

Attention is written here once more, plainly, in PyTorch, as a chain of stages; a defect replaces some of them. Inputs
and outputs are float32, or bfloat16 with float32 inside. A defect counts wherever its effect exceeds 4 eta; a pair
wherever each of the two moves the result of the other by more than 4 eta. Right is what `diagnose` names first;
what cannot be told apart from it on the inputs is counted separately.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from polyattn import attention, masks, mods
from polyattn.parity import ACCEPTANCE, UNIT_ROUNDOFF, Diagnosis, diagnose
from polyattn.rotary import Rotary

Stages = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGETS = {"singles": 95.0, "pairs": 85.0}

# problems


@dataclass(frozen=True)
class Problem:
    """What was asked for. Arrays are float32 and hold numbers of the dtype."""

    dtype: str
    seed: int
    q: Tensor  # (B, Hq, L, D)
    k: Tensor  # (B, Hkv, S, D)
    v: Tensor  # (B, Hkv, S, E)
    mask: Tensor | None = None  # bool, True = may attend
    is_causal: bool = False
    window: tuple[int, int] | None = None  # neighbours on each side
    offset: int | None = None  # position of query row 0
    scale: float | None = None
    cap: float | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    rotary: Rotary | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, L, S)"""
        return (*self.q.shape[:3], self.k.shape[2])

    @property
    def start(self) -> int:
        return self.offset or 0

    @property
    def stated_scale(self) -> float:
        return float(self.q.shape[3] ** -0.5) if self.scale is None else self.scale

    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v in the dtype."""
        return tuple(x.to(DTYPES[self.dtype]) for x in (self.q, self.k, self.v))

    def context(self) -> dict[str, Any]:
        """The rest of it, as `polyattn.attention` and `diagnose` take it."""
        parts: list[Any] = []
        if self.window is not None:
            left, right = self.window
            parts.append(masks.window(left, None if self.is_causal else right))
        if self.mask is not None:
            parts.append(self.mask if not parts else masks.from_array(self.mask))
        given = {
            "mask": None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1],
            "is_causal": self.is_causal,
            "query_offset": self.offset,
            "scale": self.scale,
            "score_mod": None if self.cap is None else mods.softcap(self.cap),
            "bias": self.bias,
            "sinks": self.sinks,
            "rotary": self.rotary,
        }
        return {name: x for name, x in given.items() if x is not None and x is not False}


EXTRAS = "causal mask padding left window softcap bias sinks gqa end first rotary scale wide"
CONFLICTS = ("end first square", "mask padding left empty", "window sliding", "equal wide", "heads gqa")


def conflict(features: set[str]) -> bool:
    return any(len(features & set(group.split())) > 1 for group in CONFLICTS)


def draw(needs: set[str], without: set[str], seed: int, dtype: str) -> Problem:
    """A random problem with the features that are needed and, but for seed 0, up to two others."""
    rng = np.random.default_rng([seed, *sorted(zlib.crc32(name.encode()) for name in needs)])
    features = set(needs)
    for extra in rng.permutation(EXTRAS.split())[: rng.integers(0, 3) if seed else 0]:
        if extra not in without and not conflict(features | {str(extra)}):
            features.add(str(extra))

    def normal(*shape: int, amplitude: float = 1.0) -> Tensor:
        x = torch.tensor(rng.normal(size=shape) * amplitude, dtype=torch.float32)
        return x.to(DTYPES[dtype]).float()

    has = features.__contains__
    heads = int(rng.choice([4, 6, 8]))
    kv_heads = heads // 2 if has("gqa") else heads
    rows = keys = int(rng.integers(24, 49))
    if has("end") or has("first"):
        keys = rows + int(rng.choice([-9, 7, 16]))
    width = 16
    amplitude = float(rng.choice([1.0, 1.5, 2.0]))
    q, k = normal(2, heads, rows, width, amplitude=amplitude), normal(2, kv_heads, keys, width)
    v = normal(2, kv_heads, keys, 12 if has("wide") else width)
    given: dict[str, Any] = {"is_causal": has("causal")}
    if has("mask") or has("empty"):
        mask = torch.tensor(rng.random((2, 1, rows, keys)) < 0.7)
        if has("empty"):
            mask[0, 0, rows // 2] = False
        given["mask"] = mask
    if has("padding") or has("left"):
        lengths = torch.tensor([keys - keys // 3, keys - 3])[:, None, None, None]
        column = torch.arange(keys)
        given["mask"] = column < lengths if has("padding") else column.flip(0) < lengths
    if has("window"):
        left = int(rng.integers(3, 7))
        given["window"] = (left, left - 2)
    if has("sliding"):
        given["window"] = (int(rng.integers(3, 7)), 0)
    if has("softcap"):
        given["cap"] = float(rng.choice([1.0, 2.0, 3.0]))
    if has("bias"):
        given["bias"] = normal(1, heads, rows, keys)
    if has("sinks"):
        given["sinks"] = normal(heads) + 1.0
    if has("rotary"):
        given["rotary"] = Rotary(interleaved=bool(rng.integers(0, 2)))
    if has("scale"):
        given["scale"] = float(rng.choice([0.1, 0.4, 0.6]))
    if has("end") or has("first"):
        given["offset"] = keys - rows if has("end") else 0
    return Problem(dtype, seed, q, k, v, **given)


# attention, stage by stage


def turn(x: Tensor, start: int, rotary: Rotary, interleaved: bool) -> Tensor:
    """Rotary embedding of rows at positions start, start + 1, ..."""
    half = x.shape[-1] // 2
    angle = (torch.arange(x.shape[2]).double() + start)[:, None] * rotary.base ** (-torch.arange(half) / half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    pair = (a * cos - b * sin, a * sin + b * cos)
    return torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)


def rotate(
    queries: int = 0, keys: bool = True, other: bool = False, from_0: bool = False
) -> Callable[..., Any]:
    """Rotary embedding of queries and keys, with the mistakes that are made there."""

    def run(p: Problem, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if p.rotary is None:
            return q, k
        paired = p.rotary.interleaved is not other
        turned = turn(q, (0 if from_0 else p.start) + queries, p.rotary, paired)
        return turned, turn(k, 0, p.rotary, paired) if keys else k

    return run


def unasked(interleaved: bool) -> Callable[..., Any]:
    rotary = Rotary()
    return lambda p, q, k: (turn(q, p.start, rotary, interleaved), turn(k, 0, rotary, interleaved))


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


def unguarded(p: Problem, s: Tensor) -> Tensor:
    """The textbook's softmax: a row of -inf is 0 / 0."""
    if p.sinks is None:
        return torch.softmax(s, -1)
    column = p.sinks[:, None, None].to(s.dtype).expand(*s.shape[:3], 1)
    return torch.softmax(torch.cat((s, column), -1), -1)[..., :-1]


def hide(fill: float) -> Callable[..., Tensor]:
    return lambda p, s, allowed: s.masked_fill(~allowed, fill)


def add(times: float) -> Callable[..., Tensor]:
    return lambda p, s, allowed: s if p.bias is None else s + times * p.bias


def drop(p: Problem, w: Tensor, allowed: Tensor) -> Tensor:
    """Inverted dropout of the weights."""
    rng = np.random.default_rng(p.seed)
    rate = float(rng.choice([0.1, 0.2, 0.5]))
    return w * torch.tensor(rng.random(w.shape) >= rate) / (1 - rate)


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
    "inputs": lambda x: x,
    "rotate": rotate(),
    "operands": lambda x: x,
    "kv_heads": lambda x, heads: x.repeat_interleave(heads // x.shape[1], 1),
    "product": lambda s: s,
    "added": lambda p, s: s,  # what is added to the scores besides
    "finished": lambda s: s,  # before the mask
    "scale": lambda p: p.stated_scale,
    "scaled": lambda p, s, allowed: s,  # by the stage "scale"
    "capped": lambda p, s, allowed: s if p.cap is None else p.cap * torch.tanh(s / p.cap),
    "biased": add(1.0),
    "hidden": hide(-math.inf),
    "order": ("scaled", "capped", "biased", "hidden"),
    "mask": lambda p: p.mask,
    "causal": lambda p, i, j: j <= i,
    "window": lambda p, i, j, left, right: (i - left <= j) & (j <= i + right),
    "allowed": lambda allowed: allowed,
    "softmax": softmax(),
    "weights": lambda p, w, allowed: w,
    "rounded": lambda w: w,
    "keys": slice(None),
    "merge": lambda out: out,  # heads laid side by side again
    "output": lambda out: out,
}


#: step -> what `polyattn.trace` calls its result
NAMES = {"scaled": "scores", "capped": "after softcap", "biased": "biased", "hidden": "masked"}


class Result(NamedTuple):
    out: Tensor
    condition: Tensor  # rounding may move out by eta * u * condition


def visible(p: Problem, stages: Stages) -> Tensor:
    """Who may attend to whom, (1 or B, 1 or H, L, S)."""
    i, j = p.start + torch.arange(p.shape[2])[:, None], torch.arange(p.shape[3])
    allowed = torch.ones(1, 1, *p.shape[2:], dtype=torch.bool)
    if p.is_causal:
        allowed = allowed & stages["causal"](p, i, j)
    if p.window is not None:
        left, right = p.window
        allowed = allowed & stages["window"](p, i, j, left, p.shape[3] if p.is_causal else right)
    if p.mask is not None:
        allowed = allowed & stages["mask"](p)
    return stages["allowed"](allowed)


def attend(
    p: Problem,
    changed: Stages | None = None,
    dtype: torch.dtype = torch.float32,
    record: dict[str, Tensor] | None = None,
) -> Result:
    """Attention in a precision, some of its stages changed; `record` receives the values by the names of a trace."""
    record = {} if record is None else record
    f = PLAIN | (changed or {})
    q, k, v = f["arguments"](*(f["split"](x.to(dtype)) for x in (p.q, p.k, p.v)))
    q, k, v = (f["inputs"](x) for x in (q, k, v))
    q, k = f["rotate"](p, q, k)
    q, k, v = (f["operands"](x) for x in (q, k, v))
    k, v = (f["kv_heads"](x, q.shape[1]) for x in (k, v))
    s, scale = f["product"](q @ k.mT), f["scale"](p)
    size = abs(scale) * (q.abs() @ k.abs().mT)
    over_tokens = s.shape[2:] == p.shape[2:]
    allowed = visible(p, f) if over_tokens else torch.ones(s.shape, dtype=torch.bool)
    for step in f["order"]:
        before = s
        s = f["finished"](f["added"](p, s)) if step == "hidden" else s
        s = s * scale if step == "scaled" else f[step](p, s, allowed)
        record[NAMES[step]] = s
        if step == "capped" and p.cap is not None:
            bent = torch.tanh(before / p.cap).abs()
            size = size * (1 - bent**2) + 2 * p.cap * bent
        if step == "biased" and p.bias is not None:
            size = size + p.bias.abs() + s.abs()
    s, size, v, allowed = (
        s[..., f["keys"]],
        size[..., f["keys"]],
        v[:, :, f["keys"]],
        allowed[..., f["keys"]],
    )
    w = record["weights"] = f["rounded"](f["weights"](p, f["softmax"](p, s), allowed))
    shown = torch.where(torch.isfinite(size), size, 0.0)
    mass = w.abs()
    spread = mass * (1 + shown + (mass * shown).sum(-1, keepdim=True))
    return Result(f["output"](f["merge"](w @ v)), f["merge"](spread @ v.abs()))


def eta(p: Problem, seen: Tensor, expected: Result) -> float:
    """The largest error over what rounding explains."""
    error = (seen.double() - expected.out).abs()
    error = torch.where(seen.isnan() & expected.out.isnan(), 0.0, error)
    ratio = torch.where(error == 0, 0.0, error / (UNIT_ROUNDOFF[p.dtype] * expected.condition))
    return float(ratio.nan_to_num(math.inf, math.inf).max())


# what is planted


@dataclass(frozen=True)
class Defect:
    """Stages that are changed, the (field, choice) by which that should be named, and where it shows."""

    name: str
    planted: tuple[str, str]
    needs: str
    stages: Stages
    without: str = ""


MASKED = "causal mask padding left window sliding empty"


def scale(
    name: str, choice: str, f: Callable[[Problem], float], needs: str = "", without: str = ""
) -> Defect:
    return Defect(name, ("scale", choice), needs, {"scale": f}, without)


def order(name: str, planted: tuple[str, str], needs: str, steps: str) -> Defect:
    return Defect(name, planted, needs, {"order": tuple(steps.split())})


def everything(p: Problem) -> Tensor:
    return torch.ones(p.shape, dtype=torch.bool)


DEFECTS: tuple[Defect, ...] = (
    scale("scores not divided", "1", lambda p: 1.0),
    scale("model width in the scale", "1/sqrt(embed_dim)", lambda p: (p.q.shape[1] * p.q.shape[3]) ** -0.5),
    scale("default scale, another was asked for", "1/sqrt(D)", lambda p: p.q.shape[3] ** -0.5, "scale"),
    scale("scale applied twice", "twice", lambda p: p.stated_scale**2),
    scale("own scale applied twice", "twice", lambda p: p.stated_scale**2, "scale"),
    scale("no square root", "1/D", lambda p: 1 / p.q.shape[3]),
    scale("multiplied by sqrt(D)", "sqrt(D)", lambda p: p.q.shape[3] ** 0.5),
    scale("number of keys in the scale", "1/sqrt(S)", lambda p: p.k.shape[2] ** -0.5),
    scale("width of the kv heads in the scale", "1/sqrt(kv_heads D)", lambda p: (p.k.shape[1] * p.q.shape[3]) ** -0.5, "gqa"),
    Defect("mask inverted", ("polarity", "ignore"), "mask", {"mask": lambda p: ~p.mask}),
    Defect("padding mask inverted", ("polarity", "ignore"), "padding", {"mask": lambda p: ~p.mask}),
    Defect("causal mask inverted", ("polarity", "all ignored"), "causal", {"allowed": lambda allowed: ~allowed}),
    Defect("window inverted", ("polarity", "all ignored"), "window", {"allowed": lambda allowed: ~allowed}),
    Defect("mask ignored", ("mask", "dropped"), "mask", {"mask": everything}),
    Defect("padding ignored", ("mask", "dropped"), "padding", {"mask": everything}),
    Defect("float mask added", ("mask", "added as 0/1"), "mask", {"mask": everything, "added": lambda p, s: s + p.mask}),
    Defect("causal float mask added", ("mask", "all added as 0/1"), "causal", {"allowed": torch.ones_like, "added": lambda p, s: s + visible(p, PLAIN)}),
    Defect("mask after the softmax", ("mask", "after the softmax"), "mask", {"hidden": hide(0.0), "order": ("scaled", "capped", "biased"), "weights": lambda p, w, allowed: w * allowed}),
    Defect("causal mask after the softmax", ("mask", "after the softmax"), "causal", {"hidden": hide(0.0), "order": ("scaled", "capped", "biased"), "weights": lambda p, w, allowed: w * allowed}),
    Defect("padding on the query axis", ("mask", "hides queries"), "padding square", {"mask": lambda p: p.mask.mT}),
    Defect("hidden filled with 0", ("hidden", "0"), "mask", {"hidden": hide(0.0)}),
    Defect("hidden filled with 1e-10", ("hidden", "0"), "causal", {"hidden": hide(1e-10)}),
    Defect("causality ignored", ("causal", "dropped"), "causal", {"causal": lambda p, i, j: j <= i + 10**6}),
    Defect("causal from the first row", ("causal", "top-left"), "causal end", {"causal": lambda p, i, j: j <= i - p.start}),
    Defect("causal from the last row", ("causal", "bottom-right"), "causal first", {"causal": lambda p, i, j: j <= i - p.start + p.shape[3] - p.shape[2]}),
    Defect("diagonal hidden", ("causal", "diagonal hidden"), "causal", {"causal": lambda p, i, j: j < i}),
    Defect("one token ahead", ("causal", "one ahead"), "causal", {"causal": lambda p, i, j: j <= i + 1}),
    Defect("causal mask transposed", ("causal", "transposed"), "causal", {"causal": lambda p, i, j: j >= i}),
    Defect("window ignored", ("window", "dropped"), "window", {"window": lambda p, i, j, left, right: j < 10**6}),
    Defect("causal window ignored", ("window", "dropped"), "window causal", {"window": lambda p, i, j, left, right: j < 10**6}),
    Defect("window one key more", ("window", "one key more"), "window", {"window": lambda p, i, j, left, right: (i - left - 1 <= j) & (j <= i + right + 1)}),
    Defect("causal window one key more", ("window", "one key more"), "window causal", {"window": lambda p, i, j, left, right: i - left - 1 <= j}),
    Defect("window one key less", ("window", "one key less"), "window", {"window": lambda p, i, j, left, right: (i - left < j) & (j < i + right)}),
    Defect("causal window one key less", ("window", "one key less"), "window causal", {"window": lambda p, i, j, left, right: i - left < j}),
    Defect("sliding window on both sides", ("window", "symmetric"), "sliding", {"window": lambda p, i, j, left, right: (i - j).abs() <= left}, "causal"),
    Defect("window as wide on both sides", ("window", "symmetric"), "window", {"window": lambda p, i, j, left, right: (i - j).abs() <= left}, "causal"),
    Defect("window without the offset", ("window", "from the first row"), "window end", {"window": lambda p, i, j, left, right: PLAIN["window"](p, i - p.start, j, left, right)}),
    Defect("soft cap ignored", ("softcap", "dropped"), "softcap", {"capped": lambda p, s, allowed: s}),
    Defect("soft cap x / (1 + |x| / cap)", ("softcap", "rational"), "softcap", {"capped": lambda p, s, allowed: s / (1 + s.abs() / p.cap)}),
    Defect("soft cap without its factor", ("softcap", "tanh alone"), "softcap", {"capped": lambda p, s, allowed: torch.tanh(s / p.cap)}),
    order("soft cap after the mask", ("softcap", "after the mask"), "softcap mask", "scaled biased hidden capped"),
    order("soft cap after the causal mask", ("softcap", "after the mask"), "softcap causal", "scaled biased hidden capped"),
    order("soft cap before the scale", ("softcap", "before the scale"), "softcap", "capped scaled biased hidden"),
    order("soft cap after the bias", ("softcap", "after the bias"), "softcap bias", "scaled biased capped hidden"),
    order("bias before the scale", ("bias", "before the scale"), "bias", "biased scaled capped hidden"),
    Defect("bias ignored", ("bias", "dropped"), "bias", {"biased": add(0.0)}),
    Defect("bias subtracted", ("bias", "subtracted"), "bias", {"biased": add(-1.0)}),
    Defect("sinks ignored", ("sinks", "dropped"), "sinks", {"softmax": softmax(sink=False)}),
    Defect("one more in the denominator", ("softmax", "plus one"), "", {"softmax": softmax(one=1.0)}, "sinks"),
    Defect("kv heads tiled", ("heads", "tiled"), "gqa", {"kv_heads": lambda x, heads: x.repeat(1, heads // x.shape[1], 1, 1)}),
    Defect("first kv head for all", ("heads", "first only"), "gqa", {"kv_heads": lambda x, heads: x[:, :1].expand(-1, heads, -1, -1)}),
    Defect("kv heads reversed", ("heads", "reversed"), "gqa", {"kv_heads": lambda x, heads: x.flip(1).repeat_interleave(heads // x.shape[1], 1)}),
    Defect("heads split without transpose", ("layout", "split without transpose"), "", {"split": lambda x: x.transpose(1, 2).reshape(x.shape)}),
    Defect("heads interleaved", ("layout", "heads interleaved"), "", {"split": lambda x: x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)}),
    Defect("attention over heads", ("layout", "attends over heads"), "square heads", {"split": lambda x: x.transpose(1, 2), "merge": lambda out: out.transpose(1, 2)}, f"{MASKED} bias sinks gqa rotary"),
    Defect("heads merged without transpose", ("merge", "merged without transpose"), "", {"merge": lambda out: out.reshape(out.shape[0], out.shape[2], out.shape[1], -1).transpose(1, 2)}),
    Defect("softmax over queries", ("softmax", "queries"), "", {"softmax": softmax(axis=-2)}, "sinks"),
    Defect("softmax over heads", ("softmax", "heads"), "", {"softmax": softmax(axis=1)}, "sinks"),
    Defect("softmax missing", ("softmax", "missing"), "", {"softmax": lambda p, s: s}, f"{MASKED} sinks"),
    Defect("base 2", ("softmax", "base 2"), "", {"softmax": softmax(base=2.0)}),
    Defect("sigmoid", ("softmax", "sigmoid"), "", {"softmax": lambda p, s: torch.sigmoid(s)}, "sinks"),
    Defect("finite mask constant", ("empty_rows", "mean of all values"), "empty", {"hidden": hide(-1e30)}),
    Defect("finite mask constant, left padding", ("empty_rows", "mean of all values"), "left causal", {"hidden": hide(-1e9)}),
    Defect("empty rows unmasked", ("empty_rows", "as if unmasked"), "empty", {"allowed": lambda allowed: allowed | ~allowed.any(-1, keepdim=True)}),
    Defect("empty rows NaN", ("empty_rows", "NaN"), "empty", {"softmax": unguarded}),
    Defect("empty rows NaN, left padding", ("empty_rows", "NaN"), "left causal", {"softmax": unguarded}),
    Defect("rotary missing", ("rotary", "dropped"), "rotary", {"rotate": lambda p, q, k: (q, k)}),
    Defect("rotary pairing", ("rotary", "other pairing"), "rotary", {"rotate": rotate(other=True)}),
    Defect("rotary on the queries alone", ("rotary", "queries alone"), "rotary", {"rotate": rotate(keys=False)}),
    Defect("rotary positions one late", ("rotary", "queries one late"), "rotary", {"rotate": rotate(queries=1)}),
    Defect("rotary without the offset", ("rotary", "queries from 0"), "rotary end", {"rotate": rotate(from_0=True)}),
    Defect("rotary unasked", ("rotary", "applied"), "", {"rotate": unasked(False)}, "rotary"),
    Defect("rotary unasked, interleaved", ("rotary", "applied interleaved"), "", {"rotate": unasked(True)}, "rotary"),
    Defect("last key dropped", ("keys", "last dropped"), "", {"keys": slice(None, -1)}),
    Defect("first key dropped", ("keys", "first dropped"), "", {"keys": slice(1, None)}),
    Defect("query and key swapped", ("operands", "query and key swapped"), "square heads", {"arguments": lambda q, k, v: (k, q, v)}, "gqa"),
    Defect("key and value swapped", ("operands", "key and value swapped"), "equal", {"arguments": lambda q, k, v: (q, v, k)}),
    Defect("dropout left on", ("dropout", "on"), "", {"weights": drop}),
    Defect("inputs in bfloat16", ("precision", "bfloat16 inputs"), "", {"inputs": to(torch.bfloat16)}),
    Defect("inputs in TF32", ("precision", "tf32 inputs"), "", {"inputs": tf32}),
    Defect("matrix products in TF32", ("precision", "tf32 operands"), "", {"operands": tf32, "rounded": tf32}),
    Defect("matrix products in bfloat16", ("precision", "bfloat16 operands"), "", {"operands": to(torch.bfloat16), "rounded": to(torch.bfloat16)}),
    Defect("products of q and k in bfloat16", ("precision", "bfloat16 product"), "", {"product": to(torch.bfloat16)}),
    Defect("products of q and k in float16", ("precision", "float16 product"), "", {"product": to(torch.float16)}),
    Defect("scores in bfloat16", ("precision", "bfloat16 scores"), "", {"finished": to(torch.bfloat16)}),
    Defect("weights in bfloat16", ("precision", "bfloat16 weights"), "", {"rounded": to(torch.bfloat16)}),
    Defect("weights in float16", ("precision", "float16 weights"), "", {"rounded": to(torch.float16)}),
    Defect("everything in bfloat16", ("precision", "bfloat16 output"), "", {"inputs": to(torch.bfloat16), "product": to(torch.bfloat16), "rounded": to(torch.bfloat16), "output": to(torch.bfloat16)}),
)  # fmt: skip


def compatible(a: Defect, b: Defect) -> bool:
    """Whether both can be in one program, on one problem."""
    needs = set(a.needs.split()) | set(b.needs.split())
    return not (
        a.stages.keys() & b.stages.keys()
        or a.planted[0] == b.planted[0]
        or needs & set(f"{a.without} {b.without}".split())
        or conflict(needs)
    )


# outputs that are right


def sdpa(p: Problem) -> Tensor | None:
    """PyTorch, where it computes the same: no soft cap, no sinks."""
    if p.cap is not None or p.sinks is not None:
        return None
    allowed = visible(p, PLAIN).expand(2, p.shape[1], -1, -1)
    bias = torch.zeros(p.shape) if p.bias is None else p.bias.expand(p.shape)
    q, k = (x.to(DTYPES[p.dtype]) for x in PLAIN["rotate"](p, p.q, p.k))
    v = p.v.to(DTYPES[p.dtype])
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias.masked_fill(~allowed, -math.inf).to(q.dtype), scale=p.scale, enable_gqa=True
    )


def jax_nn(p: Problem) -> Any:
    """JAX, where it computes the same: values as wide as keys too, and no row that sees nothing."""
    allowed = visible(p, PLAIN)
    if p.cap is not None or p.sinks is not None or p.v.shape[3] != p.q.shape[3] or not allowed.any(-1).all():
        return None

    def give(x: Tensor) -> Any:
        return jnp.asarray(x.numpy()).astype(p.dtype).swapaxes(1, 2)

    q, k = PLAIN["rotate"](p, p.q, p.k)
    return jax.nn.dot_product_attention(
        give(q),
        give(k),
        give(p.v),
        bias=None if p.bias is None else jnp.asarray(p.bias.numpy()).astype(p.dtype),
        mask=jnp.asarray(allowed.expand(p.shape).numpy()),
        scale=p.scale,
    ).swapaxes(1, 2)


def polyattn(p: Problem) -> Tensor:
    q, k, v = p.arrays()
    context = p.context()
    rotary = context.pop("rotary", None)
    if rotary is not None:
        q = rotary(q, p.start + torch.arange(p.shape[2]))
        k = rotary(k, torch.arange(p.shape[3]))
    return attention(q, k, v, **context)


CORRECT: dict[str, Callable[[Problem], Any]] = {
    "plain": lambda p: attend(p).out,
    "torch SDPA": sdpa,
    "jax.nn": jax_nn,
    "polyattn": polyattn,
}


# outputs that nobody can explain


def noise(size: float) -> Callable[[Problem, np.random.Generator], Tensor]:
    def run(p: Problem, rng: np.random.Generator) -> Tensor:
        out = attend(p).out
        return out * (1 + size * torch.tensor(rng.normal(size=out.shape), dtype=out.dtype))

    return run


def with_weights(change: Callable[[Tensor], Tensor]) -> Callable[[Problem, np.random.Generator], Tensor]:
    return lambda p, rng: attend(p, {"weights": lambda p, w, allowed: change(w)}).out


def one_weight(w: Tensor) -> Tensor:
    w = w.clone()
    w.view(-1)[w[1, 1].argmax() + w[0].numel() + w[0, 0].numel()] *= 0.7
    return w


def swapped(x: Tensor, axis: int, i: int, j: int, item: int) -> Tensor:
    """x with two slices of a batch item exchanged."""
    x = x.clone()
    one = x[item].transpose(0, axis)
    one[[i, j]] = one[[j, i]]
    return x


def shifted_key(p: Problem, rng: np.random.Generator) -> Tensor:
    step = torch.tensor(rng.normal(size=(p.q.shape[3],)), dtype=torch.float32)
    k = p.k.clone()
    k[1, 0, 5] += step
    return attend(Problem(**{**vars(p), "k": k})).out


def otherwise(**stages: Any) -> Callable[[Problem, np.random.Generator], Tensor]:
    return lambda p, rng: attend(p, stages).out


def taylor(p: Problem, s: Tensor) -> Tensor:
    w = torch.where(s.isfinite(), 1 + s + s**2 / 2, 0.0)
    return w / w.sum(-1, keepdim=True).clamp(min=0.5)


def other_base(p: Problem, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    rotary = Rotary(base=500000.0)
    paired = p.rotary is not None and p.rotary.interleaved
    return turn(q, p.start, rotary, paired), turn(k, 0, rotary, paired)


PERTURBATIONS: dict[str, Callable[[Problem, np.random.Generator], Tensor]] = {
    "noise 1e-1": noise(1e-1),
    "noise 1e-2": noise(1e-2),
    "noise 1e-3": noise(1e-3),
    "noise 1e-4": noise(1e-4),
    "all noise": lambda p, rng: torch.tensor(rng.normal(size=attend(p).out.shape), dtype=torch.float32),
    "scaled by 1.001": lambda p, rng: attend(p).out * 1.001,
    "scaled by 0.9": lambda p, rng: attend(p).out * 0.9,
    "one weight changed": with_weights(one_weight),
    "weights to the power 1.1": with_weights(lambda w: w**1.1),
    "1e-2 in the denominator": with_weights(lambda w: w / 1.01),
    "two rows swapped": lambda p, rng: swapped(attend(p).out, 1, 9, 17, 0),
    "two heads swapped in an item": lambda p, rng: swapped(attend(p).out, 0, 0, 3, 1),
    "batch reversed": lambda p, rng: attend(p).out.flip(0),
    "a value added to one key": shifted_key,
    "scale 1/sqrt(D + 1)": otherwise(scale=lambda p: p.stated_scale * (16 / 17) ** 0.5),
    "scores rounded to 0.1": otherwise(product=lambda s: (10 * s).round() / 10),
    "1 + s + s^2 / 2 for exp": otherwise(softmax=taylor),
    "a linear bias that nobody asked for": otherwise(
        added=lambda p, s: s - 0.1 * (torch.arange(s.shape[2])[:, None] - torch.arange(s.shape[3])).abs()
    ),
    "every fourth row sees one token ahead": otherwise(causal=lambda p, i, j: j <= i + (i % 4 == 3)),
    "window off by two": otherwise(
        window=lambda p, i, j, left, right: (i - left - 2 <= j) & (j <= i + right)
    ),
    "another soft cap": otherwise(capped=lambda p, s, allowed: 1.2 * p.cap * torch.tanh(s / p.cap / 1.2)),
    "another rotary base": otherwise(rotate=other_base),
    "sinks of other heads": otherwise(
        softmax=lambda p, s: softmax()(Problem(**{**vars(p), "sinks": p.sinks.roll(1)}), s)
    ),
    "kv heads rotated by one": otherwise(
        kv_heads=lambda x, heads: x.roll(1, 1).repeat_interleave(heads // x.shape[1], 1)
    ),
}
# Where those that change a feature show.
SHOWS = {
    "every fourth row sees one token ahead": "causal",
    "window off by two": "window",
    "another soft cap": "softcap",
    "another rotary base": "rotary",
    "sinks of other heads": "sinks",
}


# measuring


@dataclass(frozen=True)
class Trial:
    """One output that was diagnosed."""

    name: str
    dtype: str
    verdict: str  # first, alike, wrong, none, agrees
    seconds: float
    said: str


def judged(name: str, p: Problem, output: Any, planted: dict[str, str], pairs: bool = True) -> Trial:
    """diagnose, and whether it named what was planted."""
    q, k, v = p.arrays()
    began = time.perf_counter()
    d = diagnose(output, q, k, v, pairs=pairs, **p.context())
    seconds = time.perf_counter() - began
    return Trial(name, p.dtype, verdict(d, planted), seconds, f"seed {p.seed}: {d}")


def verdict(d: Diagnosis, planted: dict[str, str]) -> str:
    if d.agrees:
        return "agrees"
    if not d.findings:
        return "none"
    named = [
        x.settings.changes() | ({"dropout": "on"} if "dropout" in x.sentences[-1] else {})
        for x in (d.findings[0], *d.alike)
    ]
    return "first" if planted == named[0] else "alike" if planted in named else "wrong"


def store(x: Tensor, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype])


def singles(dtype: str, seeds: int, first: int = 0) -> Iterator[Trial]:
    """Every defect on random problems where it shows."""
    for defect in DEFECTS:
        for seed in range(first, first + seeds):
            p = draw(set(defect.needs.split()), set(defect.without.split()), seed, dtype)
            out = store(attend(p, defect.stages).out, dtype)
            if eta(p, out, attend(p, dtype=torch.float64)) > ACCEPTANCE:
                yield judged(defect.name, p, out, dict([defect.planted]))


def drawn_pairs(dtype: str, count: int, first: int) -> Iterator[tuple[Defect, Defect, Problem, Tensor]]:
    """Pairs of defects in random order, each of which moves the result of the other, and a problem."""
    rng = np.random.default_rng(first)
    possible = [pair for pair in combinations(DEFECTS, 2) if compatible(*pair)]
    drawn = 0
    for seed, i in enumerate(rng.permutation(len(possible)), first):
        a, b = possible[i]
        p = draw(set(f"{a.needs} {b.needs}".split()), set(f"{a.without} {b.without}".split()), seed, dtype)
        out = store(attend(p, a.stages | b.stages).out, dtype)
        alone: tuple[Stages, ...] = ({}, a.stages, b.stages)
        if min(eta(p, out, attend(p, stages, torch.float64)) for stages in alone) > ACCEPTANCE:
            yield a, b, p, out
            drawn += 1
        if drawn == count:
            return


def pairs(dtype: str, count: int, first: int = 0) -> Iterator[Trial]:
    for a, b, p, out in drawn_pairs(dtype, count, first):
        yield judged(f"{a.name} + {b.name}", p, out, dict([a.planted, b.planted]))


def settings() -> list[tuple[set[str], set[str]]]:
    """What the defects need, once each."""
    found = {(defect.needs, defect.without) for defect in DEFECTS}
    return [(set(needs.split()), set(without.split())) for needs, without in sorted(found)]


def correct(dtype: str, seeds: int, first: int = 0, every: int = 1) -> Iterator[Trial]:
    """Right outputs of four implementations on all problems, or a part: every verdict must be "agrees"."""
    for needs, without in settings()[::every]:
        for seed in range(first, first + seeds):
            p = draw(needs, without, seed, dtype)
            for name, implementation in CORRECT.items():
                if name == "jax.nn" and seed > first:  # compiles for seconds for every shape
                    continue
                out = implementation(p)
                if out is not None:
                    yield judged(name, p, store(out, dtype) if isinstance(out, Tensor) else out, {})


def perturbed(dtype: str, seeds: int, first: int = 0, every: int = 1) -> Iterator[Trial]:
    """Outputs with an unknown error that shows, or a part of them: every verdict must be "none"."""
    for name, perturb in list(PERTURBATIONS.items())[::every]:
        for seed in range(first, first + seeds):
            p = draw(set(SHOWS.get(name, "").split()), set(), seed, dtype)
            out = store(perturb(p, np.random.default_rng(seed)), dtype)
            if eta(p, out, attend(p, dtype=torch.float64)) > ACCEPTANCE:
                yield judged(name, p, out, {})


def row(name: str, trials: list[Trial], absent: str) -> str:
    cells = []
    for dtype in DTYPES:
        mine = [t.verdict for t in trials if t.dtype == dtype]
        right, alike = mine.count("first"), mine.count("alike")
        cells.append(f"{right}{f' + {alike}' if alike else ''} of {len(mine)}" if mine else absent)
    seconds = statistics.median(t.seconds for t in trials) if trials else math.nan
    return f"{name:<68} {cells[0]:>13}  {cells[1]:>13}  {seconds:8.2f} s"


def table(title: str, names: list[str], trials: list[Trial], absent: str) -> None:
    print(f"\n{title:<68} {'float32':>13}  {'bfloat16':>13}  {'median':>10}")
    for name in names:
        print(row(name, [t for t in trials if t.name == name], absent))


def share(what: str, trials: list[Trial], target: float) -> bool:
    """Prints how many were named, and whether that reaches the target."""
    first = sum(t.verdict == "first" for t in trials)
    alike = sum(t.verdict == "alike" for t in trials)
    right = 100 * (first + alike) / max(len(trials), 1)
    print(
        f"{what}: {first} named first, {alike} alike on these inputs, of {len(trials)}: {right:.1f} % "
        f"(target {target:g} %: {'reached' if right >= target else 'missed'}); "
        f"{statistics.median(t.seconds for t in trials):.2f} s per diagnosis, at most {max(t.seconds for t in trials):.2f} s"
    )
    return right >= target


def nothing(what: str, trials: list[Trial], expected: str) -> bool:
    accused = [t for t in trials if t.verdict != expected]
    print(
        f"{what}: {len(accused)} accused of {len(trials)} (target 0: {'missed' if accused else 'reached'}); "
        f"{statistics.median(t.seconds for t in trials):.2f} s per diagnosis"
    )
    return not accused


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="random problems per defect")
    parser.add_argument("--pairs", type=int, default=80, help="pairs of defects per dtype")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="float32, bfloat16; both by default")
    asked = parser.parse_args(words)
    dtypes = asked.dtype or list(DTYPES)
    torch.set_num_threads(1)
    one = [t for dtype in dtypes for t in singles(dtype, asked.seeds, asked.first)]
    table("defect", [defect.name for defect in DEFECTS], one, "does not show")
    two = [t for dtype in dtypes for t in pairs(dtype, asked.pairs, asked.first)]
    table("pair", list(dict.fromkeys(t.name for t in two)), two, "not drawn")
    right = [t for dtype in dtypes for t in correct(dtype, asked.seeds, asked.first)]
    unknown = [t for dtype in dtypes for t in perturbed(dtype, asked.seeds, asked.first)]
    expected = [(one, "first alike"), (two, "first alike"), (right, "agrees"), (unknown, "none")]
    print("\nwhat was not named, or accused:")
    for trials, fine in expected:
        for t in trials:
            if t.verdict not in fine:
                print(f"- {t.name}, {t.dtype}, {t.said}")
    print()
    for dtype in dtypes:
        share(f"{len(DEFECTS)} defects, {dtype}", [t for t in one if t.dtype == dtype], TARGETS["singles"])
        share(f"pairs, {dtype}", [t for t in two if t.dtype == dtype], TARGETS["pairs"])
    done = [
        share("all singles", one, TARGETS["singles"]),
        share("all pairs", two, TARGETS["pairs"]),
        nothing("right outputs", right, "agrees"),
        nothing("unknown perturbations", unknown, "none"),
    ]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
