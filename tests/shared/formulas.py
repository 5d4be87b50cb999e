"""What each mechanism computes, in plain array arithmetic, head by head: the oracles of the tests of layers.

They share no code with the library. Arrays are NumPy's (`Rounded` ones too) or PyTorch's: the same lines give
the truth, its rounding noise and its gradients. allowed is 1 where a query may attend, 0 where not, and
broadcasts to (..., L, S). Every attention returns (out, weights) with weights (..., H, L, S).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from shared.libraries import torch

Array = Any
Params = Mapping[str, Any]


def of(x: Array) -> Any:
    """The module that the functions for x are in."""
    return torch if type(x).__module__.partition(".")[0] == "torch" else np


def softmax(scores: Array, allowed: Array, sink: Array | None = None) -> Array:
    """exp(scores) over its sum where allowed, 0 elsewhere, the sink among them; a row without keys is 0."""
    allowed = allowed if of(scores) is np else torch.as_tensor(allowed, dtype=scores.dtype)
    e = of(scores).exp(scores - scores.max()) * allowed
    total = e.sum(-1)[..., None]
    if sink is not None:
        total = total + of(scores).exp(sink - scores.max())
    return e / (total + (total == 0))


def attend(
    q: Array,
    k: Array,
    v: Array,
    scale: float | None = None,
    allowed: Array = 1.0,
    bias: Array | None = None,
    sink: Array | None = None,
) -> Any:
    """One head: (..., L, D), (..., S, D), (..., S, E), bias (L, S)."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * (q @ k.swapaxes(-1, -2))
    if bias is not None:
        scores = scores + (bias if of(q) is np else torch.as_tensor(bias, dtype=q.dtype))
    weights = softmax(scores, allowed, sink)
    return weights @ v, weights


def affine(x: Array, w: Array, b: Array | None = None) -> Array:
    return x @ w if b is None else x @ w + b


def multihead(
    p: Params,
    x: Array,
    context: Array | None = None,
    allowed: Array = 1.0,
    scale: float | None = None,
    bias: Array | None = None,
) -> Any:
    """Head h reads kv head h // G; concatenated, or each through its part of w_o and summed; bias (H, L, S)."""
    context = x if context is None else context
    heads, group = p["w_q"].shape[1], p["w_q"].shape[1] // p["w_k"].shape[1]

    def projected(name: str, x: Array, h: int) -> Array:
        return affine(x, p[f"w_{name}"][:, h], p[f"b_{name}"][h] if f"b_{name}" in p else None)

    found = [
        attend(
            projected("q", x, h),
            projected("k", context, h // group),
            projected("v", context, h // group),
            scale,
            allowed,
            None if bias is None else bias[h],
            p["sinks"][h] if "sinks" in p else None,
        )
        for h in range(heads)
    ]
    weights = of(x).stack([w for _, w in found], -3)
    if "w_o" not in p:
        return of(x).concatenate([out for out, _ in found], -1), weights
    out = sum(out @ p["w_o"][h] for h, (out, _) in enumerate(found))
    return out + p["b_o"] if "b_o" in p else out, weights


def additive(p: Params, x: Array, context: Array, allowed: Array = 1.0) -> Any:
    """Bahdanau: scores v . tanh(x W_q + c W_k), values c."""
    scores = additive_scores(x @ p["w_q"], context @ p["w_k"], p["v"])
    weights = softmax(scores, allowed)
    return weights @ context, weights[..., None, :, :]


def additive_scores(q: Array, k: Array, v: Array) -> Array:
    return (of(q).tanh(q[..., :, None, :] + k[..., None, :, :]) * v).sum(-1)


def luong(p: Params, x: Array, context: Array, allowed: Array = 1.0) -> Any:
    """dot without params, general with w, concat with w and v."""
    if "v" in p:
        width = x.shape[-1]
        scores = additive_scores(x @ p["w"][:width], context @ p["w"][width:], p["v"])
    else:
        scores = (x @ p["w"] if "w" in p else x) @ context.swapaxes(-1, -2)
    weights = softmax(scores, allowed)
    return weights @ context, weights[..., None, :, :]


def layer_norm(p: Params, x: Array, epsilon: float) -> Array:
    width = x.shape[-1]
    x = x - x.sum(-1)[..., None] / width
    return x / ((x * x).sum(-1)[..., None] / width + epsilon) ** 0.5 * p["scale"] + p["bias"]


def relu(x: Array) -> Array:
    return x * (x > 0)


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + of(x).tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def mlp(p: Params, x: Array, activation: Callable[[Array], Array] = relu) -> Array:
    return activation(x @ p["w_in"] + p["b_in"]) @ p["w_out"] + p["b_out"]


def residual(x: Array, norm: Callable[[Array], Array], part: Callable[[Array], Any], norm_first: bool) -> Any:
    """x + part, normalised before or after; part returns (out, weights)."""
    out, weights = part(norm(x) if norm_first else x)
    return (x + out if norm_first else norm(x + out)), weights


def encoder_block(
    p: Params,
    x: Array,
    *,
    norm_first: bool,
    epsilon: float,
    activation: Callable[[Array], Array] = relu,
    allowed: Array = 1.0,
) -> Any:
    norm_1, norm_2 = (lambda x, p=p[name]: layer_norm(p, x, epsilon) for name in ("norm_1", "norm_2"))
    x, weights = residual(x, norm_1, lambda x: multihead(p["attention"], x, allowed=allowed), norm_first)
    x, _ = residual(x, norm_2, lambda x: (mlp(p["mlp"], x, activation), None), norm_first)
    return x, weights


def decoder_block(
    p: Params,
    x: Array,
    context: Array,
    *,
    norm_first: bool,
    epsilon: float,
    allowed: Array = 1.0,
    context_allowed: Array = 1.0,
) -> Any:
    """Self-attention, cross-attention and, where p has one, an MLP; weights are those of the two attentions."""
    norms = [lambda x, p=p[name]: layer_norm(p, x, epsilon) for name in sorted(p) if name.startswith("norm")]
    x, own = residual(x, norms[0], lambda x: multihead(p["self_attention"], x, allowed=allowed), norm_first)
    x, other = residual(
        x,
        norms[1],
        lambda x: multihead(p["cross_attention"], x, context, allowed=context_allowed),
        norm_first,
    )
    if "mlp" in p:
        x, _ = residual(x, norms[2], lambda x: (mlp(p["mlp"], x), None), norm_first)
    return x, (own, other)
