"""The arguments that say where rows and keys stand: offsets, or a list of positions for a side."""

from __future__ import annotations

import math
from typing import Any

from polyattn import mods
from polyattn.arrays import Array, backend_of, is_array, readable
from polyattn.calls import shown
from polyattn.masks.algebra import Mask
from polyattn.places import ORIGIN, Places, brought_near, check_near
from polyattn.problem.call import Call

#: The options that `places` reads: where things stand, and what compares that.
READS = (
    "query_offset",
    "key_offset",
    "query_positions",
    "key_positions",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "mask",
    "is_causal",
    "score_mod",
)


def places(call: Call) -> Places:
    """query_offset, key_offset, query_positions and key_positions: where rows and keys stand."""
    frame = call.frame
    listed = {side: call.get(f"{side}_positions") is not None for side in ("query", "key")}
    for side, has_list in listed.items():
        if has_list and call.get(f"{side}_offset") is not None:
            raise ValueError(
                f"{call.who}: expected {side}_positions or {side}_offset, got both; positions say where every "
                f"{'row' if side == 'query' else 'key'} stands, an offset only where the first does"
            )
    if call.get("query_offset") is None and not listed["query"] and _compares(call):
        if listed["key"]:
            raise ValueError(
                f"{call.who}: expected query_positions or query_offset beside key_positions, because the mask or "
                "score_mod compares positions; got None, which leaves open where the queries stand: pass both"
            )
        if frame.rows != frame.keys:
            raise ValueError(
                f"{call.who}: expected query_offset, because the mask or score_mod compares positions "
                f"and L = {frame.rows} differs from S = {frame.keys}; got None, which is ambiguous: "
                "query_offset=0 aligns the first rows (PyTorch, JAX, Keras), query_offset='end' the last "
                "(FlashAttention, MLX, decoding with a cache)"
            )
    key = _listed(call, "key", frame.keys) if listed["key"] else _offset(call, "key")
    query = _listed(call, "query", frame.rows) if listed["query"] else _offset(call, "query")
    if isinstance(query, str):
        if listed["key"]:
            raise ValueError(
                f"{call.who}: expected query_offset to be a number beside key_positions, got 'end', which only "
                "an offset of the keys defines; pass query_positions"
            )
        query = key + (frame.keys - frame.rows)
    if call.backend.may_remember() and 0 not in frame[:3]:  # a compiler would take the bound for a condition
        check_near(
            call.who, [(_name(call, "query"), query, frame.rows), (_name(call, "key"), key, frame.keys)]
        )
    query, key = (_as_int32(where) for where in (query, key))
    if isinstance(query, int) and isinstance(key, int) and call.origin is ORIGIN:
        if query == 0 == key:
            return call.origin  # the default of every call
    elif not isinstance(query, int) and not is_array(query):
        query = call.backend.symbol(query)
    return Places(query, key, call.origin.batch, call.origin.head)


def _compares(call: Call) -> bool:
    """Whether something compares positions of queries with positions of keys."""
    given, mod = call.get("mask"), call.get("score_mod")
    by_mask = given.compares_positions if isinstance(given, Mask) else callable(given)
    return bool(
        call.is_causal or by_mask or (mod is not None and callable(mod) and mods.compares_positions(mod))
    )


def _name(call: Call, side: str) -> str:
    """The argument that says where a side stands."""
    return f"{side}_{'offset' if call.get(f'{side}_positions') is None else 'positions'}"


def _as_int32(where: Any) -> Any:
    """Arrays of positions in int32; what lies too far away has been refused, unless nobody can read it."""
    if not is_array(where):
        return where
    backend = backend_of(where)
    return backend.astype(where, backend.xp.int32) if readable(where) else brought_near(where)


def _offset(call: Call, side: str) -> Any:
    name, frame = f"{side}_offset", call.frame
    offset = call.get(name)
    if offset is None:
        return 0
    if type(offset) is int:  # asked first: compilers have symbols of integers
        return offset
    end = " or 'end'" if side == "query" else ""
    if isinstance(offset, str):
        if offset != "end" or not end:
            raise ValueError(
                f"{call.who}: expected {name} to be an integer, an integer array{end}, got {offset!r}; "
                + ("'end' is S - L" if end else "it is the position of key 0")
            )
        return offset
    if is_array(offset):
        call.here(name, [offset])
        if not call.backend.isdtype(offset.dtype, "integral"):
            raise TypeError(
                f"{call.who}: expected {name} to be of an integer dtype, got {offset.dtype}; "
                "positions are whole numbers"
            )
        shape = tuple(offset.shape)
        if shape not in ((), (1,), (frame.batch,), frame.lead):
            raise ValueError(
                f"{call.who}: expected {name} to be one integer or of shape ({frame.batch},), one "
                f"per batch item, got shape {shape}; the batch is every axis before the head axis"
            )
        return call.backend.xp.reshape(offset, (-1,)) if len(shape) > 1 else offset
    if isinstance(offset, (bool, type)) or not hasattr(offset, "__index__"):
        raise TypeError(
            f"{call.who}: expected {name} to be an integer, an integer array{end}, "
            f"got {shown(offset)}; it is the position of {'query row' if side == 'query' else 'key'} 0"
        )
    return int(offset.__index__())


def _listed(call: Call, side: str, size: int) -> Array:
    """query_positions or key_positions as (B|1, size)."""
    name, given, frame = f"{side}_positions", call.get(f"{side}_positions"), call.frame
    letter = "L" if side == "query" else "S"
    if not is_array(given):
        raise TypeError(
            f"{call.who}: expected {name} to be an integer array ({letter},) or (B, {letter}), got "
            f"{type(given).__name__}; make it an array of query's library"
        )
    call.here(name, [given])
    if not call.backend.isdtype(given.dtype, "integral"):
        raise TypeError(
            f"{call.who}: expected {name} to be of an integer dtype, got {given.dtype}; positions are whole numbers"
        )
    shape = tuple(given.shape)
    if shape not in ((size,), (1, size), (frame.batch, size), (*frame.lead, size)):
        raise ValueError(
            f"{call.who}: expected {name} of shape ({size},) or ({frame.batch}, {size}), got {shape}; give one "
            f"position per {'query row' if side == 'query' else 'key'}, or one list per batch item"
        )
    return call.backend.xp.reshape(given, (math.prod(shape[:-1]), size))
