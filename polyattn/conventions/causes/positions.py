"""Mistakes in norms of query and key, and in rotary embedding."""

from __future__ import annotations

from collections.abc import Callable

from polyattn.conventions.call import Call
from polyattn.conventions.causes.cause import Cause, always, both, equal_widths, has, say

__all__ = ["POSITIONS"]


def _pairing(call: Call) -> str:
    right = call.rotary is not None and call.rotary.interleaved
    return "rotary pairing " + (
        "half-split instead of interleaved" if right else "interleaved instead of half-split"
    )


def _unasked(call: Call) -> bool:
    return call.rotary is None and call.q.shape[3] % 2 == 0


def _other_heads(call: Call) -> bool:
    """Where query and key have as many heads, turning both by them is the same as turning neither."""
    return call.rotary is not None and call.q.shape[1] != call.k.shape[1]


def _norm(kind: str, eps: str) -> Callable[[Call], str]:
    named = "eps 2^-23" if eps == "1.1920929e-07" else f"eps {eps}"
    return say(
        {
            "rms": f"query and key RMS-normalised over the head width ({named}), which nobody asked for",
            "rms-all": f"query and key RMS-normalised over the width of all heads ({named}), which nobody asked for",
            "layer": f"query and key layer-normalised over the head width ({named}), which nobody asked for",
            "values rms": f"value RMS-normalised over the head width ({named}), which nobody asked for",
        }[kind]
    )


def _several_kv_heads(call: Call) -> bool:
    return bool(call.k.shape[1] > 1)


POSITIONS = (
    Cause("rotary", "dropped", say("rotary embedding not applied"), has("rotary")),
    Cause("rotary", "other pairing", _pairing, has("rotary")),
    Cause("rotary", "queries alone", say("rotary embedding applied to the queries alone"), has("rotary")),
    Cause("rotary", "keys alone", say("rotary embedding applied to the keys alone"), has("rotary")),
    Cause("rotary", "queries one late", say("rotary positions of the queries off by one"), has("rotary")),
    Cause("rotary", "queries from 0", say("rotary positions of the queries start at 0 instead of query_offset"), lambda c: c.rotary is not None and c.offset != 0),
    Cause("rotary", "positions are heads", say("rotary embedding along the heads instead of the tokens: (B, H, L, D) taken for (B, L, H, D)"), _other_heads),
    Cause("rotary", "other direction", say("rotary embedding in the other direction: sign of the sine, or cosine and sine swapped"), has("rotary")),
    Cause("rotary", "twice", say("rotary embedding applied twice"), has("rotary")),
    Cause("rotary", "applied", say("rotary embedding applied (half-split pairs), which nobody asked for"), _unasked),
    Cause("rotary", "applied interleaved", say("rotary embedding applied (interleaved pairs), which nobody asked for"), _unasked),
    Cause("rotary", "values too", say("rotary embedding applied to the values too"), both(has("rotary"), equal_widths), rare=True),
    Cause("norms", "rms 1e-6", _norm("rms", "1e-6"), always),
    Cause("norms", "l2", say("query and key divided by their length (cosine attention), which nobody asked for"), always),
    Cause("norms", "rms 1.1920929e-07", _norm("rms", "1.1920929e-07"), always, rare=True),
    Cause("norms", "rms 1e-5", _norm("rms", "1e-5"), always, rare=True),
    Cause("norms", "layer 1e-5", _norm("layer", "1e-5"), always, rare=True),
    Cause("norms", "layer 1e-6", _norm("layer", "1e-6"), always, rare=True),
    Cause("norms", "rms-all 1e-6", _norm("rms-all", "1e-6"), _several_kv_heads, rare=True),
    Cause("norms", "rms-all 1e-5", _norm("rms-all", "1e-5"), _several_kv_heads, rare=True),
    Cause("norms", "values rms 1e-6", _norm("values rms", "1e-6"), always, rare=True),
)  # fmt: skip
