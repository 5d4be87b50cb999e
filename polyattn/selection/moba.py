"""Mixture of block attention: every query head selects blocks by the mean of their keys."""

from __future__ import annotations

from typing import Any

from polyattn.arrays import Array
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, size
from polyattn.problem import pose
from polyattn.selection.choosing import pooled, top
from polyattn.selection.gathered import attend

__all__ = ["moba_attention"]


@answers("polyattn.selection.moba_attention")
def moba_attention(
    query: SameArray,
    key: Array,
    value: Array,
    *,
    block_size: int,
    count: int,
    query_offset: Any = None,
    scale: float | Array | None = None,
) -> SameArray:
    """Causal attention of every query head to `count` blocks of keys: its own one, and those it scores highest.

        score of a block = q . (mean of its keys)

    Shapes and options as `attention`. A block that begins behind the row is never selected; the row's own one
    always is, and counts. Of equal scores the earlier block is taken. No gradient goes through the selection.

    Source: Lu 2025, arXiv:2502.13189, section 2.2.

    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [4.0]])
    >>> moba_attention(x, x, x, block_size=1, count=1)  # every row sees itself
    array([[1.],
           [2.],
           [4.]])
    """
    who = "polyattn.selection.moba_attention"
    block_size, count = size(who, "block_size", block_size, 1), size(who, "count", count, 1)
    options = {"is_causal": True, "query_offset": query_offset, "scale": scale}
    p = pose(who, query, key, value, **options)
    xp, backend = p.backend.xp, p.backend
    q, means = (
        backend.astype(backend.stop_gradient(x), p.compute_dtype) for x in (p.q, pooled(p.k, block_size))
    )
    group = q.shape[1] // max(means.shape[1], 1)
    means = means if group == 1 else xp.repeat(means, group, axis=1)
    first = backend.arange(0, means.shape[2], q) * block_size
    at = p.positions().q  # (B|1, 1, L, 1)
    own = (first <= at) & (at < first + block_size)
    chosen = top(backend.matmul(q, xp.matrix_transpose(means)), count, first <= at, own)
    chosen = xp.reshape(chosen, (*p.axes.lead, *chosen.shape[1:])) if query.ndim > 2 else chosen[0, 0, :, :]
    return attend(who, query, key, value, chosen, block_size, options)
