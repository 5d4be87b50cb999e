"""Scores of keys and of blocks of keys, and the indices of the best."""

from __future__ import annotations

from functools import reduce
from operator import add

from polyattn.arrays import Array, backend_of
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, array, real, shown, size

__all__ = ["indexer_scores", "pooled", "pooled_keys", "top", "top_indices"]


@answers("polyattn.selection.indexer_scores")
def indexer_scores(query: Array, key: Array, weights: Array) -> Array:
    """I_ts = sum_h w_th relu(q_th . k_s), the lightning indexer of DeepSeek sparse attention.

    Shapes: query (..., H, L, D), key (..., S, D), one for all heads, weights (..., L, H) -> (..., L, S), in the
    compute dtype; nothing is scaled. One head at a time, with memory O(L S). `top_indices(..., allowed=...)`
    selects, and `selected_attention` takes the result with an axis for heads, [..., None, :, :].

    Source: DeepSeek-AI 2025, DeepSeek-V3.2-Exp, equation 1.

    >>> import numpy as np
    >>> indexer_scores(np.array([[[1.0]], [[-1.0]]]), np.array([[2.0], [-3.0]]), np.array([[1.0, 10.0]]))
    array([[ 2., 30.]])
    """
    who = "polyattn.selection.indexer_scores"
    backend = real(who, "query", query)
    for name, x in (("key", key), ("weights", weights)):
        if real(who, name, x) is not backend:
            raise TypeError(
                f"{who}: expected {name} of the library of query, {backend.name}, got {shown(x)}; convert it"
            )
    if query.ndim < 3:
        raise ValueError(
            f"{who}: expected query (..., H, L, D), got {tuple(query.shape)}; add the axes that are missing"
        )
    *lead, heads, rows, width = query.shape
    wanted = {"key": (*lead, "S", width), "weights": (*lead, rows, heads)}
    for name, x in (("key", key), ("weights", weights)):
        if x.ndim != query.ndim - 1 or any(
            n not in ("S", m) for n, m in zip(wanted[name], x.shape, strict=True)
        ):
            raise ValueError(
                f"{who}: expected {name} of shape ({', '.join(map(str, wanted[name]))}), got {tuple(x.shape)}; query is "
                f"{tuple(query.shape)}"
            )
    xp, compute = backend.xp, backend.compute_dtype(query.dtype)
    q, k, w = (backend.astype(x, compute) for x in (query, key, weights))
    k = xp.matrix_transpose(k)

    def of_head(h: int) -> Array:
        s = backend.matmul(q[..., h, :, :], k)
        return xp.where(s > 0, s, 0.0) * w[..., h : h + 1]

    nothing = xp.zeros((*lead, rows, key.shape[-2]), dtype=compute, device=backend.device(q))
    return reduce(add, map(of_head, range(heads)), nothing)


@answers("polyattn.selection.pooled_keys")
def pooled_keys(key: SameArray, block_size: int) -> SameArray:
    """The mean of every block of keys: (..., S, D) -> (..., ceil(S / block_size), D), the last one of those it has.

    >>> import numpy as np
    >>> pooled_keys(np.array([[1.0], [3.0], [5.0]]), 2)
    array([[2.],
           [5.]])
    """
    who = "polyattn.selection.pooled_keys"
    real(who, "key", key)
    if key.ndim < 2:
        raise ValueError(
            f"{who}: expected key (..., S, D), got {tuple(key.shape)}; add the axes that are missing"
        )
    return pooled(key, size(who, "block_size", block_size, 1))


@answers("polyattn.selection.top_indices")
def top_indices(
    scores: Array, count: int, *, allowed: Array | None = None, always: Array | None = None
) -> Array:
    """The places of the `count` largest numbers along the last axis, the largest first: (..., n) -> (..., min(count, n)).

    int32. allowed, always: bool arrays that broadcast to scores; what is not allowed is not selected, what is
    always to be there comes before all others. Of equal scores the first is taken. -1 stands where nothing is left;
    a score of -inf or NaN is never selected. The rows are sorted whole, in time O(n log n).

    >>> import numpy as np
    >>> top_indices(np.array([3.0, 5.0, 5.0, -np.inf]), 2)
    array([1, 2], dtype=int32)
    >>> top_indices(np.array([3.0, 5.0]), 2, allowed=np.array([True, False]))
    array([ 0, -1], dtype=int32)
    """
    who = "polyattn.selection.top_indices"
    backend = real(who, "scores", scores)
    count = size(who, "count", count, 1)
    if scores.ndim == 0:
        raise ValueError(f"{who}: expected scores (..., n), got a single number; give it an axis")
    for name, x in (("allowed", allowed), ("always", always)):
        if x is not None and (array(who, name, x) is not backend or not backend.isdtype(x.dtype, "bool")):
            raise TypeError(
                f"{who}: expected {name} of bool and of {backend.name}, got {shown(x)}; True = may be selected"
            )
    return top(scores, count, allowed, always)


def pooled(key: Array, block_size: int) -> Array:
    backend = backend_of(key)
    xp, (*lead, keys, width) = backend.xp, key.shape
    x = backend.astype(key, backend.compute_dtype(key.dtype))
    whole = keys // block_size
    blocks = xp.reshape(x[..., : whole * block_size, :], (*lead, whole, block_size, width))
    means = xp.mean(blocks, axis=-2)
    if whole * block_size < keys:
        means = xp.concat((means, xp.mean(x[..., whole * block_size :, :], axis=-2, keepdims=True)), axis=-2)
    return backend.astype(means, key.dtype)


def top(scores: Array, count: int, allowed: Array | None, always: Array | None) -> Array:
    backend = backend_of(scores)
    xp = backend.xp
    scores = backend.stop_gradient(scores)
    if always is not None:
        scores = xp.where(always, xp.inf, scores)
    if allowed is not None:
        scores = xp.where(allowed, scores, -xp.inf)
    # The negative, so that NaN is last, as -inf is, and of equal ones the first stays first.
    order = xp.argsort(-scores, axis=-1, stable=True)[..., : min(count, scores.shape[-1])]
    there = xp.take_along_axis(scores, order, axis=-1) > -xp.inf
    return xp.where(there, backend.astype(order, xp.int32), -1)
