"""Mistakes of numbers and weights: other scales and caps, norms, normalisers, biases, sinks, what a cache is kept in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..defect import MASKED, Defect, computed, defect
from ..naming import Said, scaled, words
from ..problems import Problem
from ..stages import Stages, add, softmax, tf32, to


def scale(name: str, f: Callable[[Problem], float], needs: str = "") -> Defect:
    return Defect(name, "scale", scaled(f), needs, {"scale": f})


def times(factor: float) -> Callable[[Problem], float]:
    return lambda p: p.stated_scale * factor


SCALES: tuple[Defect, ...] = (
    scale("scale 1/sqrt(72)", lambda p: 72**-0.5),
    scale("scale 1/sqrt(128), of another model", lambda p: 128**-0.5),
    scale("scale 1/sqrt(144)", lambda p: 144**-0.5),
    scale("scale 1/sqrt(D + 1)", lambda p: (p.q.shape[3] + 1) ** -0.5),
    scale("scale 1/sqrt(E)", lambda p: p.v.shape[3] ** -0.5, "wide"),
    scale("scale 1/sqrt(L)", lambda p: p.q.shape[2] ** -0.5),
    scale("scale 1/sqrt(2 D)", lambda p: (2 * p.q.shape[3]) ** -0.5),
    scale("scale 1/sqrt(D / 2)", lambda p: (p.q.shape[3] / 2) ** -0.5),
    scale("scale D^-1/4, of one side alone", lambda p: p.q.shape[3] ** -0.25),
    scale("scale negative", times(-1.0)),
    scale("scale of layer 3, divided by it", times(1 / 3)),
    scale("scale with the attention factor of YaRN", times((0.1 * math.log(40) + 1) ** 2)),
    scale("scores times 1.2", times(1.2)),
    scale("scores times 0.943", times(0.943)),
    scale("temperature 0.7", times(1 / 0.7)),
    scale("scores times log2(e), exp kept", times(1 / math.log(2))),
    scale("own scale and the default", lambda p: p.stated_scale * p.q.shape[3] ** -0.5, "scale"),
    scale("own scale inverted", lambda p: 1 / p.stated_scale, "scale"),
)  # fmt: skip


def cap(at: Callable[[Problem], float]) -> Stages:
    return {"capped": lambda p, s, allowed: at(p) * torch.tanh(s / at(p))}


def capped(name: str, at: Callable[[Problem], float], needs: str = "softcap", without: str = "") -> Defect:
    named = Said("soft ?cap|tanh", lambda p: (at(p), at(p) / (p.cap or 1.0)))
    return Defect(name, "softcap", (named,), needs, cap(at), without)


CAPS: tuple[Defect, ...] = (
    capped("soft cap times 1.2", lambda p: 1.2 * p.cap),  # type: ignore[operator]
    capped("soft cap of 5", lambda p: 5.0),
    capped("soft cap halved", lambda p: p.cap / 2),  # type: ignore[operator]
    capped("soft cap of 2 unasked", lambda p: 2.0, "", "softcap"),
    capped("soft cap of 7.5 unasked", lambda p: 7.5, "", "softcap"),
    defect("soft cap twice", "softcap", "soft ?cap.*twice|soft ?cap", "softcap", capped=lambda p, s, allowed: p.cap * torch.tanh(torch.tanh(s / p.cap))),
)  # fmt: skip

# norms


def rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def length(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp(min=1e-12)


def layer(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def normed(which: str, f: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda q, k, v: tuple(f(x) if n in which else x for n, x in zip("qkv", (q, k, v), strict=True))


NORMED = "norm|root mean square"

NORMS: tuple[Defect, ...] = (
    defect("queries and keys normed by rms", "norm scale", NORMED, normed=normed("qk", rms)),
    defect("queries alone normed by rms", "norm scale", f"quer.*({NORMED})|({NORMED}).*quer", normed=normed("q", rms)),
    defect("keys alone normed by rms", "norm scale", f"key.*({NORMED})|({NORMED}).*key", normed=normed("k", rms)),
    defect("queries and keys of length 1", "norm scale", f"{NORMED}|length|cosine", normed=normed("qk", length)),
    defect("queries and keys normed by layer norm", "norm scale", f"{NORMED}|standard deviation", normed=normed("qk", layer)),
    defect("values normed by rms", "norm", f"value.*({NORMED})", normed=normed("v", rms)),
    defect("values of length 1", "norm", f"value.*({NORMED}|length)", normed=normed("v", length)),
)  # fmt: skip

# normalisers


def sparse(p: Problem, s: Tensor, alpha: float) -> Tensor:
    """Entmax of a row, by bisection of its threshold; alpha 2 is sparsemax."""
    x = torch.where(s.isfinite(), s, -1e9).double() * (alpha - 1)
    high = x.amax(-1, keepdim=True)
    low = high - 1
    for _ in range(60):
        middle = (low + high) / 2
        over = (x - middle).clamp(min=0) ** (1 / (alpha - 1))
        full = over.sum(-1, keepdim=True) >= 1
        low, high = torch.where(full, middle, low), torch.where(full, high, middle)
    w = (x - low).clamp(min=0) ** (1 / (alpha - 1))
    return torch.where(s.isfinite(), w / w.sum(-1, keepdim=True), 0.0).to(s.dtype)


def again(p: Problem, s: Tensor) -> Tensor:
    w = softmax()(p, s)
    return torch.softmax(torch.where(s.isfinite(), w, -torch.inf), -1).nan_to_num(0.0)


def picked(p: Problem, s: Tensor) -> Tensor:
    """Softpick: relu(exp(s) - 1) / sum |exp(s) - 1|, over what is seen."""
    seen = s.isfinite()
    over = torch.where(seen, torch.expm1(s), 0.0)
    return over.clamp(min=0) / over.abs().sum(-1, keepdim=True).clamp(min=1e-6)


NORMALISERS: tuple[Defect, ...] = (
    defect("softmax twice", "softmax", "softmax.*(twice|again|double)|double softmax", "", "sinks", softmax=again),
    defect("softmax twice, of hidden keys too", "softmax", "softmax.*(twice|again|double)|double softmax", "causal", "sinks", softmax=lambda p, s: torch.softmax(softmax()(p, s), -1)),
    defect("softmax over the batch", "softmax", "softmax over the (batch|items)", "", f"{MASKED} sinks", softmax=softmax(axis=0)),
    defect("sigmoid with a bias of -log S", "softmax", "sigmoid", "", "sinks", softmax=lambda p, s: torch.sigmoid(s - math.log(p.shape[3]))),
    defect("sparsemax", "softmax", "sparsemax", "", "sinks", softmax=lambda p, s: sparse(p, s, 2.0)),
    defect("entmax of 1.5", "softmax", "entmax", "", "sinks", softmax=lambda p, s: sparse(p, s, 1.5)),
    defect("softpick", "softmax", "softpick", "", "sinks", softmax=picked),
    defect("softmax plus one under a mask", "softmax sinks", "1 added|plus one|zero key|sink", "causal", "sinks", softmax=softmax(one=1.0)),
)  # fmt: skip

# biases and sinks


def biased(f: Callable[[Problem], Tensor]) -> Stages:
    return {"biased": lambda p, s, allowed: s + f(p).to(s.dtype)}


def sunk(f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda p, s: softmax()(replace(p, sinks=f(p.sinks)), s)


BESIDE: tuple[Defect, ...] = (
    Defect("bias transposed", "bias", words("bias.*transposed"), "bias square", biased(lambda p: p.bias.mT)),
    Defect("bias with its heads in reverse", "bias", words("bias.*head"), "bias", biased(lambda p: p.bias.flip(1))),
    Defect("bias of the first head for all", "bias", words("bias.*head"), "bias", biased(lambda p: p.bias[:, :1])),
    Defect("bias of the next head", "bias", words("bias.*head"), "bias", biased(lambda p: p.bias.roll(1, 1))),
    Defect("bias doubled", "bias", (Said("bias", lambda p: (2,)), Said("bias.*(twice|doubled)")), "bias", {"biased": add(2.0)}),
    Defect("bias one key to the right", "bias", words("bias.*(shift|roll|moved|off by one)"), "bias", biased(lambda p: p.bias.roll(1, -1))),
    defect("bias after the softmax", "bias", "bias.*after the softmax", "bias", biased=add(0.0), weights=lambda p, w, allowed: w + torch.where(allowed, p.bias, 0.0).to(w.dtype)),
    defect("sink of the first head for all", "sinks", "sink", "sinks", softmax=sunk(lambda x: x[:1].expand_as(x))),
    defect("sinks of other heads", "sinks", "sink", "sinks", softmax=sunk(lambda x: x.roll(1))),
    defect("sinks in reverse", "sinks", "sink", "sinks", softmax=sunk(lambda x: x.flip(0))),
    defect("sinks of 0", "sinks softmax", "sink", "sinks", softmax=sunk(torch.zeros_like)),
    defect("sinks negative", "sinks", "sink", "sinks", softmax=sunk(torch.neg)),
    defect("sinks of the first head alone", "sinks", "sink", "sinks", softmax=sunk(lambda x: torch.where(torch.arange(len(x)) == 0, x, -torch.inf))),
    computed("sinks times the scale", "sinks", "sink", lambda p: {"softmax": sunk(lambda x: x * p.stated_scale)}, "sinks"),
)  # fmt: skip

# precision


def whole(x: Tensor, axes: tuple[int, ...], most: int = 127) -> Tensor:
    """Rounded to whole multiples of the largest over `axes`, over `most`."""
    step = x.abs().amax(axes, keepdim=True).clamp(min=1e-30) / most
    return (x / step).round() * step


def kept(f: Callable[[Tensor], Tensor], which: str = "kv") -> Stages:
    return {"cached": lambda p, k, v: tuple(f(x) if n in which else x for n, x in (("k", k), ("v", v)))}


FP8 = "fp8|float8|8 bit|8-bit|e4m3|e5m2"
INT8 = "int8|8 bit|8-bit|whole"
LOW = to(torch.bfloat16)

ROUNDED: tuple[Defect, ...] = (
    Defect("cache in bfloat16", "precision", words("bfloat16"), "", kept(LOW)),
    Defect("cache in float16", "precision", words("float16"), "", kept(to(torch.float16))),
    Defect("cache in float8 (e4m3)", "precision", words(FP8), "", kept(to(torch.float8_e4m3fn))),
    Defect("cache in float8 (e5m2)", "precision", words(FP8), "", kept(to(torch.float8_e5m2))),
    Defect("values of the cache in float8", "precision", words(FP8), "", kept(to(torch.float8_e4m3fn), "v")),
    Defect("cache in int8, a step for each token", "precision", words(INT8), "", kept(lambda x: whole(x, (-1,)))),
    Defect("cache in int8, a step for each channel", "precision", words(INT8), "", kept(lambda x: whole(x, (2,)))),
    Defect("cache in int8, one step for all", "precision", words(INT8), "", kept(lambda x: whole(x, (0, 1, 2, 3)))),
    defect("inputs in bfloat16", "precision", "bfloat16", inputs=LOW),
    defect("inputs in TF32", "precision", "tf32|float16", inputs=tf32),
    defect("matrix products in TF32", "precision", "tf32", operands=tf32, rounded=tf32),
    defect("matrix products in bfloat16", "precision", "products? in bfloat16|bfloat16", operands=LOW, rounded=LOW),
    defect("products of q and k in bfloat16", "precision", "products? of .*bfloat16|scores.*bfloat16", product=LOW),
    defect("products of q and k in float16", "precision", "products? of .*float16|scores.*float16", product=to(torch.float16)),
    defect("scores in bfloat16", "precision", "bfloat16", finished=LOW),
    defect("weights in bfloat16", "precision", "weights.*bfloat16", rounded=LOW),
    defect("weights in float16", "precision", "weights.*(float16|tf32)", rounded=to(torch.float16)),
    defect("everything in bfloat16", "precision", "bfloat16", inputs=LOW, product=LOW, rounded=LOW, output=lambda p, out: LOW(out)),
)  # fmt: skip

WEIGHING = SCALES + CAPS + NORMS + NORMALISERS + BESIDE + ROUNDED
