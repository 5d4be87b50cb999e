"""PyTorch's own kernels, wherever they compute the contract exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from polyattn.arrays import Array
from polyattn.implementations.choice import Output
from polyattn.implementations.reference import visible_keys
from polyattn.masks import causal
from polyattn.masks.tiles import EMPTY, FULL
from polyattn.places.positions import whole
from polyattn.problem.problem import Problem
from polyattn_torch import can_read, precisely

CAUSAL = causal()
ROWS = 128  # query rows of one call for a sparse mask
Kernel = Callable[[Problem], Output]


def choose_kernel(p: Problem, needs_lse: bool, *, by_name: bool) -> Kernel | str:
    """The function that runs a problem on a kernel of PyTorch, or why none computes it.

    by_name: the caller insists, so that FlexAttention may take its tens of seconds to compile on the CPU.
    """
    if p.dropout_rate > 0.0:
        return "there is dropout, which the kernels draw from another generator"
    if not isinstance(p.scale, float):
        return "scale is an array, which the kernels take as a constant"
    if 0 in (*p.scores_shape, p.q.shape[3]):
        return "there is nothing to compute"
    causal_square = p.mask is None or _is_causal_square(p)
    if p.score_mod is None and not needs_lse and (p.sinks is None or (causal_square and _flash_gives_lse(p))):
        if p.sinks is not None:
            return _sinks_on_flash
        if p.bias is None and causal_square:
            return _plain
        return _by_key_ranges if p.bias is None and _can_skip(p) else _dense
    if p.q.device.type == "cpu" and not by_name:
        return "score_mod, sinks or lse need FlexAttention, which compiles for tens of seconds on the CPU"
    return _flex_reason(p, needs_lse) or _flex


def _sdpa(p: Problem, q: Array, k: Array, v: Array, **options: Any) -> Array:
    # K and V of different lengths would be read past their end here: `pose` has compared them.
    with precisely(q):
        return scaled_dot_product_attention(
            q, k, v, scale=p.scale, enable_gqa=q.shape[1] != k.shape[1], **options
        )


def _is_causal_square(p: Problem) -> bool:
    at_zero = isinstance(p.offset, int) and p.offset == 0
    return at_zero and p.frame.rows == p.frame.keys and p.mask == CAUSAL


def _plain(p: Problem) -> Output:
    return Output(_sdpa(p, p.q, p.k, p.v, is_causal=p.mask is not None), None)


def _can_skip(p: Problem) -> bool:
    """Whether it is known which keys a range of queries may attend to, for all items alike."""
    mask = p.mask
    known = mask is not None and mask.exact and isinstance(p.offset, int) and p.frame.rows > ROWS
    return known and mask.head_count() == 1 and mask.batch_size() == 1 and can_read(p.q)  # type: ignore[union-attr]


def _by_key_ranges(p: Problem) -> Output:
    """A query tile at a time, each with the keys from the first to the last that it may see."""
    frame, mask = p.frame, p.mask
    assert mask is not None
    parts = []
    seen: dict[tuple[int, ...], tuple[Array, bool]] = {}  # tiles of a relative mask repeat along the diagonal
    for i, line in enumerate(
        mask.tiles(frame.rows, frame.keys, (ROWS, ROWS), query_offset=p.offset, remember=True)
    ):
        q = p.q[:, :, i * ROWS : (i + 1) * ROWS]
        met = [j for j, tile in enumerate(line) if tile is not EMPTY]
        if not met:
            parts.append(q.new_zeros(frame.batch, frame.heads, q.shape[2], p.v.shape[3]))
            continue
        start, stop = met[0] * ROWS, min((met[-1] + 1) * ROWS, frame.keys)
        k, v = p.k[:, :, start:stop], p.v[:, :, start:stop]
        options = {}
        if any(tile is not FULL for tile in line[met[0] : met[-1] + 1]):
            place = (start - i * ROWS if mask.relative else i, q.shape[2], stop - start)
            if place not in seen:
                allowed = _allowed(p, i * ROWS, q.shape[2], start, stop - start)
                seen[place] = allowed, _sees_all(allowed, p.k.shape[1])
            options["attn_mask"], all_visible = seen[place]
            if not all_visible:
                k, v = _clean(options["attn_mask"], k, v)
        parts.append(_sdpa(p, q, k, v, **options).expand(frame.batch, -1, -1, -1))
    return Output(torch.cat(parts, dim=2), None)


def _dense(p: Problem) -> Output:
    """One call with the whole mask, or with the bias where there is one."""
    frame = p.frame
    shape = (frame.rows, frame.keys)
    allowed = None if p.mask is None else _allowed(p, 0, frame.rows, 0, frame.keys)
    mask = allowed
    if p.bias is not None:
        reachable = p.bias != -torch.inf
        allowed = reachable if allowed is None else allowed & reachable
        mask = torch.where(allowed, p.bias, -torch.inf)
        mask = mask if mask.dtype == torch.float32 else mask.to(p.q.dtype)
    assert allowed is not None
    assert mask is not None
    k, v = (p.k, p.v) if _sees_all(allowed, p.k.shape[1]) else _clean(allowed, p.k, p.v)
    return Output(_sdpa(p, p.q, k, v, attn_mask=mask.expand(*mask.shape[:2], *shape)), None)


def _allowed(p: Problem, start: int, rows: int, key: int, keys: int) -> Array:
    """The mask on a rectangle of the scores, (B|1, Hq|1, rows, keys)."""
    at = whole(p.backend, p.q, p.frame.batch, p.frame.heads, rows, keys, p.offset)

    def cut(x: Array) -> Array:
        x = x if x.shape[2] == 1 else x[:, :, start : start + rows]
        return x if x.shape[3] == 1 else x[:, :, :, key : key + keys]

    assert p.mask is not None
    allowed = p.mask.allowed(at._replace(row=at.row + start, q=at.q + start, kv=at.kv + key, cut=cut))
    return allowed.expand(*allowed.shape[:2], rows, keys)


def _sees_all(allowed: Array, kv_heads: int) -> bool:
    """Whether every key is visible to some query; False where that cannot be told for free."""
    return (
        allowed.device.type == "cpu"
        and can_read(allowed)
        and bool(visible_keys(allowed, kv_heads, torch).all())
    )


def _clean(allowed: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values that no query may see, replaced: a hidden NaN would reach the rest through the product."""
    visible = visible_keys(allowed, k.shape[1], torch)
    return torch.where(visible, k, 0.0), torch.where(visible, v, 0.0)


def _flash_gives_lse(p: Problem) -> bool:
    """The fused CPU kernel tells its lse, but autograd cannot pass through it."""
    given = (p.q, p.k, p.v, p.sinks)
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in given if x is not None)
    same = p.q.shape[3] == p.v.shape[3] and p.q.shape[:2] == p.k.shape[:2] == p.v.shape[:2]
    return p.q.device.type == "cpu" and not needs_grad and p.bias is None and same and can_read(p.q)


def _sinks_on_flash(p: Problem) -> Output:
    """A sink takes its share of every row: out * sigmoid(lse - sink)."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(p.q, p.k, p.v, 0.0, p.mask is not None, scale=p.scale)
    assert p.sinks is not None
    return Output(out * torch.sigmoid(lse - p.sinks[..., 0])[..., None].to(out.dtype), None)


def _flex_reason(p: Problem, needs_lse: bool) -> str | None:
    """Why FlexAttention does not compute a problem."""
    if not isinstance(p.offset, int):
        return "query_offset is an array, which FlexAttention would have to compile in"
    if not can_read(p.q):
        return "the call is already being compiled or transformed"
    if p.q.dtype == torch.float64:
        return "FlexAttention has no float64 kernel"
    if p.q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (p.q, p.k, p.v)):
        return "FlexAttention has no derivatives on the CPU"
    if p.q.device.type == "cpu" and (needs_lse or p.sinks is not None):
        return "FlexAttention gives no lse on the CPU, which sinks need too"
    return None


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # One compiled function; torch.compile keeps a bounded number of variants of it.
    return torch.compile(flex_attention, dynamic=False)


def _flex(p: Problem) -> Output:
    frame, offset, mask, bias, mod = p.frame, p.offset, p.mask, p.bias, p.score_mod
    k, v, block_mask = p.k, p.v, None
    if mask is not None:
        hidden_from = [
            visible_keys(_allowed(p, i, min(1024, frame.rows - i), 0, frame.keys), k.shape[1], torch)
            for i in range(0, frame.rows, 1024)
        ]
        visible = torch.stack(torch.broadcast_tensors(*hidden_from)).any(0)
        k, v = torch.where(visible, k, 0.0), torch.where(visible, v, 0.0)
        block_mask = p.backend.block_mask(  # type: ignore[attr-defined]
            lambda b, h, q, kv: mask(b, h, q + offset, kv), frame.batch, frame.heads, frame.rows, frame.keys,
            device=str(p.q.device),
        )  # fmt: skip

    def score_mod(score: Array, b: Array, h: Array, q: Array, kv: Array) -> Array:
        if mod is not None:
            score = mod(score, b, h, q + offset, kv)
        if bias is not None:
            where = (b, h, q, kv)
            score = score + bias[tuple(i if n > 1 else i * 0 for i, n in zip(where, bias.shape, strict=True))]
        return score

    q, k, v = (x.expand(frame.batch, -1, -1, -1) for x in (p.q, k, v))
    on_cpu = q.device.type == "cpu"  # inference, without lse
    with precisely(q):
        result = _compiled_flex()(
            q,
            k,
            v,
            score_mod=None if mod is None and bias is None else score_mod,
            block_mask=block_mask,
            scale=p.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            return_lse=not on_cpu,
        )
    out, lse = (result, None) if on_cpu else result
    if p.sinks is not None:
        out = out * torch.sigmoid(lse - p.sinks[..., 0])[..., None].to(out.dtype)
    return Output(out, lse)
