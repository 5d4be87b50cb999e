"""What the mechanisms of today's models compute, head by head, as `shared.formulas` does for those of the textbooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from shared.formulas import Array, attend, of
from shared.libraries import torch

Params = Mapping[str, Any]


def constant(value: Any, like: Array) -> Array:
    """Numbers of NumPy beside arrays of either library."""
    return value if of(like) is np else torch.as_tensor(value, dtype=like.dtype)


def rms_norm(x: Array, epsilon: float, scale: Array | None = None) -> Array:
    x = x / ((x * x).sum(-1)[..., None] / x.shape[-1] + epsilon) ** 0.5
    return x if scale is None else x * scale


def turned(x: Array, base: float = 10000.0) -> Array:
    """Neighbouring entries of x (..., L, P) as complex numbers, times exp(i position base^(-2j/P))."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(half) / half)
    cos, sin = constant(np.cos(angle), x), constant(np.sin(angle), x)
    a, b = x[..., 0::2], x[..., 1::2]
    return of(x).concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def latent(p: Params, x: Array, *, epsilon: float, allowed: Array = 1.0) -> Any:
    """DeepSeek-V2, equations 9 to 19: every key and value written out."""
    join = of(x).concatenate
    c, r = rms_norm(x @ p["w_dkv"], epsilon, p["kv_norm"]["scale"]), turned(x @ p["w_kr"])
    u = rms_norm(x @ p["w_dq"], epsilon, p["q_norm"]["scale"]) if "w_dq" in p else x
    found = []
    for h in range(p["w_uk"].shape[1]):
        q = join([u @ p["w_uq"][:, h], turned(u @ p["w_qr"][:, h])], -1)
        k = join([c @ p["w_uk"][:, h], r], -1)
        found.append(attend(q, k, c @ p["w_uv"][:, h], allowed=allowed))
    out = sum(out @ p["w_o"][h] for h, (out, _) in enumerate(found))
    return out, of(x).stack([w for _, w in found], -3)


def scores(q: Array, k: Array) -> Array:
    return (q @ k.swapaxes(-1, -2)) / math.sqrt(q.shape[-1])
