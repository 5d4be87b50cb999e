"""What the mechanisms of today's models compute, head by head, as `shared.formulas` does for those of the textbooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from shared.formulas import Array, attend, of, softmax
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
    return of(x).concatenate(
        [a * cos - b * sin, a * sin + b * cos], -1
    )  # all first entries, then all second ones


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


def differential(
    p: Params, x: Array, *, lambda_init: float, epsilon: float, allowed: Array = 1.0, rotary: bool = False
) -> Any:
    """The two softmaxes of every head, their difference written out as weights."""
    exp, group = of(x).exp, p["w_q"].shape[1] // p["w_k"].shape[1]
    lam = (
        exp((p["lambda_q1"] * p["lambda_k1"]).sum())
        - exp((p["lambda_q2"] * p["lambda_k2"]).sum())
        + lambda_init
    )
    out, first, second = 0.0, [], []
    half = p["w_q"].shape[2] // 2
    turn = turned_halves if rotary else lambda x: x
    for h in range(p["w_q"].shape[1]):
        q, k, v = x @ p["w_q"][:, h], x @ p["w_k"][:, h // group], x @ p["w_v"][:, h // group]
        one, other = (
            attend(turn(q[..., part]), turn(k[..., part]), v, allowed=allowed)[1]
            for part in (slice(0, half), slice(half, None))
        )
        head = rms_norm((one - lam * other) @ v, epsilon, p["norm"]["scale"])
        out = out + (1 - lambda_init) * head @ p["w_o"][h]
        first.append(one)
        second.append(other)
    return out, (of(x).stack(first, -3), of(x).stack(second, -3))


def turned_halves(x: Array, base: float = 10000.0) -> Array:
    """As `turned`, with entry i and entry i + P/2 as a pair."""
    half = x.shape[-1] // 2
    join = of(x).concatenate
    pairs = of(x).stack([x[..., :half], x[..., half:]], -1)
    mixed = turned(pairs.reshape(x.shape), base)
    return join([mixed[..., :half], mixed[..., half:]], -1)


def mixed(p: Params, x: Array, *, allowed: Array = 1.0) -> Any:
    """Talking heads, and multi-token attention where there is a kernel: every sum written out."""
    heads, v = range(p["w_q"].shape[1]), [x @ p["w_v"][:, h] for h in range(p["w_q"].shape[1])]
    s = [scores(x @ p["w_q"][:, h], x @ p["w_k"][:, h]) for h in heads]
    ones = constant(np.ones(s[0].shape[-2:]) * allowed, x)
    if "kernel" in p:
        s = [convolved(s[h] * ones, p["kernel"][h]) for h in heads]
        groups = p.get("w_heads")
    else:
        s = [sum(p["w_scores"][h, g] * s[h] for h in heads) for g in heads]
        groups = p["w_weights"][None]
    w = [softmax(t, allowed) for t in s]
    if groups is not None:
        n = groups.shape[1]
        w = [sum(groups[f // n, g, f % n] * w[f // n * n + g] for g in range(n)) for f in heads]
    return sum(w[h] @ v[h] @ p["w_o"][h] for h in heads), of(x).stack(w, -3)


def scores(q: Array, k: Array) -> Array:
    return (q @ k.swapaxes(-1, -2)) / math.sqrt(q.shape[-1])


def convolved(s: Array, kernel: Array) -> Array:
    """t_ij = sum kernel[a, b] s_(i - a)(j - b + wide // 2), by matrices that shift rows and columns."""
    (deep, wide), (rows, keys) = kernel.shape, s.shape[-2:]
    return sum(
        kernel[a, b] * (constant(np.eye(rows, k=-a), s) @ s @ constant(np.eye(keys, k=b - wide // 2), s))
        for a in range(deep)
        for b in range(wide)
    )


def tensor_product(p: Params, x: Array, *, allowed: Array = 1.0, rotary: bool = False) -> Any:
    """Every head of every token as a sum of outer products, rank by rank."""

    def heads(name: str) -> list[Array]:
        a, b = p[f"w_a{name}"], p[f"w_b{name}"]
        ranks = range(a.shape[1])
        turn = turned_halves if rotary and name != "v" else lambda x: x
        rows = [turn(x @ b[:, r]) for r in ranks]
        return [
            sum((x @ a[:, r, h : h + 1]) * rows[r] for r in ranks) / len(ranks) for h in range(a.shape[2])
        ]

    found = [attend(q, k, v, allowed=allowed) for q, k, v in zip(*map(heads, "qkv"), strict=True)]
    return sum(out @ p["w_o"][h] for h, (out, _) in enumerate(found)), of(x).stack([w for _, w in found], -3)


def plain(x: Array) -> Any:
    """The numbers of an array alone: what is selected by them has no derivative, and does not round."""
    return np.asarray(x) if of(x) is np else x.detach().double().numpy()


def selected(score: Any, block_size: int, count: int) -> Any:
    """(..., L, S) from scores (..., L, N): the own block and the count - 1 best before it, up to the row."""
    rows = score.shape[-2]
    seen = np.zeros((*score.shape[:-2], rows, rows))
    for where in np.ndindex(score.shape[:-1]):
        own = where[-1] // block_size
        best = sorted(range(own), key=lambda n: -score[*where, n])
        for n in [own, *best][:count]:
            seen[*where, n * block_size : (n + 1) * block_size] = 1
    return seen * np.tri(rows)


def moba(p: Params, x: Array, *, block_size: int, count: int) -> Any:
    """Head by head, under the mask of its own selection."""
    out, group = 0.0, p["w_q"].shape[1] // p["w_k"].shape[1]
    for h in range(p["w_q"].shape[1]):
        q, k, v = x @ p["w_q"][:, h], x @ p["w_k"][:, h // group], x @ p["w_v"][:, h // group]
        keys = plain(k)
        starts = range(0, keys.shape[-2], block_size)
        means = np.stack([keys[..., n : n + block_size, :].mean(-2) for n in starts], -2)
        seen = selected(plain(q) @ means.swapaxes(-1, -2), block_size, count)
        out = out + attend(q, k, v, allowed=seen)[0] @ p["w_o"][h]
    return out, ()


def compressed(p: Params, x: Array, n: int) -> Array:
    """Block by block, and of a block token by token; the last one, which nobody sees, with what there is of it."""
    found = []
    for start in range(0, x.shape[-2], n):
        some = range(start, min(start + n, x.shape[-2]))
        hidden = sum((x[..., i, :] + p["position"][i - start]) @ p["w_in"][i - start] for i in some)
        found.append(hidden / (1 + of(x).exp(-hidden)) @ p["w_out"])
    return of(x).stack(found, -2)


def nsa(
    p: Params, x: Array, *, block_size: int, count: int, window_size: int, initial: int, local: int
) -> Any:
    """The three attentions of every head, each under its own mask; the own block alone is always selected."""
    assert (initial, local) == (0, 1)
    out, rows, n = 0.0, x.shape[-2], block_size
    heads, group = p["w_q"].shape[1], p["w_q"].shape[1] // p["w_k"].shape[1]
    complete = (np.arange(0, rows, n) + n - 1 <= np.arange(rows)[:, None]).astype(float)
    near = np.tri(rows) - np.tri(rows, k=-window_size)
    for g in range(heads // group):
        k, v = x @ p["w_k"][:, g], x @ p["w_v"][:, g]
        block_k, block_v = compressed(p["compress_k"], k, n), compressed(p["compress_v"], v, n)
        mine = range(g * group, (g + 1) * group)
        queries = [x @ p["w_q"][:, h] for h in mine]
        first = [attend(q, block_k, block_v, allowed=complete) for q in queries]
        seen = selected(sum(plain(w) for _, w in first), n, count)
        for h, q, (one, _) in zip(mine, queries, first, strict=True):
            parts = (one, *(attend(q, k, v, allowed=m)[0] for m in (seen, near)))
            gates = 1 / (1 + of(x).exp(-(x @ p["w_b"][:, h])))
            out = out + sum(gates[..., i : i + 1] * part for i, part in enumerate(parts)) @ p["w_o"][h]
    return out, ()


def forgetting(p: Params, x: Array) -> Any:
    """The sums of log f from j + 1 to i as differences of cumulative ones, added to every score."""
    rows, out, weights = x.shape[-2], 0.0, []
    tri = np.tri(rows)
    gates = -of(x).log(1 + of(x).exp(-(x @ p["w_f"] + p["b_f"])))
    for h in range(p["w_q"].shape[1]):
        c = constant(tri, x) @ gates[..., h : h + 1]
        s = scores(x @ p["w_q"][:, h], x @ p["w_k"][:, h]) + (c - c.swapaxes(-1, -2))
        w = softmax(s, tri)
        weights.append(w)
        out = out + w @ (x @ p["w_v"][:, h]) @ p["w_o"][h]
    return out, of(x).stack(weights, -3)


def masked(q: Array, k: Array, v: Array, sinks: Array, allowed: Any) -> Array:
    """Grouped heads under a dense mask (B, H|Hkv|1, L, S), with sinks: (B, H, L, E); a row that sees nothing is 0."""
    group, heads = q.shape[1] // k.shape[1], []
    for h in range(q.shape[1]):
        seen = allowed[:, h // (q.shape[1] // allowed.shape[1])].astype(float)
        out, _ = attend(q[:, h], k[:, h // group], v[:, h // group], allowed=seen, sink=sinks[h])
        heads.append(out)
    return of(q).stack(heads, 1)
