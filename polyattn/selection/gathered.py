"""Attention of every row to keys of its own, which are gathered for a few rows at a time."""

from __future__ import annotations

import math
from typing import Any

from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, integral, shown, size
from polyattn.normalizers.softmax import beside, finish, lift, merge
from polyattn.problem import Problem, pose

__all__ = ["attend", "selected_attention"]

TILE = 2**20  # the most numbers of keys and values that are gathered at a time, unless one row takes more


@answers("polyattn.selection.selected_attention")
def selected_attention(
    query: SameArray,
    key: Array,
    value: Array,
    indices: Array,
    *,
    block_size: int = 1,
    is_causal: bool = False,
    query_offset: Any = None,
    scale: float | Array | None = None,
    sinks: float | Array | None = None,
) -> SameArray:
    """`attention` in which row i sees the keys that indices[..., i, :] names, and no others.

    Shapes: query (..., Hq, L, D), key (..., Hkv, S, D), value (..., Hkv, S, E), indices (..., Hi, L, K) of
    integers, Hi = 1, Hkv or Hq, whose leading axes are those of the output or 1 -> (..., Hq, L, E). indices: which
    keys, or with block_size n which blocks of n keys, n i to n i + n - 1. A negative one is none, and one that
    comes twice counts once. is_causal, query_offset, scale, sinks: as `attention` has them; a row that sees nothing
    gives 0.

    Time and memory O(L K): keys and values are gathered for a few rows at a time, and where the library can
    (JAX, PyTorch) again for the gradient instead of being kept.

    Errors: those of `attention`; ValueError for indices of other shapes, and for those beyond the last key
    where they can be read (traced ones are none).

    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [4.0]])
    >>> selected_attention(x, x, x, np.array([[0, -1], [1, 0], [2, 2]]), scale=0.0)
    array([[1. ],
           [1.5],
           [4. ]])
    """
    who = "polyattn.selection.selected_attention"
    options = {"is_causal": is_causal, "query_offset": query_offset, "scale": scale, "sinks": sinks}
    return attend(who, query, key, value, indices, block_size, options)


def attend(
    who: str, query: Array, key: Array, value: Array, indices: Array, block_size: int, options: dict[str, Any]
) -> Array:
    """`selected_attention` for what selects by itself: errors speak in the name of what the user called."""
    p = pose(who, query, key, value, **options)
    backend, xp = p.backend, p.backend.xp
    block_size = size(who, "block_size", block_size, 1)
    chosen = _once(backend, _checked(p, query, indices, block_size))
    heads = p.k.shape[1] if chosen.shape[1] in (1, p.k.shape[1]) else p.q.shape[1]
    rows, picks = p.frame.rows, chosen.shape[-1] * block_size
    if 0 in (*p.scores_shape, picks):
        out = xp.zeros((*p.scores_shape[:3], p.v.shape[-1]), dtype=p.q.dtype, device=backend.device(p.q))
        return p.axes.leave(out, width=True)
    at = p.positions().q if p.mask is not None else None
    size_of_row = p.frame.batch * heads * picks * (p.k.shape[-1] + p.v.shape[-1])
    some = min(max(TILE // max(size_of_row, 1), 1), rows)
    whole = rows // some if some < rows else 0

    def of_rows(start: Any, count: int, q: Array, k: Array, v: Array) -> Array:
        def part(x: Array) -> Array:
            return backend.tile(x, start, count, -2)

        return _rows(p, part(q), k, v, part(chosen), None if at is None else part(at), heads, block_size)

    k, v = _table(p.k), _table(p.v)
    parts = []
    if whole:
        again = backend.recomputed(lambda i, q, k, v: of_rows(i * some, some, q, k, v))
        (tiles,) = backend.map(lambda i: (again(i, p.q, k, v),), whole)  # (n, B, Hq, some, E)
        tiles = xp.moveaxis(tiles, 0, 2)
        parts.append(xp.reshape(tiles, (*tiles.shape[:2], whole * some, tiles.shape[-1])))
    if whole * some < rows:
        parts.append(of_rows(whole * some, rows - whole * some, p.q, k, v))
    return p.axes.leave(parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2), width=True)


def _table(x: Array) -> Array:
    """The rows of all items and heads, one below the other, and a row of zeros for whatever is not seen."""
    backend = backend_of(x)
    xp, width = backend.xp, x.shape[-1]
    nothing = xp.zeros((1, width), dtype=x.dtype, device=backend.device(x))
    return xp.concat((xp.reshape(x, (math.prod(x.shape[:-1]), width)), nothing), axis=0)


def _rows(
    p: Problem, q: Array, k: Array, v: Array, chosen: Array, at: Array | None, heads: int, block_size: int
) -> Array:
    """Some rows (B, Hq, n, D), each with its own keys: one matrix of G query heads and K keys for each row."""
    backend, xp = p.backend, p.backend.xp
    batch, keys, n = p.frame.batch, p.frame.keys, q.shape[2]
    group = q.shape[1] // heads
    if block_size > 1:
        inside = backend.arange(0, block_size, chosen)
        spread = xp.where(chosen[..., None] < 0, -1, chosen[..., None] * block_size + inside)
        chosen = xp.reshape(spread, (*chosen.shape[:-1], chosen.shape[-1] * block_size))
    allowed = (chosen >= 0) & (chosen < keys)
    if at is not None:
        allowed = allowed & (chosen <= at)
    shape = (batch, heads, n, chosen.shape[-1])
    allowed = xp.broadcast_to(allowed, shape)

    def gathered(x: Array, items: int) -> Array:
        """A `_table` of (items, Hkv, S, W) -> (B, heads, n, K, W), in the compute dtype; what is not seen is 0."""
        kv_heads = p.k.shape[1]
        item = xp.reshape(backend.arange(0, batch, x), (batch, 1, 1, 1)) if items > 1 else 0
        head = xp.reshape(backend.arange(0, heads, x), (heads, 1, 1)) // (heads // kv_heads)
        place = (item * kv_heads + head) * keys + xp.clip(chosen, 0, keys - 1)
        place = xp.where(allowed, xp.broadcast_to(place, shape), x.shape[0] - 1)
        found = backend.take(x, xp.reshape(place, (-1,)), axis=0)
        return backend.astype(xp.reshape(found, (*shape, x.shape[-1])), p.compute_dtype)

    def beside_rows(x: Any) -> Any:
        """A number of each query head, (1, Hq|1, 1, 1), beside scores (B, heads, n, G, K)."""
        if not is_array(x) or x.shape[1] == 1:
            return x if not is_array(x) else xp.reshape(x, (1, 1, 1, 1, 1))
        return xp.reshape(x, (1, heads, 1, group, 1))

    q = xp.broadcast_to(backend.astype(q, p.compute_dtype), (batch, *q.shape[1:]))
    q = xp.permute_dims(xp.reshape(q, (batch, heads, group, n, q.shape[-1])), (0, 1, 3, 2, 4))
    seen = allowed[..., None, :]  # (B, heads, n, 1, K)
    some = xp.any(seen, axis=-1, keepdims=True)
    q = xp.where(some, q, 0.0)  # a row that sees nothing reaches nobody, whatever it holds
    s = backend.matmul(q, xp.matrix_transpose(gathered(k, p.k.shape[0]))) * beside_rows(p.scale)
    found = lift(xp.where(seen, s, -xp.inf), gathered(v, p.v.shape[0]))
    if p.sinks is not None:
        sink = xp.broadcast_to(beside_rows(p.sinks), (*s.shape[:-1], 1))
        found = merge(found, beside(sink, p.v.shape[-1]))
    out = xp.where(some, finish(found), 0.0)
    out = xp.permute_dims(out, (0, 1, 3, 2, 4))
    return backend.astype(xp.reshape(out, (batch, heads * group, n, p.v.shape[-1])), p.q.dtype)


def _once(backend: Backend, chosen: Array) -> Array:
    """In order, and what comes again is none."""
    xp = backend.xp
    chosen = xp.sort(chosen, axis=-1)
    again = chosen[..., 1:] == chosen[..., :-1]
    return xp.concat((chosen[..., :1], xp.where(again, -1, chosen[..., 1:])), axis=-1)


def _checked(p: Problem, query: Array, indices: Array, block_size: int) -> Array:
    """Indices as (B|1, Hi, L, K)."""
    backend, xp = p.backend, p.backend.xp
    if integral(p.who, "indices", indices) is not backend:
        raise TypeError(
            f"{p.who}: expected indices of the library of query, {backend.name}, got {shown(indices)}; convert them"
        )
    lead, shape, rows = p.axes.lead, tuple(indices.shape), p.frame.rows
    heads = sorted({1, p.k.shape[1], p.q.shape[1]})
    sizes = [*((1, n) for n in lead), *([heads] if query.ndim > 2 else []), (rows,)]
    if len(shape) != len(sizes) + 1 or any(n not in known for n, known in zip(shape, sizes, strict=False)):
        axes = [*map(str, lead), *([" or ".join(map(str, heads))] if query.ndim > 2 else []), str(rows), "K"]
        raise ValueError(
            f"{p.who}: expected indices of shape ({', '.join(axes)}), got {shape}; K keys or blocks for every row"
        )
    if 0 not in shape and backend.is_concrete(indices):
        last = -(-p.frame.keys // block_size) - 1
        with backend.eager():
            most = backend.to_list(xp.max(indices))
        if most > last:
            raise ValueError(
                f"{p.who}: expected indices of at most {last}, got {most}; there are {p.frame.keys} keys in blocks of "
                f"{block_size}, and a negative index is none"
            )
    indices = xp.broadcast_to(indices, (*lead, *shape[len(lead) :]))
    found = xp.reshape(indices, (p.frame.batch, shape[-3] if query.ndim > 2 else 1, *shape[-2:]))
    return backend.astype(found, xp.int32)
