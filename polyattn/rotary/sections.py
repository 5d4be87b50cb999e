"""Which pair of entries turns by which axis, where a token has a position on several: time, height, width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from polyattn.arrays import Array, backend_of
from polyattn.calls import shown, size

Order = Literal["chunked", "interleaved", "axial"]


def checked(who: str, sections: Any, order: Any) -> tuple[int, ...] | None:
    """The numbers of pairs of every axis, as a tuple."""
    if not isinstance(order, str) or order not in get_args(Order):
        raise ValueError(
            f"{who}: expected section_order 'chunked' (Qwen2-VL), 'interleaved' (Qwen3-VL) or 'axial' (vision encoders), "
            f"got {shown(order)}; pass one of these"
        )
    if sections is None:
        if order != "chunked":
            raise ValueError(
                f"{who}: expected sections with section_order={order!r}, got None; say how many pairs each axis has"
            )
        return None
    if not isinstance(sections, Sequence) or isinstance(sections, str) or not sections:
        raise TypeError(
            f"{who}: expected sections as a tuple of integers, the pairs of each axis, got {shown(sections)}; "
            "Qwen2-VL has (16, 24, 24)"
        )
    found = tuple(size(who, "every section", n, 1) for n in sections)
    if order == "interleaved" and max(found) > found[0]:
        raise ValueError(
            f"{who}: expected the first of interleaved sections to be the largest, got {found}; axes take pairs in "
            "turn, and the first what is left"
        )
    return found


def axes(sections: Sequence[int], order: Order) -> list[int]:
    """The axis of each pair.

    >>> axes((2, 1, 1), "chunked"), axes((2, 1, 1), "interleaved")
    ([0, 0, 1, 2], [0, 1, 2, 0])
    """
    if order != "interleaved":
        return [axis for axis, n in enumerate(sections) for _ in range(n)]
    count = len(sections)
    return [i % count if i // count < sections[i % count] else 0 for i in range(sum(sections))]


def of_pairs(positions: Array, sections: Sequence[int], order: Order) -> Array:
    """Positions (axes, ..., L) as those of every pair, (..., L, pairs)."""
    backend = backend_of(positions)
    numbers = backend.asarray(axes(sections, order), backend.xp.int32, positions)
    found = backend.take(positions, numbers, axis=0)
    return backend.xp.permute_dims(found, (*range(1, found.ndim), 0))
