"""Linear attention: a matrix of constant size remembers all tokens, by one of four rules of writing.

The state is a value: it goes in, a new one comes out, so that a sequence may be read in pieces, down to one
token at a time, and a decoder carries (D, E) numbers a head however long its text is.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from polyattn.arrays import Array, Backend, backend_of
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, array, integer, number, real, shown

__all__ = ["l2norm", "lightning_slopes", "linear_attention"]


@answers("polyattn.linear.linear_attention")
def linear_attention(
    query: SameArray,
    key: Array,
    value: Array,
    *,
    decay: Array | None = None,
    beta: Array | None = None,
    state: Array | None = None,
    scale: float | None = None,
    chunk_size: int = 64,
) -> tuple[SameArray, SameArray]:
    """Causal attention without softmax, by a recurrence over the tokens t: the outputs, and the last state.

        S_t = F_t + k_t u_t^T,   F_t = exp(g_t) * S_(t-1),   o_t = scale S_t^T q_t

        linear        g = 0          u_t = v_t                        arXiv:2006.16236 (Katharopoulos 2020)
        gated         g = decay      u_t = v_t                        arXiv:2312.06635 (Yang 2023)
        delta         g = 0          u_t = beta_t (v_t - F_t^T k_t)   arXiv:2102.11174, arXiv:2406.06484
        gated delta   g = decay      u_t = beta_t (v_t - F_t^T k_t)   arXiv:2412.06464 (Yang 2024)

    decay and beta that are given choose the rule. query (..., Hq, T, D), key (..., Hkv, T, D), value
    (..., Hkv, T, E); Hkv divides Hq: query head h reads the state of kv head h // (Hq // Hkv). decay: the
    logarithm of what remains, (..., Hkv|1, T, D) per entry of the key, or (..., Hkv|1, T, 1); -inf forgets
    everything. beta (..., Hkv|1, T, 1). state S_0 (..., Hkv, D, E), zeros where left out. scale: None =
    1/sqrt(D). Nothing is normalised: a feature map, or the unit keys that the delta rules want, come before.

    chunk_size 1 is the recurrence itself, token by token; otherwise so many tokens are one step of matrix
    products, with the same result: the equations inside a chunk are a triangular system. Decay per entry takes
    chunk_size^2 D numbers a head. Returns (out, state): out (..., Hq, T, E) of query's dtype; state (..., Hkv,
    D, E) in the compute dtype, at least float32.

    >>> import numpy as np
    >>> x = np.array([[[1.0], [2.0]]])
    >>> linear_attention(x, x, x)  # 2 * (1 * 1 + 2 * 2) = 10
    (array([[[ 1.],
            [10.]]]), array([[[5.]]]))
    """
    arrays = {"query": query, "key": key, "value": value, "decay": decay, "beta": beta, "state": state}
    return attend("polyattn.linear.linear_attention", arrays, scale, chunk_size)


@answers("polyattn.linear.l2norm")
def l2norm(x: SameArray, epsilon: float = 1e-6) -> SameArray:
    """x / sqrt(sum(x^2) + epsilon) over the last axis: the unit keys and queries of the delta rules.

    With them the state is never multiplied by more than 1 in a direction: I - beta k k^T has the eigenvalue
    1 - beta along k. epsilon as the kernels of Qwen3-Next and Kimi Linear have it; F.normalize has none inside.

    >>> import numpy as np
    >>> l2norm(np.array([3.0, 4.0]), epsilon=0.0)
    array([0.6, 0.8])
    """
    backend = real("polyattn.linear.l2norm", "x", x)
    xp = backend.xp
    wide = backend.astype(x, backend.compute_dtype(x.dtype))
    epsilon = number("polyattn.linear.l2norm", "epsilon", epsilon)
    return backend.astype(wide / xp.sqrt(xp.sum(wide * wide, axis=-1, keepdims=True) + epsilon), x.dtype)


@answers("polyattn.linear.lightning_slopes")
def lightning_slopes(heads: int, layer: int = 0, depth: int = 1) -> tuple[float, ...]:
    """How fast each head of lightning attention forgets: its decay is -slope, the same for every token.

        slope_h = 2^(-8 h / heads) (1 - layer / (depth - 1 + 1e-5) + 1e-5),   h = 1 ... heads, layer = 0 ... depth - 1

    The slopes of ALiBi, less the deeper the layer. Source: Qin 2024, arXiv:2401.04658; MiniMax 2025, arXiv:2501.08313,
    with the constants of MiniMax-Text-01.

    >>> [round(slope, 4) for slope in lightning_slopes(4, layer=0, depth=8)]
    [0.25, 0.0625, 0.0156, 0.0039]
    """
    who = "polyattn.linear.lightning_slopes"
    heads, depth = integer(who, "heads", heads, 1), integer(who, "depth", depth, 1)
    layer = integer(who, "layer", layer, 0, "count layers from 0", most=depth - 1)
    factor = 1 - layer / (depth - 1 + 1e-5) + 1e-5
    return tuple(2.0 ** (-8 * h / heads) * factor for h in range(1, heads + 1))


def attend(who: str, arrays: dict[str, Any], scale: float | None, chunk_size: int) -> tuple[Array, Array]:
    """`linear_attention` for an adapter: errors speak in the name of the function that the user called."""
    backend = _check(who, arrays, scale, chunk_size)
    query, key, value, decay, beta, state = arrays.values()
    xp, compute = backend.xp, backend.compute_dtype(query.dtype)
    *lead, heads, tokens, width = query.shape
    kv_heads, value_width = key.shape[-3], value.shape[-1]
    group = heads // kv_heads
    q, k, v = (backend.astype(x, compute) for x in (query, key, value))
    device = backend.device(q)
    if state is None:
        s = xp.zeros((*lead, kv_heads, width, value_width), dtype=compute, device=device)
    else:
        s = backend.astype(state, compute)
    if tokens == 0:
        return xp.zeros((*lead, heads, 0, value_width), dtype=query.dtype, device=device), s
    if decay is None:
        g = xp.zeros((*(1,) * len(lead), 1, tokens, 1), dtype=compute, device=device)
    else:
        g = backend.astype(decay, compute)
    # Query heads beside the tokens: (..., Hkv, T, G, D), so that a kv head is read once for its whole group.
    n = len(lead)
    q = xp.reshape(q, (*lead, kv_heads, group, tokens, width))
    q = xp.permute_dims(q, (*range(n + 1), n + 2, n + 1, n + 3))
    parts = [(q, -3), (k, -2), (v, -2), (g, -2)]
    if beta is not None:
        parts.append((backend.astype(beta, compute), -2))

    size = min(chunk_size, tokens)
    steps = -(-tokens // size)
    # Tokens of zeros at the end write nothing and make nothing fade.
    parts = [(_lengthen(backend, x, axis, steps * size - tokens), axis) for x, axis in parts]
    advance = _token if size == 1 else _chunk

    def step(i: Any, s: Array) -> tuple[Array, Array]:
        q, k, v, g, *b = (backend.tile(x, i * size, size, axis) for x, axis in parts)
        return advance(backend, s, q, k, v, g, b[0] if b else None)

    s, out = backend.scan(steps, step, s)  # (steps, ..., Hkv, size, G, E)
    out = xp.permute_dims(out, (*range(1, n + 2), 0, *range(n + 2, n + 5)))
    out = xp.reshape(out, (*lead, kv_heads, steps * size, group, value_width))[..., :tokens, :, :]
    out = xp.permute_dims(out, (*range(n + 1), n + 2, n + 1, n + 3))
    scale = float(scale) if scale is not None else 1.0 / math.sqrt(width) if width else 1.0
    return backend.astype(xp.reshape(out, (*lead, heads, tokens, value_width)) * scale, query.dtype), s


def _token(
    backend: Backend, s: Array, q: Array, k: Array, v: Array, g: Array, b: Array | None
) -> tuple[Array, Array]:
    """One step of the recurrence: S (..., D, E), q (..., 1, G, D), the others (..., 1, width)."""
    xp, matmul = backend.xp, backend.matmul
    s = s * xp.matrix_transpose(xp.exp(g))
    u = v if b is None else b * (v - matmul(k, s))
    s = s + matmul(xp.matrix_transpose(k), u)
    return s, matmul(q[..., 0, :, :], s)[..., None, :, :]


def _chunk(
    backend: Backend, s: Array, q: Array, k: Array, v: Array, g: Array, b: Array | None
) -> tuple[Array, Array]:
    """C steps at once: S (..., D, E), q (..., C, G, D), the others (..., C, width).

        o_t = S^T (since_t * q_t) + sum_(i <= t) (sum_d q_td k_id fade_tid) u_i
        u_t + b_t sum_(i < t) (sum_d k_td k_id fade_tid) u_i = b_t (v_t - S^T (since_t * k_t))

    since_t: what remains at t of the state before the chunk; fade_ti: what remains at t of what came at i.
    """
    xp, matmul = backend.xp, backend.matmul
    since = xp.exp(backend.cumulative_sum(g, -2))
    fade = _fade(backend, g)
    u = v
    if b is not None:
        size = k.shape[-2]
        overlap = _overlaps(backend, k[..., None, :], k, fade)[..., 0, :]
        at = backend.arange(0, size, k)
        before = at[:, None] > at[None, :]
        one = xp.eye(size, dtype=k.dtype, device=backend.device(k))
        u = xp.linalg.solve(one + xp.where(before, b * overlap, 0.0), b * (v - matmul(since * k, s)))
    *_, size, group, width = q.shape
    flat = (*q.shape[:-3], size * group)
    old = matmul(xp.reshape(since[..., None, :] * q, (*flat, width)), s)
    new = matmul(xp.reshape(_overlaps(backend, q, k, fade), (*flat, size)), u)
    s = xp.matrix_transpose(since[..., -1:, :]) * s + matmul(xp.matrix_transpose(fade[..., -1, :, :] * k), u)
    return s, xp.reshape(old + new, (*q.shape[:-1], v.shape[-1]))


def _fade(backend: Backend, g: Array) -> Array:
    """exp(g_(i+1) + ... + g_t), 0 where i > t: (..., C, C, D|1) of g (..., C, D|1).

    The terms are summed for each pair, never one long sum taken from another: no cancellation, no overflow,
    and a decay of -inf stays what it is.
    """
    xp = backend.xp
    at = backend.arange(0, g.shape[-2], g)
    t, i = at[:, None, None], at[None, :, None]
    total = backend.cumulative_sum(xp.where(t > i, g[..., :, None, :], 0.0), -3)
    return xp.exp(xp.where(t >= i, total, -xp.inf))


def _overlaps(backend: Backend, q: Array, k: Array, fade: Array) -> Array:
    """sum_d q_tgd k_id fade_tid: (..., C, G, C) of q (..., C, G, D), k (..., C, D) and fade (..., C, C, D|1)."""
    xp = backend.xp
    if fade.shape[-1] > 1:
        return backend.matmul(q, xp.matrix_transpose(fade * k[..., None, :, :]))
    *lead, size, group, width = q.shape
    flat = backend.matmul(xp.reshape(q, (*lead, size * group, width)), xp.matrix_transpose(k))
    return xp.reshape(flat, (*lead, size, group, size)) * fade[..., None, :, 0]


def _lengthen(backend: Backend, x: Array, axis: int, more: int) -> Array:
    if more == 0:
        return x
    shape = list(x.shape)
    shape[axis] = more
    zeros = backend.xp.zeros(tuple(shape), dtype=x.dtype, device=backend.device(x))
    return backend.xp.concat((x, zeros), axis=axis)


def _check(who: str, given: dict[str, Any], scale: float | None, chunk_size: int) -> Backend:
    query, key, value = given["query"], given["key"], given["value"]
    arrays = {name: x for name, x in given.items() if x is not None or name in ("query", "key", "value")}
    backend_of_query = array(who, "query", query)
    for name, x in arrays.items():
        if array(who, name, x) is not backend_of_query:
            raise TypeError(
                f"{who}: expected {name} to be an array of the library of query, got one of {backend_of(x).name}; convert it"
            )
        if backend_of(x).compute_dtype(x.dtype) is None:
            raise TypeError(f"{who}: expected {name} of a real floating dtype, got {x.dtype}; cast it")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"{who}: expected query, key and value of one dtype, got {query.dtype}, {key.dtype}, {value.dtype}; "
            "cast them to the dtype in which you want the result"
        )
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(
            f"{who}: expected chunk_size to be an integer of at least 1, got {shown(chunk_size)}; 1 is the recurrence"
        )
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real)):
        raise TypeError(
            f"{who}: expected scale to be a number or None, got {shown(scale)}; multiply query by an array of scales"
        )
    try:
        finite = scale is None or math.isfinite(scale)
    except OverflowError:  # an integer beyond all floats
        finite = False
    if not finite:
        raise ValueError(f"{who}: expected a finite scale, got {scale!r}; None is 1/sqrt(D)")
    if query.ndim < 3:
        raise ValueError(
            f"{who}: expected query of rank 3 or more (..., heads, tokens, width), got {tuple(query.shape)}; one "
            "head is query[None]"
        )
    *lead, heads, tokens, width = query.shape
    kv_heads = key.shape[-3] if key.ndim > 2 else 0
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"{who}: expected a number of query heads that is a multiple of the number of key heads, got query "
            f"{tuple(query.shape)} and key {tuple(key.shape)}; the axes are (..., heads, tokens, width)"
        )
    each = (1, kv_heads)
    e = value.shape[-1] if value.ndim else 0
    expected = {
        "key": ((kv_heads,), (tokens,), (width,)),
        "value": ((kv_heads,), (tokens,), (e,)),
        "decay": (each, (tokens,), (1, width)),
        "beta": (each, (tokens,), (1,)),
        "state": ((kv_heads,), (width,), (e,)),
    }
    for name, sizes in expected.items():
        if name not in arrays:
            continue
        shape = tuple(arrays[name].shape)
        if (
            len(shape) != query.ndim
            or list(shape[:-3]) != lead
            or not all(n in allowed for n, allowed in zip(shape[-3:], sizes, strict=True))
        ):
            wanted = ", ".join([*map(str, lead), *(" or ".join(map(str, allowed)) for allowed in sizes)])
            raise ValueError(
                f"{who}: expected {name} of shape ({wanted}), got {shape}; query is {tuple(query.shape)}, in axes "
                "(..., heads, tokens, width)"
            )
    backend = backend_of(query)
    if "beta" in arrays and min(chunk_size, tokens) > 1 and not hasattr(backend.xp, "linalg"):
        raise NotImplementedError(
            f"{who}: expected a library that solves linear systems for beta in chunks, got {backend.name}; pass "
            "chunk_size=1, the recurrence itself"
        )
    return backend
