"""Heads and masks as layers pass them on: heads first, heads side by side, one mask of several."""

from __future__ import annotations

from functools import reduce
from operator import and_
from typing import Any, NamedTuple

from polyattn.arrays import Array, backend_of, is_array
from polyattn.layers.layer import linear
from polyattn.masks import Mask, from_array, mask_mod
from polyattn.rotary import Rotary

__all__ = ["Handed", "all_of", "check_length", "heads_first", "joined", "positions_of", "reach", "turned"]


class Handed(NamedTuple):
    """Where a call without earlier tokens has its cache: the keys and values, turned, that other layers share."""

    key: Any = None  # (..., Hkv, S, D), None before the layer came that has them
    value: Any = None


def reach(rotary: Rotary, positions: Array) -> dict[str, Array]:
    """The length of a text, as its last position says it, for a rotary embedding that asks for it."""
    if rotary.scaling is None or not rotary.scaling.needs_length or 0 in positions.shape:
        return {}
    return {"length": backend_of(positions).xp.max(positions) + 1}


def heads_first(x: Array) -> Array:
    """(..., L, H, D) -> (..., H, L, D), and back."""
    xp = backend_of(x).xp
    axes = list(range(x.ndim))
    axes[-3], axes[-2] = axes[-2], axes[-3]
    return xp.permute_dims(x, tuple(axes))


def joined(heads: Array, w_o: Array) -> Array:
    """The heads (..., H, L, E) side by side, through w_o (H, E, dim): (..., L, dim)."""
    xp = backend_of(heads).xp
    heads = heads_first(heads)
    width = w_o.shape[0] * w_o.shape[1]
    return linear(xp.reshape(heads, (*heads.shape[:-2], width)), xp.reshape(w_o, (width, w_o.shape[2])))


def all_of(*given: Any) -> Any:
    """One mask: a key is seen where each one says so that is there."""
    known = [m for m in given if m is not None]
    if len(known) < 2:
        return known[0] if known else None
    return reduce(
        and_, (m if isinstance(m, Mask) else from_array(m) if is_array(m) else mask_mod(m) for m in known)
    )


def positions_of(x: Array, start: int | Array) -> Array:
    """Where the tokens of x (..., L, E) stand: start, start + 1, ...; (L,), or (B, L) for a start of each item."""
    backend = backend_of(x)
    if is_array(start) and start.ndim == 1:
        start = start[:, None]
    return backend.arange(0, x.shape[-2], x) + start


def turned(
    rotary: Rotary, q: Array, k: Array | None, at: Array, at_keys: Array
) -> tuple[Array, Array | None]:
    """q and k, if it is there, turned to their positions; angles that are those of both are computed once."""
    if k is not None and at is at_keys:
        return rotary.both(q, k, at, **reach(rotary, at))
    q = rotary(q, at, **reach(rotary, at))
    return q, k if k is None else rotary(k, at_keys, **reach(rotary, at_keys))


def check_length(who: str, most: int | None, keys: int | Array) -> None:
    """A ValueError where more tokens come than a layer is made for, if their number is known."""
    if most is None:
        return
    if is_array(keys):
        backend = backend_of(keys)
        if not backend.is_concrete(keys):
            return
        with backend.eager():
            keys = backend.to_list(backend.xp.max(keys))
    if keys > most:
        raise ValueError(
            f"{who}: expected at most context_length={most} tokens, got {keys}; cut the input, or make the layer for more"
        )
