"""Heads side by side in the last axis, as the inputs of rank 3 have them, and heads as an axis."""

from __future__ import annotations

from polyattn.arrays import Array, Backend

__all__ = ["join_heads", "split_heads"]


def split_heads(who: str, name: str, backend: Backend, x: Array, heads: int | None) -> Array:
    """(batch, length, heads * width) as (batch, heads, length, width)."""
    if heads is None or heads < 1 or x.shape[-1] % heads:
        raise ValueError(
            f"{who}: expected a number of heads that divides {x.shape[-1]}, the last axis of {name}, which has "
            f"rank 3, got {heads}; the heads lie side by side in it"
        )
    batch, length, hidden = x.shape
    x = backend.xp.reshape(x, (batch, length, heads, hidden // heads))
    return backend.xp.permute_dims(x, (0, 2, 1, 3))


def join_heads(backend: Backend, x: Array) -> Array:
    """(batch, heads, length, width) as (batch, length, heads * width)."""
    batch, heads, length, width = x.shape
    return backend.xp.reshape(backend.xp.permute_dims(x, (0, 2, 1, 3)), (batch, length, heads * width))
