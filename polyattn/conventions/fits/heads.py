"""A call with a key and a value for every query head, which maps and factors of single heads need."""

from __future__ import annotations

from dataclasses import replace

from polyattn.conventions.answers import _to_heads
from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings

__all__ = ["of_each_head"]


def of_each_head(call: Call, settings: Settings) -> tuple[Call, Settings]:
    """The same call with keys and values repeated for the query heads that read them."""
    heads = call.shape[1]
    k, v = (_to_heads(x, heads, settings.heads) for x in (call.k, call.v))
    return replace(call, k=k, v=v), replace(settings, heads="grouped")
