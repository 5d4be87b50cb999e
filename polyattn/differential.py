"""Differential attention: what two softmaxes agree on is taken out of the first."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, overload

from polyattn import _attention
from polyattn._attention import AttentionAux, AuxRequest, Wish
from polyattn.arrays import Array, Backend, is_array
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, number, real
from polyattn.problem.options import spelled_out

__all__ = ["DifferentialAux", "differential_attention"]

_WHO = "polyattn.differential.differential_attention"


class DifferentialAux(NamedTuple):
    """What each of the two attentions of a differential one saw."""

    first: AttentionAux
    second: AttentionAux


@overload
def differential_attention(
    query: SameArray, key: Array, value: Array, lam: float | Array, *, return_aux: None = None, **options: Any
) -> SameArray: ...
@overload
def differential_attention(
    query: SameArray, key: Array, value: Array, lam: float | Array, *, return_aux: AuxRequest, **options: Any
) -> tuple[SameArray, DifferentialAux]: ...
@answers(_WHO)
@partial(spelled_out, without=("layout",))
def differential_attention(
    query: Array,
    key: Array,
    value: Array,
    lam: float | Array,
    *,
    return_aux: AuxRequest | None = None,
    implementation: Wish = "auto",
    **options: Any,
) -> Any:
    """(softmax(scale q1 k1^T) - lam softmax(scale q2 k2^T)) v, as a difference of two attentions.

    Shapes: query [q1; q2] (..., Hq, L, 2D), key [k1; k2] (..., Hkv, S, 2D), value (..., Hkv, S, E) -> (..., Hq, L,
    E). lam: a number, or an array () or (Hq,). scale: None = 1/sqrt(D). Neither difference of weights nor any other
    array of L S numbers exists, unless implementation or return_aux ask for one.

    options: mask, is_causal, bias, sinks, dropout_rate, ... as `attention` takes them, but for layout; both
    attentions have them, and drop the same weights, so that dropout is that of the difference. return_aux gives a
    `DifferentialAux` of both.

    Source: Ye 2024, arXiv:2410.05258, equation 1.

    >>> import numpy as np
    >>> q, k, v = np.zeros((1, 2)), np.array([[1.0, 1.0], [-1.0, -1.0]]), np.array([[1.0], [3.0]])
    >>> differential_attention(q, k, v, 0.25)  # 2 - 2 / 4
    array([[1.5]])
    """
    how: dict[str, Any] = {"return_aux": return_aux, "implementation": implementation}
    return attend(_WHO, query, key, value, lam, **how, **options)


def attend(who: str, query: Array, key: Array, value: Array, lam: float | Array, **options: Any) -> Any:
    """`differential_attention` for a layer: errors speak in the name of what the user called."""
    backend = _check(who, query, key)
    half = query.shape[-1] // 2
    asked = options.get("return_aux") is not None
    found = [
        _attention.attend(who, query[part], key[part], value, **options)
        for part in ((..., slice(0, half)), (..., slice(half, None)))
    ]
    first, second = (x[0] for x in found) if asked else found
    out = first - _per_head(who, backend, query, lam) * second
    return (out, DifferentialAux(found[0][1], found[1][1])) if asked else out


def _check(who: str, query: Array, key: Array) -> Backend:
    backend = real(who, "query", query)
    real(who, "key", key)
    for name, x in (("query", query), ("key", key)):
        if x.ndim < 2 or x.shape[-1] % 2:
            raise ValueError(
                f"{who}: expected {name} (..., length, 2 D) of an even width, got {tuple(x.shape)}; its halves are those "
                "of the two softmaxes, side by side"
            )
    return backend


def _per_head(who: str, backend: Backend, query: Array, lam: float | Array) -> float | Array:
    """lam as it is multiplied with (..., H, L, E)."""
    if not is_array(lam):
        return number(who, "lam", lam, "pass a Python float, or an array () or (Hq,)")
    heads = query.shape[-3] if query.ndim > 2 else 1
    if real(who, "lam", lam) is not backend or tuple(lam.shape) not in ((), (heads,)):
        raise ValueError(
            f"{who}: expected lam to be a number, or an array of {backend.name} of shape () or ({heads},), got "
            f"{type(lam).__name__} of shape {tuple(lam.shape)}; one for all heads, or one for each"
        )
    lam = backend.astype(lam, query.dtype)
    return lam if lam.ndim == 0 else backend.xp.reshape(lam, (heads, *(1,) * (min(query.ndim, 3) - 1)))
