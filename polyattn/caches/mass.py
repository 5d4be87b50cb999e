"""How much each key is looked at: the sums of the weights over the queries, and the keys that have most of it."""

from __future__ import annotations

from typing import Unpack

from polyattn._attention import attention_vjp
from polyattn.arrays import Array
from polyattn.calls import answers, real, size
from polyattn.problem import Options

__all__ = ["attention_mass", "heaviest"]


@answers("polyattn.caches.attention_mass")
def attention_mass(query: Array, key: Array, **options: Unpack[Options]) -> Array:
    """The weights that keys get from all queries of all heads that read them, (..., Hkv, S).

        mass_j = sum_i w_ij,   w = softmax(scale q k^T)      the gradient of sum_i out_i for v_j, whatever v is

    query (..., Hq, L, D), key (..., Hkv, S, D), options as `attention` takes them, in layout "BHLD". There is never a
    matrix of L S weights: the pullback of the engine makes them again tile by tile. In the compute dtype, at least
    float32. Over all keys the mass sums to L Hq / Hkv, less what sinks take and rows that see nothing.

    >>> import numpy as np
    >>> x = np.zeros((3, 1))
    >>> attention_mass(x, x, is_causal=True).round(3)  # 1 + 1/2 + 1/3, 1/2 + 1/3, 1/3
    array([1.833, 0.833, 0.333])
    """
    who = "polyattn.caches.attention_mass"
    backend = real(who, "query", query)
    real(who, "key", key)
    if options.get("layout", "BHLD") != "BHLD":
        raise ValueError(f"{who}: expected layout 'BHLD', got {options['layout']!r}; permute the axes")
    compute = backend.compute_dtype(query.dtype)
    q, k = backend.astype(query, compute), backend.astype(key, compute)
    ones = backend.xp.ones((*k.shape[:-1], 1), dtype=compute, device=backend.device(k))
    out, pullback = attention_vjp(q, k, ones, **options)
    gradient: Array = pullback(backend.xp.ones_like(out))["value"]
    return gradient[..., 0]


@answers("polyattn.caches.heaviest")
def heaviest(mass: Array, n: int) -> Array:
    """True for the n largest numbers of mass (..., S), of equal ones for those that come first.

    >>> import numpy as np
    >>> heaviest(np.array([0.1, 3.0, 0.1, 0.5]), 3)
    array([ True,  True, False,  True])
    """
    who = "polyattn.caches.heaviest"
    backend = real(who, "mass", mass)
    n = size(who, "n", n)
    order = backend.xp.argsort(mass, axis=-1, descending=True, stable=True)
    return backend.xp.argsort(order, axis=-1, stable=True) < n
