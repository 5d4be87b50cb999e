"""Layers of a stack that attend to the keys and values of an earlier one: which may, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polyattn.calls import shown
from polyattn.layers.blocks import EncoderBlock
from polyattn.layers.multihead import MultiHeadAttention

__all__ = ["sharing"]


def sharing(who: str, blocks: Sequence[EncoderBlock], kv_from: Any) -> tuple[EncoderBlock, ...]:
    """The blocks, those that share without projections to keys and values; kv_from has an entry for each."""
    sources = (None,) * len(blocks) if kv_from is None else kv_from
    if not isinstance(sources, tuple) or len(sources) != len(blocks):
        raise ValueError(
            f"{who}: expected kv_from to be a tuple of {len(blocks)} entries, one for each block, got {shown(kv_from)}; "
            "None stands for keys and values of its own, a number for those of the block of that number"
        )
    return tuple(_sharing(who, blocks, sources, i) for i in range(len(blocks)))


def _sharing(who: str, blocks: Sequence[EncoderBlock], sources: tuple[Any, ...], i: int) -> EncoderBlock:
    j, block = sources[i], blocks[i]
    own = block.attention
    if j is None:
        if isinstance(own, MultiHeadAttention) and own.shares_kv:
            raise ValueError(
                f"{who}: expected kv_from to say whose keys and values block {i} shares, which has shares_kv=True, got "
                "None; write the number of an earlier block"
            )
        return block
    if isinstance(j, bool) or not isinstance(j, int) or not 0 <= j < i:
        raise ValueError(
            f"{who}: expected kv_from[{i}] to be None or the number of an earlier block, got {shown(j)}; a block shares "
            "the keys and values of one that came before it"
        )
    if sources[j] is not None:
        raise ValueError(
            f"{who}: expected kv_from[{i}] to be a block with keys and values of its own, got {j}, which shares those of "
            f"{sources[j]}; name that one"
        )
    theirs = blocks[j].attention
    if not isinstance(own, MultiHeadAttention) or not isinstance(theirs, MultiHeadAttention):
        other = own if not isinstance(own, MultiHeadAttention) else theirs
        raise TypeError(
            f"{who}: expected MultiHeadAttention in blocks {j} and {i}, which share keys and values, got "
            f"{type(other).__name__}; let each of them have its own"
        )
    for what in ("kv_heads", "width", "rotary"):
        here, there = getattr(own, what), getattr(theirs, what)
        if here != there:
            raise ValueError(
                f"{who}: expected the {what} of block {j} in block {i}, which shares its keys and values, got {here} "
                f"beside {there}; make them alike"
            )
    if theirs.window is not None and (own.window is None or own.window > theirs.window):
        raise ValueError(
            f"{who}: expected block {i} to look back no further than block {j}, whose keys and values it shares and whose "
            f"cache may keep no more, got a window of {own.window} beside one of {theirs.window}; make them alike"
        )
    return replace(block, attention=own.without_kv())
