"""Causality and windows that were given as an array of bools, recognised as what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import CONTRACT
from polyattn.conventions.visible import allowed_keys
from polyattn.truth.spec import Floats

__all__ = ["recognised"]


def recognised(call: Call) -> Call | None:
    """The same call with causality and the window of its mask said in words, and only padding left in the mask.

    None if the mask holds nothing of the kind. A mask is a band, of keys from `left` before a row to `right` after it,
    beside keys and rows that are hidden altogether; its diagonal is causal, wherever it begins, unless it ends
    to the right of a window's row.

    >>> x = np.zeros((1, 1, 4, 2))
    >>> found = recognised(Call(x, x, x, mask=np.tri(4, dtype=bool)[None, None]))
    >>> (found.is_causal, found.window, found.mask)
    (True, None, None)
    """
    mask = call.mask
    if mask is None or call.window is not None or call.offsets is not None:
        return None
    rows, keys = call.shape[2:]
    if mask.shape[2] != rows or mask.shape[3] != keys or min(rows, keys) < 2 or not mask.any():
        return None
    ahead = np.arange(keys) - np.arange(rows)[:, None]  # of its row, the key
    shown = ahead[mask.any((0, 1))]
    band, rest = _apart(mask, ahead, int(shown.min()), int(shown.max()))
    if not np.array_equal(np.broadcast_to(band & rest, mask.shape), mask):
        return None
    words = _words(call, rest, ahead, int(shown.min()), int(shown.max()))
    if words is None:
        return None
    found = replace(call, mask=None if rest.all() else rest, **words)
    everywhere = np.arange(rows)
    meant, said = (np.broadcast_to(allowed_keys(x, CONTRACT, everywhere), call.shape) for x in (call, found))
    same = np.array_equal(meant, said)
    return found if same else None


def _apart(mask: Floats, ahead: Floats, least: int, most: int) -> tuple[Floats, Floats]:
    """The band, and the smallest padding beside it."""
    band = (ahead >= least) & (ahead <= most)
    keys = mask.any(-2, keepdims=True) | ~band.any(0)
    rest = np.broadcast_to(keys, (*mask.shape[:2], *keys.shape[2:]))
    if not np.array_equal(np.broadcast_to(band & rest, mask.shape), mask):
        rest = rest & mask.any(-1, keepdims=True)
    return band, rest


def _words(call: Call, rest: Floats, ahead: Floats, least: int, most: int) -> dict[str, Any] | None:
    """is_causal, window and offset of a band, if it hides anything that padding does not."""
    bounded = [bool((rest & beyond).any()) for beyond in (ahead < least, ahead > most)]
    at = call.offset
    if not any(bounded):
        return None
    if not bounded[1]:
        return {"window": (at - least, None)} if at >= least else None
    usual = most in (at, 0, call.shape[3] - call.shape[2])
    if bounded[0] and not usual and least <= at <= most:
        return {"window": (at - least, most - at)}
    if most != at and (call.is_causal or call.rotary is not None):
        return None  # the rows have positions of their own
    window = (most - least, None) if bounded[0] else None
    return {"is_causal": True, "offset": most, "window": window}
