"""The derivative of blockwise attention: every tile again, with its weights from the saved lse.

    w = exp(s - lse);  dv = w^T do;  dp = do v^T;  ds = w (dp - delta),  delta = do . out
    dq = scale ds k;  dk = scale ds^T q

In one pass over the key tiles: dk and dv of a tile are summed over the query tiles that meet it, dq is
carried along (Dao 2022, arXiv:2205.14135, appendix B.4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from polyattn import mods
from polyattn.arrays import Array
from polyattn.implementations.blockwise.forward import Blocks, grouped_product
from polyattn.implementations.blockwise.plan import Plan
from polyattn.normalizers.softmax import grouped_matmul
from polyattn.problem.problem import Problem


class Gradients(NamedTuple):
    """Gradients in the shapes of the Problem, in the compute dtype; None where there is nothing to differentiate."""

    q: Array
    k: Array
    v: Array
    bias: Array | None
    sinks: Array | None
    scale: Array | None
    mod: tuple[Array, ...]  # for the arrays of a built-in score_mod


def backward(p: Problem, cut: Plan, out: Array, lse: Array, d_out: Array, d_lse: Array) -> Gradients:
    """The gradients of sum(out * d_out) + sum(lse * d_lse)."""
    blocks, backend, xp, frame = Blocks(p, cut), p.backend, p.backend.xp, p.frame
    rows, keys = blocks.rows, blocks.keys
    where = {"dtype": p.compute_dtype, "device": backend.device(p.q)}

    # Rows that see nothing send nothing back, whatever they hold.
    seen = (lse != -xp.inf)[..., None]
    base = xp.where(seen, lse[..., None], 0.0)  # (B, H, L, 1)
    d_out = xp.where(seen, backend.astype(d_out, p.compute_dtype), 0.0)
    with_sink = base
    if p.sinks is not None:
        top = xp.maximum(base, p.sinks)
        with_sink = xp.where(seen, top + xp.log(xp.exp(base - top) + xp.exp(p.sinks - top)), 0.0)
    mean = xp.sum(d_out * out, axis=-1, keepdims=True)
    d_lse = xp.where(seen, backend.astype(d_lse, p.compute_dtype)[..., None], 0.0)
    delta = mean - d_lse * xp.exp(with_sink - base)

    def zeros(*shape: int) -> Array:
        return xp.zeros(shape, **where)

    def block(g: Any) -> tuple[Array, ...]:
        def meet(j: Any, key_size: int, i: Any, size: int, masked: bool, state: Any) -> Any:
            dk, dv, dq, d_bias, d_mod = state
            start = i * rows
            q, do, level, shift = (
                blocks.query(g, start, size),
                *(blocks.part(x, g, start, size) for x in (d_out, with_sink, delta)),
            )
            if p.mask is not None or p.bias is not None:
                q = xp.where(blocks.part(seen, g, start, size), q, 0.0)
            tile = blocks.tile(g, q, start, j * keys, key_size, masked)
            w = (
                backend.exp_of_difference(tile.scores, level)
                if p.score_mod is None
                else xp.exp(tile.scores - level)
            )
            dropped = w if tile.keep is None else w * tile.keep
            dv = dv + _grouped_outer(blocks, dropped, do)
            ds = grouped_product(backend, do, xp.matrix_transpose(tile.v), slot=1)
            if tile.keep is not None:
                ds = ds * tile.keep
            ds -= shift
            ds *= w
            if d_bias is not None:
                d_bias = _add_tile(backend, d_bias, ds, start, j * keys)
            if p.score_mod is not None:
                ds, parts = mods.pull_back(p.score_mod, tile.raw, tile.at, ds, tile.allowed)  # type: ignore[arg-type]
                d_mod = tuple(a + b for a, b in zip(d_mod, parts, strict=True))
            dq = backend.add_at(dq, (0, 0, start, 0), grouped_matmul(ds, tile.k))
            return dk + _grouped_outer(blocks, ds, q), dv, dq, d_bias, d_mod

        def key_tile(j: Any, size: int, state: Any) -> Any:
            dk, dv, *rest = state
            tiles = (zeros(*dk.shape[:2], size, dk.shape[3]), zeros(*dv.shape[:2], size, dv.shape[3]))
            dk_j, dv_j, *rest = blocks.meet_all(
                cut.by_key,
                g,
                j,
                frame.rows,
                rows,
                lambda i, row_size, masked, inner: meet(j, size, i, row_size, masked, inner),
                (*tiles, *rest),
            )
            at = (0, 0, j * keys, 0)
            return backend.add_at(dk, at, dk_j), backend.add_at(dv, at, dv_j), *rest

        kv = (blocks.batch, blocks.kv_heads, frame.keys)
        state: Any = (
            zeros(*kv, p.k.shape[3]),
            zeros(*kv, p.v.shape[3]),
            zeros(blocks.batch, blocks.heads, frame.rows, p.q.shape[3]),
            None if p.bias is None else zeros(*_block_shape(blocks, p.bias)),
            tuple(zeros(*a.shape) for a in mods.parameters(p.score_mod)),
        )
        whole, ragged = divmod(frame.keys, keys)
        state = backend.fold(whole, lambda j, state: key_tile(j, keys, state), state)
        dk, dv, dq, d_bias, d_mod = key_tile(whole, ragged, state) if ragged else state
        return dq, dk, dv, *(() if d_bias is None else (d_bias,)), *d_mod

    dq, dk, dv, *rest = backend.map(block, blocks.count)
    dq, dk, dv = (blocks.assemble(x[None, ...]) for x in (dq, dk, dv))
    d_bias = None if p.bias is None else _gather_bias(blocks, rest.pop(0), p.bias.shape)
    d_sinks = d_scale = None
    if p.sinks is not None:
        d_sinks = -xp.sum(xp.where(seen, xp.exp(p.sinks - with_sink), 0.0) * mean, axis=(0, 2, 3))
        d_sinks = d_sinks if p.sinks.shape[0] > 1 else xp.sum(d_sinks, keepdims=True)
    if not isinstance(p.scale, float):
        per_head = xp.sum(xp.where(seen, backend.astype(p.q, p.compute_dtype), 0.0) * dq, axis=(0, 2, 3))
        d_scale = per_head if p.scale.shape[0] > 1 else xp.sum(per_head, keepdims=True)
    return Gradients(
        _shrink(dq * p.scale, p.q.shape, xp),
        _shrink(dk, p.k.shape, xp),
        _shrink(dv, p.v.shape, xp),
        d_bias,
        None if d_sinks is None else xp.reshape(d_sinks, p.sinks.shape),  # type: ignore[union-attr]
        None if d_scale is None else xp.reshape(d_scale, p.scale.shape),  # type: ignore[union-attr]
        tuple(xp.sum(x, axis=0) for x in rest),
    )


def _grouped_outer(blocks: Blocks, a: Array, b: Array) -> Array:
    """sum over rows and grouped heads of a^T b: (B, H, N, I), (B, H, N, J) -> (B, Hkv, I, J)."""
    xp = blocks.backend.xp
    if blocks.group > 1:
        a, b = (xp.reshape(x, (x.shape[0], blocks.kv_heads, -1, x.shape[3])) for x in (a, b))
    return blocks.backend.matmul(xp.matrix_transpose(a), b)


def _block_shape(blocks: Blocks, bias: Array) -> tuple[int, ...]:
    """The part of a bias that one block touches."""
    batch, heads, rows, keys = bias.shape
    return (min(batch, blocks.batch), min(heads, blocks.heads), rows, keys)


def _add_tile(backend: Any, total: Array, tile: Array, row: Any, key: Any) -> Array:
    """A tile of score gradients, summed to the axes that the bias has, added where it belongs."""
    axes = tuple(axis for axis in range(4) if total.shape[axis] == 1 < tile.shape[axis])
    tile = backend.xp.sum(tile, axis=axes, keepdims=True) if axes else tile
    return backend.add_at(
        total, (0, 0, row if total.shape[2] > 1 else 0, key if total.shape[3] > 1 else 0), tile
    )


def _gather_bias(blocks: Blocks, x: Array, shape: tuple[int, ...]) -> Array:
    """The bias gradients of all blocks (count, b, h, L, S) as one."""
    xp, item = blocks.backend.xp, blocks.per_item
    x = xp.reshape(x, (x.shape[0] // item, item, *x.shape[1:]))
    if shape[1] == 1:
        x = xp.sum(x, axis=1, keepdims=True)
    if shape[0] == 1:
        x = xp.sum(x, axis=0, keepdims=True)
    x = xp.permute_dims(x, (0, 2, 1, 3, 4, 5))
    return xp.reshape(x, shape)


def _shrink(x: Array, shape: tuple[int, ...], xp: Any) -> Array:
    """Summed over a batch axis that was broadcast."""
    return xp.sum(x, axis=0, keepdims=True) if shape[0] == 1 < x.shape[0] else x
