"""A call with a key and a value for every query head, which maps and factors of single heads need."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyattn.conventions.answers.operands import heads_of
from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.truth.spec import Floats

__all__ = ["of_each_head", "repeated"]


def of_each_head(call: Call, settings: Settings) -> tuple[Call, Settings]:
    """The same call with keys and values repeated for the query heads that read them."""
    k, v = repeated(call, settings.heads)
    return replace(call, k=k, v=v), replace(settings, heads="grouped")


def repeated(call: Call, choice: str) -> tuple[Floats, Floats]:
    """Keys and values, one head for each query head."""
    heads, kv_heads = call.shape[1], call.k.shape[1]
    if not kv_heads or (choice == "grouped" and heads == kv_heads):
        return call.k, call.v
    grouped = np.arange(heads) // (heads // kv_heads)
    of_keys, of_values = heads_of(heads, kv_heads, choice)
    return call.k[:, grouped if of_keys is None else of_keys], call.v[
        :, grouped if of_values is None else of_values
    ]
