"""Additive attention: a small network scores each query against each key, without an array of size L S A."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, overload

from polyattn import _attention, gradients
from polyattn._attention import AuxRequest, Wish
from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, shown
from polyattn.problem import pose
from polyattn.problem.options import spelled_out

__all__ = ["additive_attention", "additive_attention_vjp", "additive_scores"]

TILE = 2**20  # the most numbers of one intermediate array


@overload
def additive_attention(
    query: SameArray, key: Array, value: Array, weight: Array, *, return_aux: None = None, **options: Any
) -> SameArray: ...
@overload
def additive_attention(
    query: SameArray, key: Array, value: Array, weight: Array, *, return_aux: AuxRequest, **options: Any
) -> tuple[SameArray, _attention.AttentionAux]: ...
@answers("polyattn.additive.additive_attention")
@spelled_out
def additive_attention(
    query: Array,
    key: Array,
    value: Array,
    weight: Array,
    *,
    return_aux: AuxRequest | None = None,
    implementation: Wish = "auto",
    **options: Any,
) -> Any:
    """softmax_j(v . tanh(q_i + k_j)) applied to the values: attention as it was first.

    Shapes: query (..., H, L, A), key (..., Hkv, S, A), value (..., Hkv, S, E), weight v (A,) ->
    (..., H, L, E). The projections W_q, W_k of the source are the caller's: see `layers.AdditiveAttention`.
    options: mask, is_causal, bias, sinks, dropout_rate, return_aux, ... as `attention` takes them, but for scale,
    score_mod and layout; this is `attention` over the scores of `additive_scores`. Memory O(L S), never O(L S A).

    Source: Bahdanau 2014, arXiv:1409.0473, section A.1.2.

    >>> import numpy as np
    >>> x = np.zeros((2, 4))
    >>> additive_attention(x, x, np.eye(2), np.ones(4))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    how: dict[str, Any] = {"return_aux": return_aux, "implementation": implementation}
    return attend("polyattn.additive.additive_attention", query, key, value, weight, **how, **options)


@answers("polyattn.additive.additive_attention_vjp")
@spelled_out
def additive_attention_vjp(
    query: SameArray,
    key: Array,
    value: Array,
    weight: Array,
    *,
    implementation: Wish = "auto",
    **options: Any,
) -> tuple[SameArray, Callable[[Array], dict[str, Array]]]:
    """`additive_attention` and its pullback, on any array library.

        out, pullback = additive_attention_vjp(query, key, value, weight, ...)
        gradients = pullback(d_out)      # for "query", "key", "value", "weight", and "bias", "sinks" if they are arrays

    With t = tanh(q_i + k_j) and the gradient ds_ij of the score s_ij = v . t: dv = sum_ij ds_ij t, and v (1 - t^2) ds_ij
    summed over j is dq_i, over i dk_j. In the tiles of `additive_scores`, so that memory stays O(L S).

    Source: Bahdanau 2014, arXiv:1409.0473, section A.1.2.

    >>> import numpy as np
    >>> x = np.zeros((2, 4))
    >>> out, pullback = additive_attention_vjp(x, x, np.eye(2), np.ones(4))
    >>> pullback(np.ones((2, 2)))["value"]
    array([[1., 1.],
           [1., 1.]])
    """
    who = "polyattn.additive.additive_attention_vjp"
    given = {"query": query, "key": key, "value": value, "weight": weight}
    given |= {name: options.pop(name) for name in ("bias", "sinks") if is_array(options.get(name))}

    def call(given: dict[str, Any], options: dict[str, Any]) -> Any:
        return attend(who, **given, **options, implementation=implementation)

    out, back = gradients.vjp(call, given, options)
    return out, lambda d_out: back(d_out)[0]


def attend(who: str, query: Array, key: Array, value: Array, weight: Array, **options: Any) -> Any:
    """`additive_attention` for a layer: errors speak in the name of what the user called."""
    bias = options.pop("bias", None)
    for refused in ("scale", "score_mod", "layout"):
        if refused in options:
            raise ValueError(
                f"{who}: expected no {refused}, got {shown(options[refused])}; the scores are not products, and heads come "
                "before the length"
            )
    backend = _check(who, (query, key, value), weight, bias)
    scores = _scores(backend, query, key, weight)
    if bias is not None:
        bias = backend.astype(bias, scores.dtype)
        scores = backend.xp.where(bias == -backend.xp.inf, bias, scores + bias)  # it hides NaN too
    return _attention.attend(who, query[..., :0], key[..., :0], value, bias=scores, scale=1.0, **options)


@answers("polyattn.additive.additive_scores")
def additive_scores(query: Array, key: Array, weight: Array) -> Array:
    """v . tanh(q_i + k_j) for all i, j: (..., H, L, A), (..., Hkv, S, A), (A,) -> (..., H, L, S).

    In tiles of queries, forward and backward, so that no more than 2^20 numbers (or S A, if that is more)
    exist beside the result. In the compute dtype.

    >>> import numpy as np
    >>> additive_scores(np.zeros((1, 2)), np.array([[0.0, 0.0], [9.0, -9.0]]), np.array([1.0, 1.0]))
    array([[0., 0.]])
    """
    backend = _check("polyattn.additive.additive_scores", (query, key, key), weight)
    return _scores(backend, query, key, weight)


def _scores(backend: Backend, query: Array, key: Array, weight: Array) -> Array:
    xp = backend.xp
    compute = backend.compute_dtype(query.dtype)
    q, k, v = (backend.astype(x, compute) for x in (query, key, weight))
    if q.ndim > 2 and q.shape[-3] != k.shape[-3]:
        k = xp.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)
    # NaN is computed as 0 and put back into the scores: a key that is hidden sends none into the gradients.
    no_q, no_k = (xp.any(xp.isnan(x), axis=-1, keepdims=True) for x in (q, k))
    q, k = (xp.where(xp.isnan(x), 0.0, x) for x in (q, k))
    return xp.where(no_q | xp.matrix_transpose(no_k), xp.nan, _in_tiles(backend, q, k, v))


def _in_tiles(backend: Backend, q: Array, k: Array, v: Array) -> Array:
    xp = backend.xp
    lead = tuple(n if m == 1 else m for n, m in zip(q.shape[:-2], k.shape[:-2], strict=True))
    length, keys, width = q.shape[-2], k.shape[-2], q.shape[-1]
    rows = max(TILE // max(math.prod(lead) * keys * width, 1), 1)
    if rows >= length or not backend.may_remember():  # torch.compile fuses the formula
        return _tile(backend, q, k, v)

    # (n, lead, rows, A): whole tiles, and what is left over as a call of its own
    whole = length // rows * rows

    def forward(arrays: Sequence[Array]) -> tuple[Array]:
        q, k, v = arrays
        (tiles,) = backend.map(
            lambda i: (_tile(backend, backend.tile(q, i * rows, rows, -2), k, v),), whole // rows
        )
        return (xp.reshape(xp.moveaxis(tiles, 0, -3), (*lead, whole, keys)),)

    def backward(arrays: Sequence[Array], outputs: Any, cotangents: Sequence[Array]) -> Sequence[Array]:
        q, k, v = arrays
        (d_scores,) = cotangents

        def step(i: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            d_q, d_k, d_v = sums
            mine, d_k_i, d_v_i = _tile_vjp(
                backend, backend.tile(q, i * rows, rows, -2), k, v, backend.tile(d_scores, i * rows, rows, -2)
            )
            start = (*(0 for _ in lead), i * rows, 0)
            return backend.add_at(d_q, start, mine), d_k + d_k_i, d_v + d_v_i

        zeros = (xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v))
        return list(backend.fold(whole // rows, step, zeros))

    q, k = xp.broadcast_to(q, (*lead, length, width)), xp.broadcast_to(k, (*lead, keys, width))
    (scores,) = backend.custom_vjp(forward, backward, (q[..., :whole, :], k, v))
    if whole == length:
        return scores
    return xp.concat((scores, _tile(backend, q[..., whole:, :], k, v)), axis=-2)


def _tile(backend: Backend, q: Array, k: Array, v: Array) -> Array:
    return backend.xp.sum(backend.xp.tanh(q[..., :, None, :] + k[..., None, :, :]) * v, axis=-1)


def _tile_vjp(backend: Backend, q: Array, k: Array, v: Array, d_scores: Array) -> tuple[Array, Array, Array]:
    """The gradients of sum(_tile(q, k, v) * d_scores) for q, k and v."""
    xp = backend.xp
    bent = xp.tanh(q[..., :, None, :] + k[..., None, :, :])
    d = d_scores[..., None]
    d_inner = d * v * ((1.0 - bent) * (1.0 + bent))
    d_v = xp.sum(d * bent, axis=tuple(range(bent.ndim - 1)))
    return xp.sum(d_inner, axis=-2), xp.sum(d_inner, axis=-3), d_v


def _check(who: str, qkv: Sequence[Array], weight: Array, bias: Array | None = None) -> Backend:
    """What `attention` says of query, key, value and bias, and what is to be said of weight."""
    backend = pose(who, *qkv, bias=bias).backend
    query, width = qkv[0], qkv[0].shape[-1]
    if not is_array(weight) or backend_of(weight) is not backend or weight.dtype != query.dtype:
        got = weight.dtype if is_array(weight) else "no array"
        raise TypeError(
            f"{who}: expected weight of the library and dtype of query, {backend.name} and {query.dtype}, got "
            f"{type(weight).__name__} ({got}); convert it"
        )
    if tuple(weight.shape) != (width,):
        raise ValueError(
            f"{who}: expected weight of shape ({width},), as wide as query and key, got {tuple(weight.shape)}; project "
            "query and key to its width"
        )
    return backend
