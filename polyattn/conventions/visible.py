"""Which keys the query rows of a call may attend to, under any settings."""

from __future__ import annotations

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.truth.spec import Floats, Spec

__all__ = ["allowed_keys", "at_rows", "bias_of", "seen_keys", "spec_of"]


def allowed_keys(call: Call, settings: Settings, rows: Floats) -> Floats:
    """Which keys those query rows may attend to, broadcasting to (B, Hq, rows, S)."""
    length, keys = call.shape[2:]
    allowed = np.ones((1, 1, len(rows), keys), bool)
    row, key = rows[:, None], np.arange(keys)[None, :]
    at = row + call.offset
    both_sides = call.window is not None and settings.window == "symmetric" and settings.causal == "as stated"
    if call.is_causal and not both_sides:  # a window on both sides is what stands for causality
        allowed = allowed & _earlier(settings.causal, at, row, key, keys - length)
    elif settings.causal.startswith("unasked"):
        allowed = allowed & (key <= (row if settings.causal == "unasked top-left" else row + keys - length))
    if call.window is not None and settings.window != "dropped":
        allowed = allowed & _near(call.window, settings.window, at, row, key, keys - length)
    if settings.mask == "all added as 0/1":
        allowed = np.ones_like(allowed)
    if call.mask is not None and settings.mask not in _WITHOUT:
        mask = at_rows(_read(call, call.mask, settings.mask), rows)
        if settings.polarity == "ignore":
            mask = ~mask
        allowed = allowed | mask if settings.mask == "or causal" else allowed & mask
    if settings.polarity == "all ignored":
        allowed = ~allowed
    if (bias := bias_of(call, settings)) is not None and settings.bias not in (
        "dropped",
        "after the softmax",
    ):
        hides = at_rows(bias, rows) == -np.inf
        allowed = allowed & ~hides if hides.any() else allowed
    return allowed


_WITHOUT = ("dropped", "added as 0/1", "all added as 0/1")  # what is done to a mask and hides nothing


def _earlier(choice: str, at: Floats, row: Floats, key: Floats, more: int) -> Floats:
    """The causal mask of query rows at positions `at`, with so many more keys than rows."""
    if choice == "dropped":
        return np.ones_like(key <= at)
    if choice == "transposed":
        return key >= at
    last = {
        "top-left": row,
        "bottom-right": row + more,
        "diagonal hidden": at - 1,
        "one ahead": at + 1,
    }.get(choice, at)
    return key <= last


def _near(
    window: tuple[int | None, int | None], choice: str, at: Floats, row: Floats, key: Floats, more: int
) -> Floats:
    """The window of query rows, likewise."""
    left, right = window
    wider = {"one key more": 1, "one key less": -1}.get(choice, 0)
    if choice == "symmetric":
        right = left
    at = {"from the first row": row, "from the last row": row + more}.get(choice, at)
    near: Floats = np.ones_like(key <= at)
    if left is not None:
        near = near & (key >= at - left - wider)
    if right is not None:
        near = near & (key <= at + right + (wider if right else 0))
    return near


def _read(call: Call, mask: Floats, choice: str) -> Floats:
    """The mask (1 or B, 1 or Hq, 1 or L, 1 or S) as an implementation reads it."""
    mask, (_, heads, length, _) = _four(mask), call.shape
    if choice == "hides queries":
        return mask[..., :1, :].swapaxes(-1, -2) if mask.shape[3] == length else mask
    if choice == "only in the first head":
        return mask | (np.arange(heads) > 0)[:, None, None]
    # Elsewhere a batch that is read as another axis is an error.
    if choice == "batch read as heads" and mask.shape[:2] == (heads, 1):
        return mask.swapaxes(0, 1)
    if choice == "batch read as rows" and mask.shape[:3] == (length, 1, 1):
        return mask.swapaxes(0, 2)
    return _part(mask, choice)


def bias_of(call: Call, settings: Settings) -> Floats | None:
    """The bias, (1 or B, 1 or Hq, 1 or L, 1 or S), as an implementation reads it."""
    if call.bias is None:
        return None
    return _part(_four(call.bias), settings.bias)


def _part(x: Floats, choice: str) -> Floats:
    """A mask or a bias as it is read, whole or in part."""
    if choice == "transposed":
        return x.swapaxes(-1, -2)
    if choice == "flipped":
        return x[..., ::-1]
    if choice == "heads reversed":
        return x[:, ::-1]
    if choice == "first head's":
        return x[:, :1]
    return x[:1] if choice == "first item's" else x


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
    x = _four(x)
    return x if x.shape[2] == 1 else x[:, :, rows]


def _four(x: Floats) -> Floats:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def spec_of(call: Call) -> Spec:
    """What the call means by the contract, for `polyattn.truth`."""
    if call.rotary is not None:
        raise ValueError(
            "polyattn.parity.compare: expected query and key already turned, got rotary= in meant; apply it inside f and g"
        )
    allowed = np.broadcast_to(allowed_keys(call, CONTRACT, np.arange(call.shape[2])), call.shape)
    names = ("q", "k", "v", "scale", "softcap", "shift", "bias", "sinks")
    return Spec(**{name: getattr(call, name) for name in names}, allowed=allowed)
