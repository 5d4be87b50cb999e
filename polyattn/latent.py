"""Latent attention: keys and values of all heads are maps of one short vector a token, and a cache keeps that vector."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, overload

from polyattn import _attention
from polyattn._attention import AttentionAux, AuxRequest, Wish
from polyattn.arrays import Array, Backend
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, flag, real
from polyattn.problem.options import spelled_out

__all__ = ["latent_attention"]

_WHO = "polyattn.latent.latent_attention"


@overload
def latent_attention(
    query: SameArray, latent: Array, w_uk: Array, w_uv: Array, *, return_aux: None = None, **options: Any
) -> SameArray: ...
@overload
def latent_attention(
    query: SameArray, latent: Array, w_uk: Array, w_uv: Array, *, return_aux: AuxRequest, **options: Any
) -> tuple[SameArray, AttentionAux]: ...
@answers(_WHO)
@partial(spelled_out, without=("layout",))
def latent_attention(
    query: Array,
    latent: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    absorbed: bool | None = None,
    return_aux: AuxRequest | None = None,
    implementation: Wish = "auto",
    **options: Any,
) -> Any:
    """Attention whose keys and values are made from latents: k_h = [c W_uk,h; r], v_h = c W_uv,h.

        expanded    attention([q; t], [c W_uk; r], c W_uv)            H heads of keys and values
        absorbed    attention([q W_uk^T; t], [c; r], c) W_uv          one head, as wide as the latents

    The same, since q . (c W_uk) = (q W_uk^T) . c. Shapes: query [q; t] (..., H, L, N + P), latent [c; r]
    (..., 1, S, R + P), w_uk (R, H, N), w_uv (R, H, E) -> (..., H, L, E). N entries of a query meet the latent c, P
    entries the key r that all heads share, to which rotary positions go. absorbed: None = the one with fewer
    products, which is the absorbed one for few queries beside many keys. scale: None = 1/sqrt(N + P).

    options: mask, is_causal, bias, sinks, query_offset, return_aux, ... as `attention` takes them, but for layout.

    Source: DeepSeek-AI 2024, arXiv:2405.04434, equations 9 to 19; absorbed: section 2.1.2.

    >>> import numpy as np
    >>> q, c = np.ones((2, 1, 3)), np.ones((1, 4, 5))
    >>> w_uk, w_uv = np.ones((4, 2, 2)), np.ones((4, 2, 3))
    >>> latent_attention(q, c, w_uk, w_uv, absorbed=True)
    array([[[4., 4., 4.]],
    <BLANKLINE>
           [[4., 4., 4.]]])
    """
    how: dict[str, Any] = {"absorbed": absorbed, "return_aux": return_aux, "implementation": implementation}
    return attend(_WHO, query, latent, w_uk, w_uv, **how, **options)


def attend(
    who: str,
    query: Array,
    latent: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    absorbed: bool | None = None,
    scale: Any = None,
    **options: Any,
) -> Any:
    """`latent_attention` for a layer: errors speak in the name of what the user called."""
    backend = _check(who, query, latent, w_uk, w_uv)
    rank, plain = w_uk.shape[0], w_uk.shape[-1]
    if absorbed is None:
        few = query.shape[-2], latent.shape[-2]
        absorbed = _saves(*few, rank, plain, w_uv.shape[-1]) if backend.lengths_are_fixed else few[0] == 1
    absorbed = flag(who, "absorbed", absorbed, "None chooses")
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    c, shared = latent[..., :rank], latent[..., rank:]
    if not absorbed:
        key, value = _expanded(backend, c, w_uk), _expanded(backend, c, w_uv)
        shared = backend.xp.broadcast_to(shared, (*key.shape[:-1], shared.shape[-1]))
        key = backend.xp.concat((key, shared), axis=-1)
        return _attention.attend(who, query, key, value, scale=scale, **options)
    turned = backend.xp.permute_dims
    into = _each_head(backend, query[..., :plain], turned(w_uk, (1, 2, 0)))
    query = backend.xp.concat((into, query[..., plain:]), axis=-1)
    found = _attention.attend(who, query, latent, c, scale=scale, **options)
    if options.get("return_aux") is None:
        return _each_head(backend, found, turned(w_uv, (1, 0, 2)))
    return _each_head(backend, found[0], turned(w_uv, (1, 0, 2))), found[1]


def _saves(rows: int, keys: int, rank: int, plain: int, width: int) -> bool:
    """Whether the absorbed form has fewer products: it maps rows instead of keys, and attends in a wider head."""
    return (keys - rows) * rank * (plain + width) > rows * keys * (2 * rank - plain - width)


def _expanded(backend: Backend, c: Array, w: Array) -> Array:
    """c W of every head, one product for all: (..., 1, S, R) and (R, H, N) -> (..., H, S, N)."""
    xp, (rank, heads, width) = backend.xp, w.shape
    *lead, _, keys, _ = c.shape
    flat = backend.linear(xp.reshape(c, (math.prod(lead) * keys, rank)), xp.reshape(w, (rank, heads * width)))
    return xp.moveaxis(xp.reshape(flat, (*lead, keys, heads, width)), -2, -3)


def _each_head(backend: Backend, x: Array, w: Array) -> Array:
    """Head h through its own matrix: (..., H, L, N) and (H, N, M) -> (..., H, L, M), in x's dtype."""
    compute = backend.compute_dtype(x.dtype)
    return backend.astype(backend.matmul(backend.astype(x, compute), backend.astype(w, compute)), x.dtype)


def _check(who: str, query: Array, latent: Array, w_uk: Array, w_uv: Array) -> Backend:
    backend = real(who, "query", query)
    for name, x in (("latent", latent), ("w_uk", w_uk), ("w_uv", w_uv)):
        if real(who, name, x) is not backend or x.dtype != query.dtype:
            raise TypeError(
                f"{who}: expected {name} of the library and dtype of query, {backend.name} and {query.dtype}, got "
                f"{type(x).__name__} ({x.dtype}); convert it"
            )
    if query.ndim < 3 or latent.ndim < 3 or latent.shape[-3] != 1:
        raise ValueError(
            f"{who}: expected query (..., H, L, N + P) and latent (..., 1, S, R + P), got {tuple(query.shape)} and "
            f"{tuple(latent.shape)}; all heads read one latent"
        )
    if w_uk.ndim != 3 or w_uv.ndim != 3 or w_uk.shape[:2] != w_uv.shape[:2]:
        raise ValueError(
            f"{who}: expected w_uk (R, H, N) and w_uv (R, H, E), got {tuple(w_uk.shape)} and {tuple(w_uv.shape)}; both "
            "map latents to heads"
        )
    rank, heads, plain = w_uk.shape
    shared = query.shape[-1] - plain
    if query.shape[-3] != heads or shared < 0 or latent.shape[-1] != rank + shared:
        raise ValueError(
            f"{who}: expected query (..., {heads}, L, {plain} + P) and latent (..., 1, S, {rank} + P), got "
            f"{tuple(query.shape)} and {tuple(latent.shape)}; w_uk is {tuple(w_uk.shape)}"
        )
    return backend
