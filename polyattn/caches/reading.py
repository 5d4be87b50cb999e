"""Reading a cache without appending to it, as a layer does that shares the keys and values of another."""

from __future__ import annotations

from typing import Any

from polyattn._attention import AuxRequest, attend
from polyattn.arrays import Array, backend_of, is_array
from polyattn.caches.cache import Cache
from polyattn.calls import answers, array
from polyattn.masks import from_array, mask_mod
from polyattn.masks.algebra import Mask
from polyattn.masks.lengths import KeyLengths

__all__ = ["cached_attention", "own_options", "without_empty"]

_WHO = "polyattn.caches.cached_attention"
_KNOWN = ("key_offset", "key_positions")  # to the cache


@answers(_WHO)
def cached_attention(
    query: Array,
    cache: Cache,
    *,
    return_aux: AuxRequest | None = None,
    implementation: Any = "auto",
    **options: Any,
) -> Any:
    """`attention` of query (..., Hq, L, D) to the keys and values of any cache, as it is: nothing is appended.

        out = attention(query, cache.key, cache.value, mask=cache.mask & mask, key_positions=cache.positions, ...)

    The queries are those of the latest L tokens unless query_offset or query_positions says otherwise. Takes the options
    of `attention` but for key_offset and key_positions, which the cache knows, and a layout. A cache that has an
    `attend` of its own, as the paged and the quantised one have, is asked to do it.

    Layers that share keys and values read one cache: the first of them appends, the others do this, with queries of their
    own (YOCO, Sun 2024, arXiv:2405.05254; cross-layer attention, Brandon 2024, arXiv:2405.12981).

    >>> import numpy as np
    >>> from polyattn.caches import KVCache
    >>> x = np.array([[[[0.0], [1.0], [2.0]]]])
    >>> cache = KVCache.empty(1, 1, 8, 1, like=x).append(x, x)
    >>> cached_attention(x, cache, is_causal=True).ravel().round(2)
    array([0.  , 0.73, 1.85])
    """
    array(_WHO, "query", query)
    if options.get("query_offset") is None and options.get("query_positions") is None:
        options["query_offset"] = cache.length - query.shape[-2]
    given: dict[str, Any] = {"return_aux": return_aux, "implementation": implementation}
    own = getattr(cache, "attend", None)
    if own is not None:
        return own(query, **given, **options)
    whole = own_options(_WHO, cache, options)
    held = without_empty(cache, options.get("mask"), options.get("bias"), return_aux, implementation)
    if held is not None:
        return attend(_WHO, query, held[0], held[1], **given, **options)
    return attend(_WHO, query, cache.key, cache.value, **given, **whole)


def without_empty(
    cache: Cache, mask: Any, bias: Any, return_aux: Any, implementation: Any
) -> tuple[Array, Array] | None:
    """Keys and values cut to the tokens that are there, so that the capacity costs nothing.

    None where that cannot be: the number of tokens is no Python integer, something of the call goes by slots, programs are
    compiled, for which all steps are to have the same shapes, or an implementation was named, which computes what is there.
    """
    hidden, backend = cache.mask, backend_of(cache.key)
    n = hidden.lengths if isinstance(hidden, KeyLengths) and cache.in_order else None
    if not isinstance(n, int) or backend.jits or not (backend.may_remember() and backend.lengths_are_fixed):
        return None
    if not (isinstance(implementation, str) and implementation == "auto"):
        return None
    by_slots = bias is not None or not (mask is None or (isinstance(mask, Mask) and mask.relative))
    if by_slots or not (return_aux is None or _has_no_keys(return_aux)):
        return None
    return cache.key[..., :n, :], cache.value[..., :n, :]


def _has_no_keys(asked: Any) -> bool:
    """Whether what is asked for beside the output has no axis of keys."""
    return isinstance(asked, AuxRequest) and asked.weights is False and asked.scores is False


def own_options(who: str, cache: Cache, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call with what the cache knows itself."""
    if named := [name for name in _KNOWN if options.get(name) is not None]:
        raise ValueError(
            f"{who}: expected no {named[0]}, since the cache knows where its keys stand, got one; leave it out"
        )
    if options.get("layout", "BHLD") != "BHLD":
        raise ValueError(
            f"{who}: expected query of layout 'BHLD', as caches are, got {options['layout']!r}; permute its axes"
        )
    mask = options.get("mask")
    if mask is not None and not isinstance(mask, Mask):
        mask = from_array(mask) if is_array(mask) else mask_mod(mask)
    whole = {**options, "mask": cache.mask if mask is None else cache.mask & mask}
    return whole if cache.in_order else {**whole, "key_positions": cache.positions}
