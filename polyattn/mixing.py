"""Attention whose heads, or neighbouring scores, speak with one another: talking heads and multi-token attention.

Every score of all heads is needed before the first weight is known, so that there is no blockwise form: this is a
definition, with memory O(Hq L S).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload

from polyattn._attention import AttentionAux, AuxRequest
from polyattn.arrays import Array, Backend
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, real, shown
from polyattn.implementations.reference import allowed_at, scores_at
from polyattn.normalizers.softmax import grouped_matmul, lift, weights
from polyattn.problem import Problem, pose
from polyattn.problem.options import spelled_out

__all__ = ["multi_token_attention", "talking_heads_attention"]

_NOT = ("score_mod", "sinks", "dropout_rate", "dropout_seed", "layout")  # of the options of attention
#: (scores or weights (B, Hq, L, S), allowed (B|1, Hq|1, L|1, S|1) or None) -> the mixed ones
Mix = Callable[[Array, Array | None], Array]


@overload
def talking_heads_attention(
    query: SameArray,
    key: Array,
    value: Array,
    w_scores: Array,
    w_weights: Array,
    *,
    return_aux: None = None,
    **options: Any,
) -> SameArray: ...
@overload
def talking_heads_attention(
    query: SameArray,
    key: Array,
    value: Array,
    w_scores: Array,
    w_weights: Array,
    *,
    return_aux: AuxRequest,
    **options: Any,
) -> tuple[SameArray, AttentionAux]: ...
@answers("polyattn.mixing.talking_heads_attention")
@partial(spelled_out, without=_NOT)
def talking_heads_attention(
    query: Array,
    key: Array,
    value: Array,
    w_scores: Array,
    w_weights: Array,
    *,
    return_aux: AuxRequest | None = None,
    **options: Any,
) -> Any:
    """Attention whose heads are mixed before the softmax and after it.

        s_g = sum_h w_scores[h, g] scale (q_h . k_h);  w_g = softmax(s_g);  u_f = sum_g w_weights[g, f] w_g;  out_f = u_f v_f

    Shapes: those of `attention`, w_scores and w_weights (Hq, Hq) -> (..., Hq, L, E). bias and mask act between
    mixing and softmax. options: mask, bias, is_causal, scale and positions, as `attention` takes them. return_aux:
    weights (u, which need not be positive) and scores can be asked for. A row that sees nothing gives 0. Memory O(Hq L S).

    Source: Shazeer 2020, arXiv:2003.02436.

    >>> import numpy as np
    >>> x, swap = np.array([[[0.0]], [[9.0]]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> talking_heads_attention(x, x, x, swap, swap)[:, 0, 0]
    array([0., 9.])
    """
    who = "polyattn.mixing.talking_heads_attention"
    return talk(who, query, key, value, w_scores, w_weights, options, return_aux)


@overload
def multi_token_attention(
    query: SameArray,
    key: Array,
    value: Array,
    kernel: Array,
    w_heads: Array | None = None,
    *,
    return_aux: None = None,
    **options: Any,
) -> SameArray: ...
@overload
def multi_token_attention(
    query: SameArray,
    key: Array,
    value: Array,
    kernel: Array,
    w_heads: Array | None = None,
    *,
    return_aux: AuxRequest,
    **options: Any,
) -> tuple[SameArray, AttentionAux]: ...
@answers("polyattn.mixing.multi_token_attention")
@partial(spelled_out, without=_NOT)
def multi_token_attention(
    query: Array,
    key: Array,
    value: Array,
    kernel: Array,
    w_heads: Array | None = None,
    *,
    return_aux: AuxRequest | None = None,
    **options: Any,
) -> Any:
    """Attention whose scores are convolved over neighbouring queries and keys before the softmax.

        t_ij = sum_(a, b) kernel[h, a, b] s_(i - a)(j - b + Ck // 2),   a < Cq, b < Ck;   w = softmax(t)

    s is scale (q . k), 0 where it is hidden and outside of the rows and keys there are: a row sees itself and
    earlier rows, keys on both sides. Then hidden scores are -inf. Shapes: those of `attention`, kernel (Hq, Cq,
    Ck), w_heads (Hq / C, C, C): after the softmax the weights of every group of C heads are mixed, u_f = sum_g
    w_heads[group, g, f] w_g; None mixes nothing. Options, return_aux and memory: as `talking_heads_attention`.

    Source: Golovneva 2025, arXiv:2504.00927, sections 3.1 and 3.2.

    >>> import numpy as np
    >>> x, kernel = np.array([[[0.0], [9.0]]]), np.zeros((1, 1, 3))
    >>> kernel[0, 0, 1] = 1.0  # each score alone
    >>> multi_token_attention(x, x, x, kernel)[0, :, 0]
    array([4.5, 9. ])
    """
    who = "polyattn.mixing.multi_token_attention"
    return convolve(who, query, key, value, kernel, w_heads, options, return_aux)


def talk(
    who: str,
    query: Array,
    key: Array,
    value: Array,
    w_scores: Array,
    w_weights: Array,
    options: dict[str, Any],
    return_aux: AuxRequest | None,
) -> Any:
    """`talking_heads_attention` for a layer: errors speak in the name of what the user called."""
    p = pose(who, query, key, value, **options)
    heads = p.frame.heads
    before, after = (
        _checked(p, name, w, (heads, heads)) for name, w in (("w_scores", w_scores), ("w_weights", w_weights))
    )
    return _mixed(
        p,
        lambda s, _: _across_heads(p.backend, s, before),
        lambda w, _: _across_heads(p.backend, w, after),
        return_aux,
    )


def convolve(
    who: str,
    query: Array,
    key: Array,
    value: Array,
    kernel: Array,
    w_heads: Array | None,
    options: dict[str, Any],
    return_aux: AuxRequest | None,
) -> Any:
    """`multi_token_attention` for a layer."""
    p = pose(who, query, key, value, **options)
    heads = p.frame.heads
    theta = _checked(p, "kernel", kernel, (heads, None, None))
    groups = None
    if w_heads is not None:
        groups = _checked(p, "w_heads", w_heads, (None, None, None))
        if groups.shape[1] != groups.shape[2] or groups.shape[0] * groups.shape[1] != heads:
            raise ValueError(
                f"{who}: expected w_heads (H / C, C, C) for {heads} heads, got {tuple(groups.shape)}; C heads mix with one "
                "another"
            )
    return _mixed(
        p,
        lambda s, allowed: _convolved(p.backend, s, theta, allowed),
        lambda w, _: w if groups is None else _across_heads(p.backend, w, groups),
        return_aux,
    )


def _mixed(p: Problem, before: Mix, after: Mix, return_aux: AuxRequest | None) -> Any:
    """The definition of attention with a step before the softmax and one after it."""
    backend, xp = p.backend, p.backend.xp
    asked = () if return_aux is None else return_aux.names(p.who)
    if refused := [name for name in asked if name not in ("weights", "scores")]:
        raise ValueError(
            f"{p.who}: expected return_aux to ask for weights or scores, got {' and '.join(refused)}; mixed weights are no "
            "softmax of one row"
        )
    q, k, v = (backend.astype(x, p.compute_dtype) for x in (p.q, p.k, p.v))
    bias = None if p.bias is None else backend.astype(p.bias, p.compute_dtype)
    at: Any = None if p.mask is None else p.positions()
    allowed = allowed_at(p.mask, at, bias)
    if allowed is not None:  # for any head: they mix
        some = xp.any(xp.any(allowed, axis=-2, keepdims=True), axis=1, keepdims=True)
        k, v = (xp.where(xp.matrix_transpose(some), x, 0.0) for x in (k, v))
        q = xp.where(xp.any(xp.any(allowed, axis=-1, keepdims=True), axis=1, keepdims=True), q, 0.0)
    s = xp.broadcast_to(grouped_matmul(q, xp.matrix_transpose(k)) * p.scale, p.scores_shape)
    s = xp.broadcast_to(scores_at(p, at, before(s, allowed), bias, allowed), p.scores_shape)
    w = after(weights(s, lift(s, v[..., :0])), allowed)
    if allowed is not None:  # a row that sees nothing in its own head hears nothing from others
        w = xp.where(xp.any(allowed, axis=-1, keepdims=True), w, 0.0)
    out = p.axes.leave(backend.astype(grouped_matmul(w, v), p.q.dtype), width=True)
    if return_aux is None:
        return out
    found = {"weights": w, "scores": s}
    return out, AttentionAux(**{name: p.axes.leave(found[name], width=False) for name in asked})


def _across_heads(backend: Backend, x: Array, w: Array) -> Array:
    """y_f = sum_g w[g, f] x_g over all heads, or in each group of them: (B, H, L, S), w (H, H) or (H / C, C, C)."""
    xp, (batch, heads, rows, keys) = backend.xp, x.shape
    w = w if w.ndim == 3 else w[None, ...]
    groups, count, _ = w.shape
    flat = xp.reshape(x, (batch, groups, count, rows * keys))
    return xp.reshape(backend.matmul(xp.matrix_transpose(w), flat), (batch, heads, rows, keys))


def _convolved(backend: Backend, s: Array, kernel: Array, allowed: Array | None) -> Array:
    """One shifted copy of the scores for each entry of the kernel."""
    xp, (_, deep, wide) = backend.xp, kernel.shape
    if allowed is not None:
        s = xp.where(allowed, s, 0.0)
    *lead, rows, keys = s.shape
    left = wide - 1 - wide // 2  # keys j - b + wide // 2, from j - left on

    def zeros(*shape: int) -> Array:
        return xp.zeros((*lead, *shape), dtype=s.dtype, device=backend.device(s))

    padded = xp.concat((zeros(rows, left), s, zeros(rows, wide // 2)), axis=-1)
    padded = xp.concat((zeros(deep - 1, keys + wide - 1), padded), axis=-2)
    found = zeros(rows, keys)
    for a in range(deep):
        for b in range(wide):
            top, start = deep - 1 - a, wide - 1 - b
            found = (
                found + kernel[:, a : a + 1, b : b + 1] * padded[..., top : top + rows, start : start + keys]
            )
    return found


def _checked(p: Problem, name: str, x: Array, shape: tuple[int | None, ...]) -> Array:
    if real(p.who, name, x) is not p.backend:
        raise TypeError(
            f"{p.who}: expected {name} of the library of query, {p.backend.name}, got {shown(x)}; convert it"
        )
    if (
        x.ndim != len(shape)
        or any(n is not None and n != m for n, m in zip(shape, x.shape, strict=True))
        or 0 in x.shape
    ):
        wanted = ", ".join("n" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{p.who}: expected {name} of shape ({wanted}), got {tuple(x.shape)}; query has {p.frame.heads} heads"
        )
    return p.backend.astype(x, p.compute_dtype)
