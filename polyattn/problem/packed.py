"""Packed documents are a call with segments and lists of positions: cu_seqlens_q and cu_seqlens_k, said in those words."""

from __future__ import annotations

from typing import Any

from polyattn.arrays import Array, backend_of, eagerly, readable
from polyattn.calls import answers, integral, shown, size
from polyattn.masks.documents import segments
from polyattn.places import standing_in
from polyattn.problem.arguments import as_mask
from polyattn.problem.call import Call

WHO = "polyattn.problem.packed_positions"
PACKED = {"cu_seqlens_q": "L", "cu_seqlens_k": "S"}


@answers(WHO)
def packed_positions(cu_seqlens: Array, tokens: int) -> Array:
    """t - cu_seqlens[d] for the document d of each of the tokens t = 0, 1, ...: positions that begin anew in each document.

    cu_seqlens: integers (n + 1,), 0 and then where each of n documents ends, which may be traced; a token behind the last of
    them gets -1. The result has shape (tokens,), for a rotary embedding or a table of learned positions. ValueError for
    another shape.

    >>> import numpy as np
    >>> packed_positions(np.array([0, 3, 5]), 6)
    array([ 0,  1,  2,  0,  1, -1], dtype=int32)
    """
    backend = integral(WHO, "cu_seqlens", cu_seqlens)
    size(WHO, "tokens", tokens)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"{WHO}: expected cu_seqlens of shape (n + 1,), n >= 1, got {tuple(cu_seqlens.shape)}; it is 0 and "
            "then the sums of the lengths"
        )
    with eagerly([cu_seqlens]):
        document, position = standing_in(cu_seqlens, tokens)
        return backend.xp.where(document < cu_seqlens.shape[0] - 1, position, -1)


def is_packed(call: Call) -> bool:
    """Whether documents are packed, so that dropout counts rows and keys: positions occur once in each document."""
    return call.get("cu_seqlens_q") is not None


def unpacked(call: Call) -> Call:
    """The same call in other words; the call itself if nothing is packed."""
    if call.get("cu_seqlens_q") is None and call.get("cu_seqlens_k") is None:
        return call
    ends, key_ends = _checked(call)
    frame, xp = call.frame, call.backend.xp
    with eagerly([ends, key_ends]):
        document, at = standing_in(ends, frame.rows)
        key_document, key_at = (document, at) if key_ends is ends else standing_in(key_ends, frame.keys)
        count = ends.shape[0] - 1
        key_at = xp.where(key_document < count, key_at, -1)  # behind the last document: an empty slot
        if key_ends is not ends:  # the last query of a document stands at its last key
            more = _lengths(key_ends) - _lengths(ends)
            at = at + more[(xp.where(document < count, document, count - 1),)]
        mask = segments(document, key_document)
    given = call.get("mask")
    said = {
        "mask": mask if given is None else mask & as_mask(call, given),
        "query_positions": at,
        "key_positions": key_at,
    }
    return call._replace(options={**call.options, **said})


def _lengths(ends: Array) -> Array:
    backend = backend_of(ends)
    ends = backend.astype(ends, backend.xp.int32)
    return ends[1:] - ends[:-1]


def _checked(call: Call) -> tuple[Array, Array]:
    """The boundaries of queries and of keys, one array where they are the same."""
    frame, who = call.frame, call.who
    if call.get("cu_seqlens_q") is None:
        raise ValueError(
            f"{who}: expected cu_seqlens_q beside cu_seqlens_k, got None; say where the documents of the queries end too"
        )
    for name in ("query_offset", "key_offset", "query_positions", "key_positions"):
        if call.get(name) is not None:
            raise ValueError(
                f"{who}: expected cu_seqlens_q or {name}, got both; positions begin anew in every document, the last query "
                "of which stands at its last key"
            )
    if call.get("cu_seqlens_k") is None:
        if frame.rows != frame.keys:
            raise ValueError(
                f"{who}: expected cu_seqlens_k, because L = {frame.rows} differs from S = {frame.keys}, got None; say "
                "where the documents of the keys end"
            )
        ends = _ends(call, "cu_seqlens_q", frame.rows)
        return ends, ends
    ends, key_ends = _ends(call, "cu_seqlens_q", frame.rows), _ends(call, "cu_seqlens_k", frame.keys)
    if ends.shape != key_ends.shape:
        raise ValueError(
            f"{who}: expected as many documents of keys as of queries, got cu_seqlens_q of shape {tuple(ends.shape)} and "
            f"cu_seqlens_k of {tuple(key_ends.shape)}; a document without keys ends where the one before it does"
        )
    return ends, key_ends


def _ends(call: Call, name: str, last: int) -> Array:
    given: Any = call.get(name)
    integral(call.who, name, given)
    call.here(name, [given])
    if given.ndim != 1 or given.shape[0] < 2:
        raise ValueError(
            f"{call.who}: expected {name} of shape (n + 1,) for n >= 1 documents, got {tuple(given.shape)}; it is 0 and "
            "then the sums of their lengths"
        )
    if readable(given):
        ends = call.backend.to_list(given)
        if ends[0] != 0 or ends[-1] != last or ends != sorted(ends):
            raise ValueError(
                f"{call.who}: expected {name} to go from 0 to {PACKED[name]} = {last} and never to fall, got {shown(ends)}; it "
                "is 0 and then the sums of the lengths"
            )
    return given
