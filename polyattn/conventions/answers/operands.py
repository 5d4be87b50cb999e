"""Which arrays are taken for query, key and value: mixed up, split out of a packed projection wrongly, heads misread."""

from __future__ import annotations

import numpy as np

from polyattn.conventions.call import Call
from polyattn.truth.spec import Floats

__all__ = ["OVER", "heads_of", "taken"]

#: Layouts that attend over another axis than tokens: the axis of (B, H, L, D) that is exchanged with L.
OVER = {"attends over heads": 1, "attends over batch items": 0}


def taken(call: Call, operands: str, layout: str) -> Call:
    """The call with what an implementation takes for its query, key and value."""
    q, k, v = _mixed_up(call, operands)
    if layout in OVER:
        q, k, v = (x.swapaxes(OVER[layout], 2) for x in (q, k, v))
    elif layout in _PACKINGS:
        q, k, v = _repacked(q, k, v, *_PACKINGS[layout])
    elif layout != "as stated":
        q, k, v = (_split(x, layout) for x in (q, k, v))
    return call.of(q, k, v)


def _mixed_up(call: Call, choice: str) -> tuple[Floats, Floats, Floats]:
    q, k, v = call.q, call.k, call.v
    if choice == "key reshaped, not transposed":
        b, h, s, d = k.shape
        return q, k.reshape(b, h, d, s).swapaxes(2, 3), v
    choices = {
        "as stated": (q, k, v),
        "query and key swapped": (k, q, v),
        "key and value swapped": (q, v, k),
        "query and value swapped": (v, k, q),
        "key for value": (q, k, k),
        "value for key": (q, v, v),
        "query for key": (q, q, v),
        "key for query": (k, k, v),
        "query for key and value": (q, q, q),
    }
    return choices[choice]


def _split(x: Floats, layout: str) -> Floats:
    b, h, n, d = x.shape
    flat = x.swapaxes(1, 2).reshape(b, n, h * d)
    if layout == "split without transpose":
        return flat.reshape(b, h, n, d)
    return flat.reshape(b, n, d, h).transpose(0, 3, 1, 2)  # heads interleaved


#: Packings of one projection: (how it is packed, how it is split).
_PACKINGS = {
    "packed in thirds, split per head": ("thirds", "groups"),
    "packed per head, split in thirds": ("groups", "thirds"),
}


def _repacked(q: Floats, k: Floats, v: Floats, packed: str, split: str) -> tuple[Floats, Floats, Floats]:
    """Query, key and value of one projection (B, L, (Hq + 2 Hkv) D), packed in one order and split in another.

    thirds: all query heads, all key heads, all value heads. groups: for each kv head its query heads, its key and its
    value; with as many of both that is (H, 3, D).
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    group = heads // kv_heads
    columns = np.arange(heads + 2 * kv_heads).reshape(kv_heads, group + 2)
    # The head of a packing by thirds that stands at each place of a packing by groups.
    of_groups = np.concatenate(
        (
            np.arange(heads).reshape(kv_heads, group),
            heads + np.arange(kv_heads)[:, None],
            heads + kv_heads + np.arange(kv_heads)[:, None],
        ),
        axis=1,
    ).ravel()
    joined = np.concatenate((q, k, v), axis=1)
    if packed == "groups":
        joined = joined[:, of_groups]
    if split == "groups":
        order = np.concatenate((columns[:, :group].ravel(), columns[:, group], columns[:, group + 1]))
        joined = joined[:, order]
    return joined[:, :heads], joined[:, heads : heads + kv_heads], joined[:, heads + kv_heads :]


def heads_of(heads: int, kv_heads: int, choice: str) -> tuple[Floats | None, Floats | None]:
    """Which kv head each query head reads, of keys and of values; None where they are grouped as they should be."""
    if not kv_heads:
        raise ValueError("polyattn.conventions.answer: expected kv heads, got none; are the axes in order?")
    index = np.arange(heads)
    grouped = index // (heads // kv_heads)
    choices: dict[str, tuple[Floats | None, Floats | None]] = {
        "grouped": (None, None),
        "tiled": (index % kv_heads, index % kv_heads),
        "keys tiled": (index % kv_heads, None),
        "values tiled": (None, index % kv_heads),
        "first only": (index * 0, index * 0),
        "first value only": (None, index * 0),
        "reversed": (kv_heads - 1 - grouped, kv_heads - 1 - grouped),
    }
    return choices[choice]
