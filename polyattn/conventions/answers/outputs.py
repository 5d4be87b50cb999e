"""What happens to an output at last: a factor, a residual, heads averaged, reversed or merged wrongly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn.conventions.call import Call
from polyattn.truth.spec import Floats

__all__ = ["finished", "merged_rightly", "merged_wrongly"]


def finished(
    out: Floats, condition: Floats, rounded: Floats, choice: str, call: Call, rows: Any
) -> tuple[Floats, Floats, Floats]:
    """An output (B, Hq, rows, E), its condition and what half precision rounds in it, after what is done to it at last.

    rows: the query rows, an index of the length axis.
    """
    if choice == "as stated":
        return out, condition, rounded
    parts = (out, condition, rounded)
    if choice in ("divided by sqrt(D)", "divided by S"):
        width, keys = max(call.q.shape[3], 1), max(call.k.shape[2], 1)
        by = math.sqrt(width) if choice == "divided by sqrt(D)" else keys
        out, condition, rounded = (x / by for x in parts)
        return out, condition + np.abs(out), rounded
    if choice == "mean of heads":
        out, condition, rounded = (
            np.broadcast_to(x.mean(1, keepdims=True, dtype=x.dtype), x.shape) for x in parts
        )
        return out, condition + np.abs(out), rounded
    if choice in ("heads reversed", "heads interleaved"):
        out, condition, rounded = (
            x[:, ::-1] if choice == "heads reversed" else _interleaved(x) for x in parts
        )
        return out, condition, rounded
    added = {"query added": call.q, "value added": call.v}[choice]
    added = np.repeat(added, out.shape[1] // added.shape[1], axis=1)[:, :, rows]
    out = out + added
    return out, condition + np.abs(out) + np.abs(added), rounded + np.abs(out) / 2


def _interleaved(x: Floats) -> Floats:
    """(B, H, L, E) laid side by side as (B, L, E H), and read as (B, L, H E)."""
    b, h, n, e = x.shape
    return x.transpose(0, 2, 3, 1).reshape(b, n, h, e).swapaxes(1, 2)


def merged_wrongly(x: Floats) -> Floats:
    """(B, H, L, E) written side by side without a transpose, and read as it should have been."""
    b, h, n, d = x.shape
    return x.reshape(b, n, h, d).swapaxes(1, 2)


def merged_rightly(x: Floats) -> Floats:
    """The inverse of `merged_wrongly`."""
    return x.swapaxes(1, 2).reshape(x.shape)
