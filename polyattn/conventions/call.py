"""What was asked of an implementation: a call of attention in plain NumPy, taken apart for its conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn.arrays import backend_of, is_array
from polyattn.masks.algebra import And, Mask
from polyattn.masks.arbitrary import Function
from polyattn.masks.relative import Window
from polyattn.mods import Compose, Softcap
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["Call", "call_of"]


@dataclass(frozen=True)
class Call:
    """What was asked of an implementation, in NumPy: the parts of a problem that conventions treat differently."""

    q: Floats  # (B, Hq, L, D) float64
    k: Floats  # (B, Hkv, S, D)
    v: Floats  # (B, Hkv, S, E)
    mask: Floats | None = None  # bool, broadcasting to (B, Hq, L, S): all but causality and the window
    is_causal: bool = False
    window: tuple[int | None, int | None] | None = None  # neighbours on each side
    offset: int = 0  # position of query row 0
    offsets: tuple[int, ...] | None = None  # of each batch item, where they differ: see `items.one_by_one`
    scale: float = 1.0
    softcap: float | None = None
    shift: Floats | None = None  # what other mods add, broadcasting to the scores
    bias: Floats | None = None
    sinks: Floats | None = None  # (Hq,)
    rotary: Rotary | None = None  # still to be applied to q and k
    embed_dim: int = 0  # width of the model
    # What nobody can ask for, and an implementation may do nevertheless; None is as asked.
    temperature: Floats | None = (
        None  # what the product of query and key is multiplied by, as (B|1, Hq|1, L|1, 1)
    )
    fill: float | None = None  # what hidden scores hold, in place of -inf
    positions: tuple[Floats, Floats] | None = None  # of queries and keys for rotary, (B|1, L) and (B|1, S)
    added: Floats | None = None  # to the output, broadcasting to it
    order: Floats | None = None  # (L,): the query row whose answer stands in each row

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, L, S)"""
        return (*self.q.shape[:3], self.k.shape[2])

    def of(self, q: Floats, k: Floats, v: Floats) -> Call:
        """The same call of other arrays."""
        return replace(self, q=q, k=k, v=v)


def call_of(
    query: Any,
    key: Any,
    value: Any,
    context: Mapping[str, Any],
    *,
    who: str = "polyattn.conventions.call_of",
    per_item: bool = False,
) -> Call:
    """The call that arguments of `polyattn.attention` describe, of any library, plus rotary= and embed_dim=.

    who: the function that the user called, which errors name. per_item: whether query_offset may be one for each batch
    item, for a caller that asks `one_by_one`.
    """
    given = dict(context)
    layout = given.pop("layout", "BHLD")
    if layout not in ("BHLD", "BLHD"):
        raise ValueError(f"{who}: expected layout 'BHLD' or 'BLHD', got {layout!r}; transpose the arrays")
    q, k, v = (
        _four(who, _floats(who, name, x), layout)
        for name, x in (("query", query), ("key", key), ("value", value))
    )
    batch = max(x.shape[0] for x in (q, k, v))
    if (
        any(x.shape[0] not in (1, batch) for x in (q, k, v))
        or k.shape[1:3] != v.shape[1:3]
        or q.shape[3] != k.shape[3]
    ):
        raise ValueError(
            f"{who}: expected query (B, Hq, L, D), key (B, Hkv, S, D) and value (B, Hkv, S, E), got "
            f"{q.shape}, {k.shape} and {v.shape} (in layout BHLD); do they belong together?"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"{who}: expected Hkv to divide Hq, got {k.shape[1]} and {q.shape[1]}; are the axes in order?"
        )
    q, k, v = (np.broadcast_to(x, (batch, *x.shape[1:])) for x in (q, k, v))
    shape = (*q.shape[:3], k.shape[2])
    offsets = _offsets(who, given.pop("query_offset", None), shape, per_item)
    offset = int(offsets[0])
    call: dict[str, Any] = {"q": q, "k": k, "v": v, "offset": offset}
    if len(offsets) > 1:
        call["offsets"] = tuple(int(x) for x in offsets)
    call["is_causal"] = bool(given.pop("is_causal", False))
    mask = given.pop("mask", None)
    if mask is not None:
        call |= _mask(who, mask, shape, offsets, call["is_causal"])
        _check_fit(who, "mask", call.get("mask"), shape)
    scale = given.pop("scale", None)
    if scale is None:
        scale = 1.0 / math.sqrt(q.shape[3]) if q.shape[3] else 1.0
    if is_array(scale):
        scale = _plain(scale)
        if scale.ndim:
            raise ValueError(f"{who}: expected scale to be a number, got one per head; ask head by head")
    call["scale"] = float(scale)
    if (mod := given.pop("score_mod", None)) is not None:
        call |= _mods(who, mod, shape, offsets)
    if (bias := given.pop("bias", None)) is not None:
        call["bias"] = _four(who, _floats(who, "bias", bias), "BHLD")
        _check_fit(who, "bias", call["bias"], shape)
    if (sinks := given.pop("sinks", None)) is not None:
        sinks = _floats(who, "sinks", np.asarray(_plain(sinks)))
        if sinks.shape not in ((), (1,), (shape[1],)):
            raise ValueError(
                f"{who}: expected sinks of shape ({shape[1]},), one per query head, got {sinks.shape}; do they "
                "belong to it?"
            )
        call["sinks"] = np.broadcast_to(sinks, (shape[1],))
    call["rotary"] = given.pop("rotary", None)
    call["embed_dim"] = given.pop("embed_dim", None) or shape[1] * q.shape[3]
    if given:
        raise TypeError(
            f"{who}: expected arguments of polyattn.attention that have conventions, rotary or embed_dim, "
            f"got {', '.join(sorted(given))}; leave them out"
        )
    return Call(**call)


def _offsets(who: str, given: Any, shape: tuple[int, int, int, int], per_item: bool) -> Floats:
    """The position of query row 0: one for all items, or one for each where they differ."""
    if given is None:
        return np.zeros(1, int)
    if isinstance(given, str) and given == "end":
        return np.array([shape[3] - shape[2]])
    found = _plain(given)
    if found.ndim and not per_item:
        raise ValueError(f"{who}: expected one query_offset, got one per batch item; ask item by item")
    if found.ndim > 1 or found.size not in (1, shape[0]) or found.dtype.kind not in "iu":
        raise ValueError(
            f"{who}: expected query_offset to be an integer, {shape[0]} of them or 'end', got {found.dtype} of shape "
            f"{found.shape}; give the position of query row 0"
        )
    found = found.reshape(-1).astype(int)
    return found[:1] if (found == found[0]).all() else found


def _plain(x: Any) -> Floats:
    return np.asarray(backend_of(x).to_numpy(x) if is_array(x) else x)


def _floats(who: str, name: str, x: Any) -> Floats:
    x = _plain(x)
    if x.dtype.kind not in "fV" and x.dtype.name != "bfloat16":
        raise TypeError(f"{who}: expected {name} to be a real floating array, got {x.dtype}; convert it")
    wide: Floats = x.astype(np.float64)
    return wide


def _four(who: str, x: Floats, layout: str) -> Floats:
    """(B, H, L, D), whatever leading axes and layout it had."""
    if not 2 <= x.ndim <= 4:
        repair = "add axes" if x.ndim < 2 else "join the leading axes"
        raise ValueError(f"{who}: expected arrays of rank 2 to 4, got shape {x.shape}; {repair}")
    if layout == "BLHD" and x.ndim > 2:
        x = x.swapaxes(-2, -3)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _check_fit(who: str, name: str, x: Floats | None, shape: tuple[int, int, int, int]) -> None:
    if x is not None and not (
        x.ndim == 4 and all(n in (1, size) for n, size in zip(x.shape, shape, strict=True))
    ):
        raise ValueError(
            f"{who}: expected a {name} that broadcasts to the scores (B, Hq, L, S) = {shape}, got shape {x.shape}; "
            "add or move its axes"
        )


def _mask(
    who: str, mask: Any, shape: tuple[int, int, int, int], offsets: Floats, causal: bool
) -> dict[str, Any]:
    """Causality, the window and the rest of a mask, apart."""
    if callable(mask) and not isinstance(mask, Mask) and not is_array(mask):
        mask = Function(mask)
    if not isinstance(mask, Mask):
        array = _plain(mask)
        if array.dtype != bool:
            raise TypeError(
                f"{who}: expected a bool mask, True = may attend, got {array.dtype}; additive values are bias="
            )
        return {"mask": array.reshape((1,) * (4 - array.ndim) + array.shape)}
    found: dict[str, Any] = {}
    rest = []
    for part in _conjuncts(mask):
        bounded = isinstance(part, Window) and (part.left is not None or part.right != 0)
        if isinstance(part, Window) and not (bounded and "window" in found):
            causal = causal or part.right == 0  # the one thing that both names say
            if bounded:
                found["window"] = (part.left, None if part.right == 0 else part.right)
        else:
            rest.append(part)
    for part in rest:
        dense = np.asarray(
            part.dense(
                shape[2],
                shape[3],
                batch=shape[0],
                heads=shape[1],
                query_offset=offsets if len(offsets) > 1 else int(offsets[0]),
            )
        )
        found["mask"] = dense & found.get("mask", True)
    return found | {"is_causal": causal}


def _conjuncts(mask: Mask) -> list[Mask]:
    return [*_conjuncts(mask.left), *_conjuncts(mask.right)] if isinstance(mask, And) else [mask]


def _mods(who: str, mod: Any, shape: tuple[int, int, int, int], offsets: Floats) -> dict[str, Any]:
    """A soft cap, and what the other mods add."""
    parts = list(mod.parts) if isinstance(mod, Compose) else [mod]
    found: dict[str, Any] = {}
    for i, part in enumerate(parts):
        if isinstance(part, Softcap) and i == 0:
            found["softcap"] = float(_plain(part.cap))
            continue
        b, h, q, kv = np.ix_(*(np.arange(n) for n in shape))
        zero, one, low = (
            np.asarray(part(np.full(shape, x), b, h, q + offsets[:, None, None, None], kv))
            for x in (0.0, 1.0, -2.0)
        )
        if not (np.allclose(one - zero, 1.0) and np.allclose(low - zero, -2.0)):
            raise ValueError(
                f"{who}: expected a score_mod that is softcap first and adds to the scores after that, got "
                f"{part!r}; leave it out of both sides"
            )
        found["shift"] = found.get("shift", 0.0) + zero
    return found
