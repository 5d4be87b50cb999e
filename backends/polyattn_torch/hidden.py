"""What a mask hides, taken away from kernels that would look at it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from polyattn.arrays import Array
from polyattn.implementations.reference import allowed_at, visible_keys
from polyattn.places import positions
from polyattn.problem import Problem
from polyattn_torch.state import can_read

__all__ = ["Seen", "allowed_in", "clean", "seen_in", "zero"]


def allowed_in(p: Problem, start: int, rows: int, key: int, keys: int) -> Array:
    """Mask and bias on a rectangle of the scores, (B|1, Hq|1, rows, keys)."""
    at = positions(p.backend, p.q, (p.frame.batch, p.frame.heads, rows, keys), p.places, (0, 0, start, key))
    bias = p.bias if p.bias is None or p.bias.shape[2] == 1 else p.bias[:, :, start : start + rows]
    allowed = allowed_at(p.mask, at, bias)
    if allowed is None:
        allowed = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=p.q.device)
    return allowed.expand(*allowed.shape[:2], rows, keys)


class Seen(NamedTuple):
    """Who has something to do in a rectangle of the scores; None for all of them."""

    rows: Array | None  # (B|1, Hq|1, rows, 1): sees a key
    keys: Array | None  # (B|1, Hkv|1, keys, 1): is seen


def seen_in(allowed: Array, kv_heads: int) -> Seen:
    rows, keys = allowed.any(-1, keepdim=True), visible_keys(allowed, kv_heads, torch)
    free = allowed.device.type == "cpu" and can_read(allowed)  # to ask whether it is all of them
    return Seen(*(None if free and bool(x.all()) else x for x in (rows, keys)))


def clean(seen: Seen, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """What is hidden, replaced: its NaN would reach the rest through a product, forward or backward."""
    if seen.rows is not None:
        q = torch.where(seen.rows, q, 0.0)
    if seen.keys is not None:
        k, v = torch.where(seen.keys, k, 0.0), torch.where(seen.keys, v, 0.0)
    return q, k, v


def zero(seen: Seen, out: Array) -> Array:
    """Rows that see nothing are 0, and whatever is sent back to them, nobody hears of it."""
    return out if seen.rows is None else torch.where(seen.rows, out, 0.0)
