"""Mistakes in what hides keys: masks, causality, windows; and what rows get that see nothing."""

from __future__ import annotations

from collections.abc import Callable

from polyattn.conventions.call import Call
from polyattn.conventions.causes.cause import (
    Cause,
    always,
    both,
    by_position,
    has,
    masked,
    say,
    several_heads,
    square,
    varies,
)

__all__ = ["HIDING"]


def _whole(alone: str, beside: str) -> Callable[[Call], str]:
    return lambda call: alone if call.mask is None else beside


def _causal(call: Call) -> bool:
    return call.is_causal


def _not_causal(call: Call) -> bool:
    return not call.is_causal


def _batch_for(axis: int) -> Callable[[Call], bool]:
    """The mask has one row per batch item, in place of an axis (1: heads, 2: queries) that is as long."""

    def applies(call: Call) -> bool:
        if call.mask is None or call.mask.shape[0] == 1:
            return False
        return call.shape[0] == call.shape[axis] and call.mask.shape[1 : axis + 1] == (1,) * axis

    return applies


HIDING = (
    Cause("polarity", "ignore", say("mask polarity inverted: True was taken as 'ignore'"), has("mask")),
    Cause("polarity", "all ignored", _whole("mask polarity inverted: True was taken as 'ignore'", "polarity of the whole mask inverted, causality and window too: True was taken as 'ignore'"), by_position),
    Cause("mask", "dropped", say("mask ignored"), has("mask")),
    Cause("mask", "added as 0/1", say("mask added to the scores as 0 and 1, as a float mask is"), has("mask")),
    Cause("mask", "all added as 0/1", _whole("mask added to the scores as 0 and 1, as a float mask is", "whole mask, causality and window too, added to the scores as 0 and 1, as a float mask is"), by_position),
    Cause("mask", "after the softmax", say("mask applied after the softmax, rows not renormalised"), masked),
    Cause("mask", "hides queries", say("padding mask on the query axis instead of the key axis"), both(has("mask"), square)),
    Cause("mask", "first item's", say("mask of the first batch item used for all"), varies("mask", 0)),
    Cause("mask", "transposed", say("mask transposed: rows and keys exchanged"), both(varies("mask", 2, 3), square)),
    Cause("mask", "or causal", say("mask joined to the causal mask by OR instead of AND"), both(has("mask"), _causal)),
    Cause("mask", "flipped", say("mask flipped along the keys, as left padding for right padding"), varies("mask", 3)),
    Cause("mask", "batch read as heads", say("mask broadcast wrongly: its batch items were taken for heads"), _batch_for(1), whole_batch=True),
    Cause("mask", "batch read as rows", say("padding mask (B, S) broadcast wrongly: its batch items were taken for query rows"), _batch_for(2), rare=True, whole_batch=True),
    Cause("mask", "first head's", say("mask of the first head used for all"), varies("mask", 1), rare=True),
    Cause("mask", "only in the first head", say("mask applied in the first head alone"), both(has("mask"), several_heads), rare=True),
    Cause("hidden", "0", say("hidden scores filled with about 0 instead of -inf"), masked),
    Cause("causal", "dropped", say("causal mask ignored"), _causal),
    Cause("causal", "top-left", say("causal mask aligned top-left (first query with first key)"), _causal),
    Cause("causal", "bottom-right", say("causal mask aligned bottom-right (last query with last key)"), _causal),
    Cause("causal", "diagonal hidden", say("causal mask hides the diagonal: a token does not see itself"), _causal),
    Cause("causal", "one ahead", say("causal mask off by one: a token sees the next one"), _causal),
    Cause("causal", "transposed", say("causal mask transposed: a token sees the later ones"), _causal),
    Cause("causal", "unasked top-left", lambda c: "causal mask applied" + ("" if square(c) else " (first query with first key)") + ", which nobody asked for", _not_causal),
    Cause("causal", "unasked bottom-right", say("causal mask applied (last query with last key), which nobody asked for"), lambda c: not c.is_causal and not square(c)),
    Cause("window", "dropped", say("window ignored"), has("window")),
    Cause("window", "one key more", say("window off by one: one neighbour more on a side (size counted without the token itself)"), has("window")),
    Cause("window", "one key less", say("window off by one: one neighbour less on a side (size counted with the token itself)"), has("window")),
    Cause("window", "symmetric", say("window applied on both sides"), has("window")),
    Cause("window", "from the first row", say("window positioned from the first row, without the query offset"), lambda c: c.window is not None and c.offset != 0),
    Cause("empty_rows", "mean of all values", say("rows that see nothing get the mean of all values (finite mask constant)"), masked),
    Cause("empty_rows", "as if unmasked", say("rows that see nothing are computed as if there were no mask"), masked),
    Cause("empty_rows", "NaN", say("rows that see nothing are NaN"), masked),
    Cause("keys", "last dropped", say("last key dropped"), always),
    Cause("keys", "first dropped", say("first key dropped"), always),
)  # fmt: skip
