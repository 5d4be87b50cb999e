"""Which keys the query rows of a call may attend to, under any settings."""

from __future__ import annotations

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.truth.spec import Floats, Spec

__all__ = ["allowed_keys", "at_rows", "seen_keys", "spec_of"]


def allowed_keys(call: Call, settings: Settings, rows: Floats) -> Floats:
    """Which keys those query rows may attend to, broadcasting to (B, Hq, rows, S)."""
    length, keys = call.shape[2:]
    allowed = np.ones((1, 1, len(rows), keys), bool)
    row, key = rows[:, None], np.arange(keys)[None, :]
    at = row + call.offset
    both_sides = call.window is not None and settings.window == "symmetric" and settings.causal == "as stated"
    if call.is_causal and not both_sides:  # a window on both sides is what stands for causality
        end = row + keys - length
        causal = {
            "as stated": key <= at,
            "top-left": key <= row,
            "bottom-right": key <= end,
            "dropped": key == key,
            "diagonal hidden": key < at,
            "one ahead": key <= at + 1,
            "transposed": key >= at,
        }
        allowed = allowed & causal[settings.causal]
    if call.window is not None:
        left, right = call.window
        more = {"one key more": 1, "one key less": -1}.get(settings.window, 0)
        if settings.window == "symmetric":
            right = left
        if settings.window == "from the first row":
            at = row
        elif settings.window == "from the last row":
            at = row + keys - length
        if settings.window != "dropped":
            if left is not None:
                allowed = allowed & (key >= at - left - more)
            if right is not None:
                allowed = allowed & (key <= at + right + (more if right else 0))
    if settings.mask == "all added as 0/1":
        allowed = np.ones_like(allowed)
    if call.mask is not None and settings.mask in ("hides", "after the softmax", "hides queries"):
        mask = call.mask
        if settings.mask == "hides queries":
            mask = mask[..., :1, :].swapaxes(-1, -2) if mask.shape[3] == length else mask
        if settings.polarity == "ignore":
            mask = ~mask
        allowed = allowed & at_rows(mask, rows)
    if settings.polarity == "all ignored":
        allowed = ~allowed
    if call.bias is not None and settings.bias != "dropped":
        allowed = allowed & (at_rows(call.bias, rows) != -np.inf)
    return allowed


def seen_keys(call: Call, settings: Settings) -> Floats:
    """The keys that some query of the kv head may attend to, (B|1, Hq|1, S, 1)."""
    heads, kv_heads, length = call.shape[1], call.k.shape[1], call.shape[2]
    seen: Floats = np.any(allowed_keys(call, settings, np.arange(length)), axis=-2)
    if seen.shape[1] > 1:
        groups = seen.reshape(seen.shape[0], kv_heads, heads // kv_heads, -1)
        seen = np.repeat(groups.any(2), heads // kv_heads, axis=1)
    return seen[..., None]


def at_rows(x: Floats, rows: Floats) -> Floats:
    """The rows of something that broadcasts to the scores."""
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    return x if x.shape[2] == 1 else x[:, :, rows]


def spec_of(call: Call) -> Spec:
    """What the call means by the contract, for `polyattn.truth`."""
    if call.rotary is not None:
        raise ValueError(
            "polyattn.parity.compare: expected query and key already turned, got rotary= in meant; apply it inside f and g"
        )
    allowed = np.broadcast_to(allowed_keys(call, CONTRACT, np.arange(call.shape[2])), call.shape)
    names = ("q", "k", "v", "scale", "softcap", "shift", "bias", "sinks")
    return Spec(**{name: getattr(call, name) for name in names}, allowed=allowed)
