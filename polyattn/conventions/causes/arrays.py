"""Mistakes in which numbers are taken for what: heads, layouts, packings, and arrays mixed up."""

from __future__ import annotations

from collections.abc import Callable

from polyattn.conventions.call import Call
from polyattn.conventions.causes.cause import (
    Cause,
    anew,
    batched,
    both,
    equal_widths,
    grouped,
    same_heads,
    say,
    several_heads,
    square,
    unmodified,
)

__all__ = ["ARRAYS"]


def _alike(call: Call) -> bool:
    return call.q.shape == call.k.shape


def _several_kv_heads(call: Call) -> bool:
    return bool(call.k.shape[1] > 1)


def _packing(text: str) -> Callable[[Call], str]:
    """Packed per head as (H, 3, D), or per group of G query heads as (Hkv, G + 2, D)."""
    return lambda call: text.format(
        "per head: (H, 3, D)" if same_heads(call) else "per kv head: (Hkv, G + 2, D)",
    )


_PACKED = both(square, equal_widths, _several_kv_heads)

ARRAYS = (
    Cause("heads", "tiled", say("kv heads tiled: query head h reads kv head h % Hkv, not h // G"), grouped),
    Cause("heads", "first only", say("every query head reads the first kv head"), _several_kv_heads),
    Cause("heads", "reversed", say("kv heads in reverse order"), _several_kv_heads),
    Cause("heads", "values tiled", say("value heads tiled, key heads not: query head h reads value head h % Hkv"), grouped, rare=True),
    Cause("heads", "keys tiled", say("key heads tiled, value heads not: query head h reads key head h % Hkv"), grouped, rare=True),
    Cause("heads", "first value only", say("every query head reads the values of the first kv head"), _several_kv_heads, rare=True),
    Cause("layout", "split without transpose", say("heads split wrongly: (B, L, H D) viewed as (B, H, L, D) without a transpose"), several_heads),
    Cause("layout", "heads interleaved", say("heads split wrongly: (H D) read as (D H), heads interleaved"), several_heads),
    Cause("layout", "attends over heads", say("layout swapped: attention over the heads of a token instead of over tokens"), lambda c: same_heads(c) and square(c) and unmodified(c) and c.sinks is None),
    Cause("layout", "attends over batch items", say("layout swapped: attention over the batch items instead of over tokens (batch_first)"), both(batched, square, unmodified), whole_batch=True),
    Cause("layout", "packed in thirds, split per head", _packing("fused projection split wrongly: query, key and value one after the other were split {}"), _PACKED),
    Cause("layout", "packed per head, split in thirds", _packing("fused projection split wrongly: it is packed {}, and was split into query, key and value one after the other"), _PACKED),
    Cause("merge", "merged without transpose", say("heads merged wrongly: (B, H, L, D) viewed as (B, L, H D) without a transpose"), several_heads),
    Cause("operands", "query and key swapped", say("query and key swapped"), _alike),
    Cause("operands", "key and value swapped", say("key and value swapped"), equal_widths),
    Cause("operands", "key for value", say("key used for value too"), equal_widths),
    Cause("operands", "value for key", say("value used for key too"), equal_widths),
    Cause("operands", "query for key and value", say("query used for key and value too: self-attention instead of cross-attention"), anew),
    Cause("operands", "query for key", say("query used for key too"), _alike),
    Cause("operands", "key for query", say("key used for query too"), _alike),
    Cause("operands", "key reshaped, not transposed", say("key reshaped to (D, S) instead of transposed"), lambda c: c.k.shape[2] > 1 < c.k.shape[3]),
    Cause("operands", "query and value swapped", say("query and value swapped"), both(_alike, equal_widths), rare=True),
)  # fmt: skip
