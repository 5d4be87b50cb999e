"""The operator RotaryEmbedding."""

from __future__ import annotations

from typing import TypedDict, Unpack

from polyattn.arrays import Array, Backend
from polyattn.onnx.heads import join_heads, split_heads
from polyattn.onnx.signatures import NEWEST, arguments
from polyattn.rotary import rotate

_WHO = "polyattn.onnx.rotary_embedding"


__all__ = ["RotaryEmbeddingAttributes", "rotary_embedding"]


class RotaryEmbeddingAttributes(TypedDict, total=False):
    """The attributes of RotaryEmbedding."""

    interleaved: int  # 1: pairs are entries (0, 1), (2, 3), ...; 0: entries i and i + width/2
    num_heads: int  # for X of rank 3
    rotary_embedding_dim: int  # how many entries of a head are turned, 0 = all


def rotary_embedding(
    X: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    *,
    opset: int = NEWEST,
    **attributes: Unpack[RotaryEmbeddingAttributes],
) -> Array:
    """RotaryEmbedding of ONNX, opset 23: pairs of entries turned by angles whose cos and sin are given.

    X (B, H, L, D), or (B, L, H * D) with num_heads. With position_ids (B, L) the caches are tables
    (positions, width/2), without they are (B, L, width/2). The result has the shape and dtype of X.
    `polyattn.rotary.Rotary` computes the angles itself. Source: the definition of the operator, onnx 1.23.

    >>> import numpy as np
    >>> quarter = np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])
    >>> rotary_embedding(np.array([[[1.0, 2.0]]]), *quarter, np.array([[1]]), num_heads=1)
    array([[[-2.,  1.]]])
    """
    given = {"X": X, "cos_cache": cos_cache, "sin_cache": sin_cache, "position_ids": position_ids}
    backend, a = arguments(_WHO, "RotaryEmbedding", opset, given, attributes)
    if X.ndim not in (3, 4):
        raise ValueError(
            f"{_WHO}: expected X of rank 4 (B, H, L, D) or 3 (B, L, H * D), got {tuple(X.shape)}; add the axes that "
            "are missing"
        )
    if X.ndim == 4 and a["num_heads"] not in (None, 0, X.shape[1]):
        raise ValueError(
            f"{_WHO}: expected no num_heads with X of rank 4, which has {X.shape[1]} heads, got {a['num_heads']}; "
            "it says how to split X of rank 3"
        )
    x = X if X.ndim == 4 else split_heads(_WHO, "X", backend, X, a["num_heads"])
    batch, _, length, head = x.shape
    width = a["rotary_embedding_dim"] or head
    if width % 2 or not 0 < width <= head:
        raise ValueError(
            f"{_WHO}: expected an even rotary_embedding_dim of at most {head}, the width of a head, got {width}; "
            "entries are turned in pairs"
        )
    if position_ids is not None and (
        tuple(position_ids.shape) != (batch, length) or not backend.isdtype(position_ids.dtype, "integral")
    ):
        raise ValueError(
            f"{_WHO}: expected position_ids of integers and of shape {(batch, length)}, got {position_ids.dtype} of "
            f"shape {tuple(position_ids.shape)}; one position per token"
        )
    turns = []
    for name, cache in (("cos_cache", cos_cache), ("sin_cache", sin_cache)):
        if cache.dtype != X.dtype:
            raise TypeError(
                f"{_WHO}: expected {name} of the dtype of X, {X.dtype}, got {cache.dtype}; cast it"
            )
        shape = (batch, length, width // 2) if position_ids is None else (cache.shape[0], width // 2)
        if tuple(cache.shape) != shape:
            axes = "(B, L, width/2)" if position_ids is None else "(positions, width/2)"
            raise ValueError(
                f"{_WHO}: expected {name} of shape {axes} = {shape}, got {tuple(cache.shape)}; it is a table with "
                "position_ids, and has a row per token without"
            )
        rows = cache if position_ids is None else _look_up(backend, name, cache, position_ids)
        turns.append(rows[:, None, :, :])
    turned = rotate(x, *turns, interleaved=a["interleaved"] != 0)
    return turned if X.ndim == 4 else join_heads(backend, turned)


def _look_up(backend: Backend, name: str, table: Array, positions: Array) -> Array:
    """table[positions]: (B, L, width/2)."""
    xp = backend.xp
    if backend.is_concrete(positions) and 0 not in positions.shape:
        low, high = (backend.to_list(f(positions)) for f in (xp.min, xp.max))
        if low < 0 or high >= table.shape[0]:
            raise ValueError(
                f"{_WHO}: expected position_ids from 0 to {table.shape[0] - 1}, the last row of {name}, got {low} "
                f"to {high}; make the tables longer"
            )
    rows = backend.take(table, xp.reshape(positions, (-1,)), axis=0)
    return xp.reshape(rows, (*positions.shape, table.shape[-1]))
