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


def sigmoid(x: Array) -> Array:
    return 1 / (1 + of(x).exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def rms_norm(scale: Array, x: Array, epsilon: float) -> Array:
    return x / ((x * x).sum(-1)[..., None] / x.shape[-1] + epsilon) ** 0.5 * scale


def convolution(x: Array, taps: Array) -> Array:
    """Each token with those before it, one by one: x (..., T, C), taps (k, C)."""
    k = taps.shape[0]
    rows = [sum(x[..., t - i, :] * taps[k - 1 - i] for i in range(min(k, t + 1))) for t in range(x.shape[-2])]
    return of(x).stack(rows, -2)


def delta_rule(q: Array, k: Array, v: Array, g: Array, beta: Array) -> Array:
    """One head, in the form of the paper: S_t = (1 - beta k k^T) diag(exp(g)) S_(t-1) + beta k v^T; beta (..., T)."""
    state, out = k[..., 0, :, None] * v[..., 0, None, :] * 0, []
    for t in range(k.shape[-2]):
        faded = of(k).exp(g[..., t, :])[..., None] * state
        key, b = k[..., t, :, None], beta[..., t, None, None]
        state = faded - b * (key @ (key.swapaxes(-1, -2) @ faded)) + b * (key @ v[..., t, None, :])
        out.append((q[..., t, None, :] @ state)[..., 0, :] / math.sqrt(q.shape[-1]))
    return of(k).stack(out, -2)


def _delta_layer(
    p: Params, x: Array, epsilon: float, raw: Callable[[int], Array], gate: Callable[[int], Array]
) -> Any:
    """raw: what the decay of a head is made of, (..., T, 1) or (..., T, D)."""
    heads, group = p["w_v"].shape[1], p["w_v"].shape[1] // p["w_q"].shape[1]
    width, value_width = p["w_q"].shape[2], p["w_v"].shape[2]
    keys = p["w_q"].shape[1] * width

    def mixed(name: str, h: int, start: int, width: int) -> Array:
        taps = p["conv"][:, start + h * width : start + (h + 1) * width]
        return silu(convolution(x @ p[name][:, h], taps))

    def unit(x: Array) -> Array:
        return x / ((x * x).sum(-1)[..., None] + 1e-6) ** 0.5

    out = 0
    for h in range(heads):
        q, k = (unit(mixed(name, h // group, start, width)) for name, start in (("w_q", 0), ("w_k", keys)))
        v = mixed("w_v", h, 2 * keys, value_width)
        g = -of(x).exp(p["a_log"][h]) * of(x).log1p(of(x).exp(raw(h)))
        o = delta_rule(q, k, v, g, sigmoid(x @ p["w_beta"][:, h]))
        out = out + (rms_norm(p["norm"]["scale"], o, epsilon) * gate(h)) @ p["w_o"][h]
    return out, ()


def gated_delta_net(p: Params, x: Array, epsilon: float = 1e-6) -> Any:
    return _delta_layer(
        p,
        x,
        epsilon,
        lambda h: (x @ p["w_decay"][:, h] + p["dt_bias"][h])[..., None],
        lambda h: silu(x @ p["w_gate"][:, h]),
    )


def kimi_delta_attention(p: Params, x: Array, epsilon: float = 1e-5) -> Any:
    return _delta_layer(
        p,
        x,
        epsilon,
        lambda h: x @ p["w_decay_in"] @ p["w_decay_out"][:, h] + p["dt_bias"][h],
        lambda h: sigmoid(x @ p["w_gate_in"] @ p["w_gate_out"][:, h]),
    )


def weighed(q: Array, k: Array, v: Array, slope: float = 0.0) -> Array:
    """Attention without softmax, its scores fading with the distance: the whole matrix at once."""
    distance = np.arange(q.shape[-2])[:, None] - np.arange(q.shape[-2])
    fading = np.exp(-slope * np.maximum(distance, 0)) * (distance >= 0)
    fading = fading if of(q) is np else torch.as_tensor(fading, dtype=q.dtype)
    return ((q @ k.swapaxes(-1, -2)) * fading) @ v


def lightning(p: Params, x: Array, slopes: tuple[float, ...], epsilon: float = 1e-6) -> Any:
    found = []
    for h, slope in enumerate(slopes):
        q, k, v = (silu(x @ p[name][:, h]) for name in ("w_q", "w_k", "w_v"))
        found.append(weighed(q, k, v, slope))
    normed = rms_norm(p["norm"]["scale"], of(x).concatenate(found, -1), epsilon)
    width = p["w_q"].shape[2]
    return sum(
        (sigmoid(x @ p["w_gate"][:, h]) * normed[..., h * width : (h + 1) * width]) @ p["w_o"][h]
        for h in range(len(slopes))
    ), ()


def linear_attention(p: Params, x: Array) -> Any:
    out = 0
    for h in range(p["w_q"].shape[1]):
        q, k, v = (x @ p[name][:, h] for name in ("w_q", "w_k", "w_v"))
        q, k = (of(x).where(y > 0, y + 1, of(x).exp(y)) for y in (q, k))
        out = out + weighed(q, k, v) / weighed(q, k, v * 0 + 1) @ p["w_o"][h]
    return out, ()
