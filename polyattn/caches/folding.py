"""Attention to keys and values that are stored in another form: made tile by tile, and never as a whole.

The fold of the blockwise engine asks for a tile of keys when it comes to it. Where that tile comes from, from the pages of
a pool or from integers and their scales, is all that a cache says here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from polyattn._attention import AttentionAux, AuxRequest
from polyattn.arrays import Array, backend_of
from polyattn.arrays.leaves import put_in, take_out
from polyattn.calls import array
from polyattn.implementations import Blockwise
from polyattn.implementations.blockwise.forward import forward
from polyattn.implementations.blockwise.plan import plan
from polyattn.implementations.blockwise.tile import Blocks
from polyattn.problem import pose

__all__ = ["Stored", "attend_stored", "folds"]

#: Keys of a tile: of few rows a step of the fold costs more than its products (measured 2026-11-30).
FEW_ROWS, MANY_ROWS = 2048, 512


class Stored(Protocol):
    """Keys or values as a cache stores them: a frozen dataclass, whose arrays compilers see."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, Hkv, S, W), as if they lay there."""

    def cut(self, item: Any, items: int, head: Any, heads: int, start: Any, size: int) -> Array:
        """`size` of them from `start` on, of `items` batch items and `heads` kv heads: (items, heads, size, W)."""


class _Reading(Blocks):
    """Blocks whose keys and values come from where they are stored."""

    def part(self, x: Any, g: Any, start: Any = 0, size: int | None = None, *, kv: bool = False) -> Array:
        if not kv or size is None:
            return super().part(x, g, start, size, kv=kv)
        item, head = self.corner(g)
        return x.cut(item, self.items, head, self.kv_heads, start, size)


def _forward(static: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
    return forward(*put_in(static, arrays))


def folds(who: str, query: Array, implementation: Any, return_aux: Any) -> bool:
    """Whether a call can be answered by the fold: it has no score matrix, and no other kernel reads what is stored."""
    array(who, "query", query)
    if 0 in query.shape or implementation not in ("auto", "blockwise"):
        return False
    return return_aux is None or (
        isinstance(return_aux, AuxRequest) and set(return_aux.names(who)) <= {"lse"}
    )


def attend_stored(
    who: str,
    query: Array,
    key: Stored,
    value: Stored,
    like: Array,
    *,
    unit: int = 1,
    return_aux: AuxRequest | None = None,
    **options: Any,
) -> Any:
    """`attention` of query (B, Hq, L, D) to what is stored, a tile of keys at a time.

    like: gives their dtype and device; unit: how many of them lie together, and are not cut. It is a problem like any
    other, but that its keys lie elsewhere. For decoding: no derivative.
    """
    backend = backend_of(query)
    batch, kv_heads, keys, width = key.shape
    if query.ndim != 4 or (query.shape[0], query.shape[3]) != (batch, width):
        raise ValueError(
            f"{who}: expected query of shape ({batch}, Hq, L, {width}), as the cache is, got {tuple(query.shape)}; "
            "make the cache for this batch"
        )
    if options.get("scale") is None:
        options["scale"] = 1.0 / math.sqrt(width)
    # What is checked of keys are their number, heads, dtype and place, and a column of zeros has all of them.
    column = backend.xp.zeros((1, kv_heads, keys, 1), dtype=like.dtype, device=backend.device(like))
    wanted = () if return_aux is None else return_aux.names(who)
    posed = pose(who, query[..., :1], column, column, wanted=wanted, **options)
    problem = replace(posed, q=query, k=key, v=value)
    tile = max((FEW_ROWS if query.shape[2] < 16 else MANY_ROWS) // unit, 1) * unit
    arrays: list[Array] = []
    static = take_out((problem, plan(problem, Blockwise(keys=tile)), _Reading), arrays)
    out, lse = backend.compiled(_forward, static, arrays)
    out = backend.astype(out, query.dtype)
    return (
        out
        if return_aux is None
        else (out, AttentionAux(lse=lse if wanted else None, implementation="blockwise"))
    )
