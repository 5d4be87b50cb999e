"""The derivative of the engine: every tile again, with its weights from the saved lse.

    w = exp(s - lse);  dv = w^T do;  dp = do v^T;  ds = w (dp - delta),  delta = do . out
    dq = scale ds k;  dk = scale ds^T q

In one pass over the key tiles: dk and dv of a tile are summed over the query tiles that meet it, dq is
carried along (Dao 2022, arXiv:2205.14135, appendix B.4). A sink takes its share of every row, and what it leaves,
exp(lse) / (exp(lse) + exp(sink)), is a factor on do: weights are always among the keys, so a row far below its sink
has finite gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from polyattn import mods
from polyattn.arrays import Array, backend_of
from polyattn.implementations.blockwise.forward import Averages
from polyattn.implementations.blockwise.plan import Plan
from polyattn.implementations.blockwise.tile import Blocks, Spot, grouped_product
from polyattn.normalizers.softmax import grouped_matmul
from polyattn.problem import Problem


class Gradients(NamedTuple):
    """Gradients in the shapes of the Problem; None where there is nothing to differentiate.

    In the compute dtype, but for those of k and v, which may be in theirs.
    """

    q: Array
    k: Array
    v: Array
    scale: Array | None
    bias: Array | None
    sinks: Array | None
    mod: tuple[Array, ...]  # for the arrays of a built-in score_mod


class Rows(NamedTuple):
    """What every query row sends back, (B, H, L, ...): made once, cut to tiles."""

    seen: Array  # whether it sees a key
    lse: Array  # 0 where it does not
    delta: Array  # of ds = w (d_out v^T - delta)
    left: Array | None  # by the sink: a factor on d_out
    mean: Array  # d_out . out, of all of the row
    lse_and_sink: Array


class Sums(NamedTuple):
    """The gradients of a tile, or of a block, summed so far; dk and dv then those of the key tile at hand, or of all."""

    dk: Array  # (b, hkv, keys, D)
    dv: Array  # (b, hkv, keys, E)
    dq: Array  # (b, h, rows, D) of the queries, scaled
    bias: Array | None
    mod: tuple[Array, ...]


def backward(
    p: Problem, plan: Plan, saved: Averages, d_out: Array, d_lse: Array, kind: type[Blocks] = Blocks
) -> Gradients:
    """The gradients of sum(out * d_out) + sum(lse * d_lse)."""
    blocks, backend, xp = kind(p, plan), p.backend, p.backend.xp
    rows = returned(p.sinks, saved, d_out, d_lse)

    def block(g: Any) -> tuple[Array, ...]:
        sums = _block(blocks, g, rows, d_out)
        return sums.dq, sums.dk, sums.dv, *(() if sums.bias is None else (sums.bias,)), *sums.mod

    dq, dk, dv, *rest = backend.map(block, blocks.count)  # each (blocks, b, h, N, W)
    dq, dk, dv = (blocks.assemble(x[None, ...]) for x in (dq, dk, dv))
    d_bias = None if p.bias is None else _gather_bias(blocks, rest.pop(0), p.bias.shape)
    d_sinks = d_scale = None
    if p.sinks is not None:
        share = xp.exp(p.sinks - rows.lse_and_sink)
        d_sinks = _per_head(-xp.sum(share * rows.mean, axis=(0, 2, 3)), p.sinks)
    if not isinstance(p.scale, float):
        q = xp.where(rows.seen, backend.astype(p.q, p.compute_dtype), 0.0)
        d_scale = _per_head(xp.sum(q * dq, axis=(0, 2, 3)), p.scale)
    return Gradients(
        _shrink(dq * p.scale, p.q),
        _shrink(dk, p.k),
        _shrink(dv, p.v),
        d_scale,
        d_bias,
        d_sinks,
        tuple(xp.sum(x, axis=0) for x in rest),
    )


def returned(sinks: Array | None, saved: Averages, d_out: Array, d_lse: Array) -> Rows:
    """What the rows send back, in the dtype of lse."""
    backend, dtype = backend_of(saved.lse), saved.lse.dtype
    xp, astype = backend.xp, backend.astype
    # Rows that see nothing send nothing back, whatever they hold.
    seen = (saved.lse != -xp.inf)[..., None]
    lse = xp.where(seen, saved.lse[..., None], 0.0)
    d_lse = xp.where(seen, astype(d_lse, dtype)[..., None], 0.0)
    sent = xp.where(seen, astype(d_out, dtype), 0.0)  # not kept: tiles make theirs of d_out
    mean = xp.sum(sent * astype(saved.out, dtype), axis=-1, keepdims=True)
    if sinks is None:
        return Rows(seen, lse, mean - d_lse, None, mean, lse)
    top = xp.maximum(lse, sinks)
    # Infinite where the row sees nothing: then nothing is left, and no sink has a share of it.
    both = xp.where(seen, top + xp.log(xp.exp(lse - top) + xp.exp(sinks - top)), xp.inf)
    left = xp.exp(lse - both)
    return Rows(seen, lse, mean * left - d_lse, left, mean, both)


def _block(blocks: Blocks, g: Any, rows: Rows, d_out: Array) -> Sums:
    """The gradients of one block: a fold over its key tiles."""
    p, backend, xp = blocks.p, blocks.backend, blocks.backend.xp

    def zeros(*shape: int, dtype: Any = p.compute_dtype) -> Array:
        return xp.zeros(shape, dtype=dtype, device=backend.device(p.q))

    def of_keys(x: Array) -> Array:
        """Written once a key tile, so in the dtype of the keys, unless items are summed later."""
        shared = x.shape[0] == 1 < p.frame.batch
        shape = (blocks.items, blocks.kv_heads, *x.shape[2:])
        return zeros(*shape, dtype=p.compute_dtype if shared else x.dtype)

    def key_tile(j: Any, size: int, total: Sums) -> Sums:
        start = total._replace(
            dk=zeros(*total.dk.shape[:2], size, total.dk.shape[3]),
            dv=zeros(*total.dv.shape[:2], size, total.dv.shape[3]),
        )
        sums: Sums = blocks.fold(
            blocks.plan.by_key,
            g,
            j,
            p.frame.rows,
            blocks.rows,
            lambda i, n, masked, sums: _tile(blocks, g, rows, d_out, (i, n), (j, size), masked, sums),
            start,
        )
        at = (0, 0, j * blocks.keys, 0)
        dk, dv = (
            backend.add_at(x, at, backend.astype(tile, x.dtype))
            for x, tile in ((total.dk, sums.dk), (total.dv, sums.dv))
        )
        return sums._replace(dk=dk, dv=dv)

    nothing = Sums(
        dk=of_keys(p.k),
        dv=of_keys(p.v),
        dq=zeros(blocks.items, blocks.heads, p.frame.rows, p.q.shape[3]),
        bias=None if p.bias is None else zeros(*_bias_shape(blocks, p.bias)),
        mod=tuple(zeros(*x.shape) for x in mods.parameters(p.score_mod)),
    )
    whole, ragged = divmod(p.frame.keys, blocks.keys)
    total: Sums = backend.fold(whole, lambda j, total: key_tile(j, blocks.keys, total), nothing)
    return key_tile(whole, ragged, total) if ragged else total


def _tile(
    blocks: Blocks,
    g: Any,
    rows: Rows,
    d_out: Array,
    query: tuple[Any, int],  # number and size of the query tile
    key: tuple[Any, int],
    masked: bool,
    sums: Sums,
) -> Sums:
    """The sums with one more tile."""
    p, backend, xp = blocks.p, blocks.backend, blocks.backend.xp
    row, size, column = query[0] * blocks.rows, query[1], key[0] * blocks.keys
    q = blocks.query(g, row, size)  # (b, h, rows, D)
    seen, lse, delta = (blocks.part(x, g, row, size) for x in rows[:3])
    d_out = backend.astype(blocks.part(d_out, g, row, size), p.compute_dtype)
    if not (p.mask is None and p.bias is None and p.score_mod is None):  # some rows may see nothing
        q, d_out = xp.where(seen, q, 0.0), xp.where(seen, d_out, 0.0)
    if rows.left is not None:
        d_out = d_out * blocks.part(rows.left, g, row, size)
    k, v = (blocks.part(x, g, column, key[1], kv=True) for x in (p.k, p.v))
    tile: Sums = blocks.run(derive, Spot(g, row, column, masked), q, k, v, lse, d_out, delta)
    d_bias = sums.bias
    if d_bias is not None:
        start = (0, 0, row if d_bias.shape[2] > 1 else 0, column if d_bias.shape[3] > 1 else 0)
        d_bias = backend.add_at(d_bias, start, tile.bias)
    return Sums(
        sums.dk + tile.dk,
        sums.dv + tile.dv,
        backend.add_at(sums.dq, (0, 0, row, 0), tile.dq),
        d_bias,
        tuple(a + b for a, b in zip(sums.mod, tile.mod, strict=True)),
    )


def derive(
    blocks: Blocks, spot: Spot, q: Array, k: Array, v: Array, lse: Array, d_out: Array, delta: Array
) -> Sums:
    """The gradients that one tile gives."""
    p, backend, xp = blocks.p, blocks.backend, blocks.backend.xp
    tile = blocks.tile(spot, q, k, v)
    plain = p.score_mod is None  # then the scores are ours to overwrite
    w, slope = blocks.normalizer.again(tile.scores, lse, consume=plain)
    dv = _grouped_outer(blocks, w if tile.keep is None else w * tile.keep, d_out)
    ds = grouped_product(backend, d_out, xp.matrix_transpose(tile.v), slot=1)  # (b, h, rows, keys)
    if tile.keep is not None:
        ds = ds * tile.keep
    ds = blocks.normalizer.pull(slope, ds, delta)
    d_bias, d_mod = None if p.bias is None else _like_bias(blocks, p.bias, ds), ()
    if p.score_mod is not None and tile.at is not None:
        ds, d_mod = mods.derivative(p.score_mod, tile.raw, tile.at, ds, tile.allowed)
    return Sums(_grouped_outer(blocks, ds, q), dv, grouped_matmul(ds, tile.k), d_bias, d_mod)


def _grouped_outer(blocks: Blocks, a: Array, b: Array) -> Array:
    """sum over rows and grouped heads of a^T b: (b, h, N, I), (b, h, N, J) -> (b, hkv, I, J)."""
    xp = blocks.backend.xp
    if blocks.group > 1:
        rows = blocks.group * a.shape[2]
        a, b = (xp.reshape(x, (x.shape[0], blocks.kv_heads, rows, x.shape[3])) for x in (a, b))
    return blocks.backend.matmul(xp.matrix_transpose(a), b)


def _bias_shape(blocks: Blocks, bias: Array) -> tuple[int, ...]:
    """The part of a bias that one block touches."""
    batch, heads, rows, keys = bias.shape
    return (min(batch, blocks.items), min(heads, blocks.heads), rows, keys)


def _like_bias(blocks: Blocks, bias: Array, ds: Array) -> Array:
    """A tile of score gradients, summed to the axes that the bias has."""
    there = _bias_shape(blocks, bias)
    axes = tuple(axis for axis in range(4) if there[axis] == 1 < ds.shape[axis])
    return blocks.backend.xp.sum(ds, axis=axes, keepdims=True) if axes else ds


def _gather_bias(blocks: Blocks, x: Array, shape: tuple[int, ...]) -> Array:
    """The bias gradients of all blocks (blocks, b, h, L, S) as one."""
    xp, item = blocks.backend.xp, blocks.per_item
    x = xp.reshape(x, (x.shape[0] // item, item, *x.shape[1:]))  # (B', H', b, h, L, S)
    if shape[1] == 1:
        x = xp.sum(x, axis=1, keepdims=True)
    if shape[0] == 1:
        x = xp.sum(x, axis=0, keepdims=True)
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3, 4, 5)), shape)


def _per_head(gradient: Array, like: Array) -> Array:
    """Gradients of all heads (H,) in the shape of a (1, H|1, 1, 1) argument."""
    xp = backend_of(gradient).xp
    return xp.reshape(gradient if like.shape[1] > 1 else xp.sum(gradient), like.shape)


def _shrink(gradient: Array, like: Array) -> Array:
    """Summed over a batch axis that was broadcast."""
    if like.shape[0] == 1 < gradient.shape[0]:
        return backend_of(gradient).xp.sum(gradient, axis=0, keepdims=True)
    return gradient
