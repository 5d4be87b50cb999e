"""PyTorch's own kernels, wherever they compute the contract exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from polyattn import mods
from polyattn.arrays import Array
from polyattn.implementations import BLOCKWISE, REFERENCE, Implementation, Output
from polyattn.implementations.blockwise import small, symbols
from polyattn.implementations.reference import allowed_at, modified, visible_keys
from polyattn.masks.tiles import EMPTY, FULL, grid
from polyattn.places import gather, positions
from polyattn.problem import Problem
from polyattn_torch.once import given_once
from polyattn_torch.state import can_read, derives_again, precisely, wants_gradients

ROWS = 128  # query rows of one call for a sparse mask
_HALVES = (torch.float16, torch.bfloat16)


def _sdpa(p: Problem, q: Array, k: Array, v: Array, attn_mask: Array | None = None, **options: Any) -> Array:
    # K and V of different lengths would be read past their end here: `pose` has compared them.
    given = (q, k, v, attn_mask)
    if q.device.type == "cpu" and q.dtype in _HALVES and wants_gradients(*given):
        # There the backward of the kernel rounds scores to half precision on its way.
        q, k, v, attn_mask = (x.float() if x is not None and x.dtype in _HALVES else x for x in given)
    with precisely(q):
        q, k, v, attn_mask = given_once(q, k, v, attn_mask)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, scale=p.scale, **_grouped(q, k), **options
        )
    return out.to(p.q.dtype)


def _grouped(q: Array, k: Array) -> dict[str, bool]:
    # Asked rather than compared: with dynamic sizes a comparison is a symbol, which the kernels do not take.
    return {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}


def _run_sdpa(p: Problem, settings: Any) -> Output:
    if p.bias is None and (p.mask is None or p.is_causal_square):
        return Output(_sdpa(p, p.q, p.k, p.v, is_causal=p.mask is not None))
    return _by_key_ranges(p) if p.bias is None and _can_skip(p) else _dense(p)


def _can_skip(p: Problem) -> bool:
    """Whether it is known which keys a range of queries may attend to, for all items alike."""
    mask = p.mask
    if mask is None or not mask.exact or not p.places.fixed or not can_read(p.q) or p.frame.rows <= ROWS:
        return False
    return mask.head_count() == 1 and mask.batch_size() == 1


def _by_key_ranges(p: Problem) -> Output:
    """A query tile at a time, each with the keys from the first to the last that it may see."""
    frame, mask = p.frame, p.mask
    assert mask is not None
    lines = grid(mask, frame.rows, frame.keys, (ROWS, ROWS), places=p.places, remember=True)
    met = [[j for j, tile in enumerate(line) if tile is not EMPTY] for line in lines]
    if not any(met):
        met[0] = [0]  # autograd wants to have heard of q, k and v
    parts = []
    seen: dict[tuple[int, ...], tuple[Array, Seen]] = {}  # tiles of a relative mask repeat along the diagonal
    for i, (line, here) in enumerate(zip(lines, met, strict=True)):
        q = p.q[:, :, i * ROWS : (i + 1) * ROWS]
        if not here:
            parts.append(q.new_zeros(frame.batch, frame.heads, q.shape[2], p.v.shape[3]))
            continue
        start, stop = here[0] * ROWS, min((here[-1] + 1) * ROWS, frame.keys)
        k, v = p.k[:, :, start:stop], p.v[:, :, start:stop]
        if all(tile is FULL for tile in line[here[0] : here[-1] + 1]):
            out = _sdpa(p, q, k, v)
        else:
            place = (start - i * ROWS if mask.relative else i, q.shape[2], stop - start)
            if place not in seen:
                allowed = _allowed(p, i * ROWS, q.shape[2], start, stop - start)
                seen[place] = allowed, _seen(allowed, p.k.shape[1])
            allowed, who = seen[place]
            out = _without_the_hidden(p, q, k, v, who, attn_mask=allowed)
        parts.append(out.expand(frame.batch, -1, -1, -1))
    return Output(torch.cat(parts, dim=2))


def _dense(p: Problem) -> Output:
    """One call with the whole mask, or with the bias where there is one."""
    mask = allowed = _allowed(p, 0, p.frame.rows, 0, p.frame.keys)
    if p.bias is not None:
        mask = torch.where(allowed, p.bias, -torch.inf)
        mask = mask if mask.dtype == torch.float32 else mask.to(p.q.dtype)
    return Output(_without_the_hidden(p, p.q, p.k, p.v, _seen(allowed, p.k.shape[1]), attn_mask=mask))


def _allowed(p: Problem, start: int, rows: int, key: int, keys: int) -> Array:
    """Mask and bias on a rectangle of the scores, (B|1, Hq|1, rows, keys)."""
    at = positions(p.backend, p.q, (p.frame.batch, p.frame.heads, rows, keys), p.places, (0, 0, start, key))
    bias = p.bias if p.bias is None or p.bias.shape[2] == 1 else p.bias[:, :, start : start + rows]
    allowed = allowed_at(p.mask, at, bias)
    assert allowed is not None
    return allowed.expand(*allowed.shape[:2], rows, keys)


class Seen(NamedTuple):
    """Who has something to do in a rectangle of the scores; None for all of them."""

    rows: Array | None  # (B|1, Hq|1, rows, 1): sees a key
    keys: Array | None  # (B|1, Hkv|1, keys, 1): is seen


def _seen(allowed: Array, kv_heads: int) -> Seen:
    rows, keys = allowed.any(-1, keepdim=True), visible_keys(allowed, kv_heads, torch)
    free = allowed.device.type == "cpu" and can_read(allowed)  # to ask whether it is all of them
    return Seen(*(None if free and bool(x.all()) else x for x in (rows, keys)))


def _clean(seen: Seen, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """What is hidden, replaced: its NaN would reach the rest through a product, forward or backward."""
    if seen.rows is not None:
        q = torch.where(seen.rows, q, 0.0)
    if seen.keys is not None:
        k, v = torch.where(seen.keys, k, 0.0), torch.where(seen.keys, v, 0.0)
    return q, k, v


def _zero(seen: Seen, out: Array) -> Array:
    """Rows that see nothing are 0, and whatever is sent back to them, nobody hears of it."""
    return out if seen.rows is None else torch.where(seen.rows, out, 0.0)


def _without_the_hidden(p: Problem, q: Array, k: Array, v: Array, seen: Seen, *, attn_mask: Array) -> Array:
    return _zero(seen, _sdpa(p, *_clean(seen, q, k, v), attn_mask=attn_mask))


def _why_not_flash(p: Problem) -> str | None:
    given = (p.q, p.k, p.v, p.sinks)
    if p.q.device.type != "cpu" or not can_read(p.q):
        return "the fused kernel that tells its lse is one of the CPU, called eagerly"
    if wants_gradients(*given):
        return "autograd cannot pass through the fused kernel that tells its lse"
    if p.q.shape[3] != p.v.shape[3] or not p.q.shape[:2] == p.k.shape[:2] == p.v.shape[:2]:
        return "widths, heads or batches differ"
    return _nothing(p)


def _sinks_on_flash(p: Problem, settings: Any) -> Output:
    """A sink takes its share of every row: out * sigmoid(lse - sink)."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(p.q, p.k, p.v, 0.0, p.mask is not None, scale=p.scale)
    return Output(_beside_sinks(p, out, lse))


def _beside_sinks(p: Problem, out: Array, lse: Array) -> Array:
    """What a sink leaves of every row."""
    return out if p.sinks is None else out * torch.sigmoid(lse - p.sinks[..., 0])[..., None].to(out.dtype)


def _flex_reason(p: Problem) -> str | None:
    """Why FlexAttention does not compute a problem."""
    if not can_read(p.q):
        return "the call is already being compiled or transformed"
    if p.q.dtype == torch.float64:
        return "FlexAttention has no float64 kernel"
    if p.q.device.type == "cpu" and wants_gradients(p.q, p.k, p.v, p.bias, *mods.parameters(p.score_mod)):
        return "FlexAttention has no derivatives on the CPU"
    if p.q.device.type == "cpu" and ("lse" in p.wanted or p.sinks is not None):
        return "FlexAttention gives no lse on the CPU, which sinks need too"
    return _nothing(p)


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # One compiled function; torch.compile keeps a bounded number of variants of it.
    return torch.compile(flex_attention, dynamic=False)


def _flex(p: Problem, settings: Any) -> Output:
    from torch.nn.attention.flex_attention import create_block_mask

    frame, offset, mask, bias, mod = p.frame, p.places.query, p.mask, p.bias, p.score_mod
    _check_mod(p)
    seen, block_mask = Seen(None, None), None
    if mask is not None or bias is not None:
        tiles = [_allowed(p, i, min(1024, frame.rows - i), 0, frame.keys) for i in range(0, frame.rows, 1024)]
        keys = torch.stack([visible_keys(allowed, p.k.shape[1], torch) for allowed in tiles]).any(0)
        seen = Seen(torch.cat([allowed.any(-1, keepdim=True) for allowed in tiles], 2), keys)
    if mask is not None:
        block_mask = create_block_mask(
            lambda b, h, q, kv: mask.allowed(gather(b, h, q, kv)._replace(q=q + offset)),
            *p.scores_shape,
            device=str(p.q.device),
        )

    def score_mod(score: Array, b: Array, h: Array, q: Array, kv: Array) -> Array:
        if mod is not None:
            score = mod(score, b, h, q + offset, kv)
        if bias is not None:
            where = (b, h, q, kv)
            score = score + bias[tuple(i if n > 1 else i * 0 for i, n in zip(where, bias.shape, strict=True))]
        return score

    q, k, v = (x.expand(frame.batch, -1, -1, -1) for x in given_once(*_clean(seen, p.q, p.k, p.v)))
    on_cpu = q.device.type == "cpu"  # inference, without lse
    with precisely(q):
        result = _compiled_flex()(
            q,
            k,
            v,
            score_mod=None if mod is None and bias is None else score_mod,
            block_mask=block_mask,
            scale=p.scale,
            **_grouped(q, k),
            return_lse=not on_cpu,
        )
    out, lse = (result, None) if on_cpu else result
    if lse is not None and seen.rows is not None:
        lse = torch.where(seen.rows[..., 0], lse, -torch.inf)
    return Output(_zero(seen, _beside_sinks(p, out, lse)), lse)


def _check_mod(p: Problem) -> None:
    """What is wrong with a score_mod, said of a few scores: FlexAttention has other words for it."""
    batch, heads, rows, keys = (min(n, 2) for n in p.scores_shape)
    sizes = (batch, heads, rows, keys)
    at = positions(p.backend, p.q, sizes, p.places)
    score = torch.zeros(sizes, dtype=p.compute_dtype, device=p.q.device)
    for mod in mods.parts(p.score_mod):
        modified(p, mod, score, at)


def _why_not_definition(p: Problem) -> str | None:
    return "the lengths of a nested tensor are no numbers" if p.q.is_nested else None


def _nothing(p: Problem) -> str | None:
    return "there is nothing to compute" if 0 in (*p.scores_shape, p.q.shape[3]) else None


def _derives_again(p: Problem) -> str | None:
    if derives_again(p.q):
        return "a transform of torch.func or forward mode looks on, which the kernels do not know"
    return None


def _passed_over_flex(p: Problem) -> str | None:
    if p.q.device.type == "cpu":
        return "it compiles for tens of seconds on the CPU"
    return _derives_again(p)


def _why_not_blockwise(p: Problem) -> str | None:
    """Why the blockwise engine cannot run, or would lose a gradient, which it must not."""
    if reason := _why_not_definition(p) or symbols(p):
        return reason
    functions = mods.functions(p.score_mod)
    if not functions or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.int32, device=p.q.device)
    score = torch.zeros((1, 1, 1, 1), dtype=p.compute_dtype, device=p.q.device)
    found = [f(score, zero, zero, zero, zero) for f in functions]  # checked by whoever runs it
    if any(isinstance(x, torch.Tensor) and x.requires_grad for x in found):
        return "score_mod captures a tensor that requires a gradient, which the engine cannot see"
    return None


def _passed_over_blockwise(p: Problem) -> str | None:
    if torch.compiler.is_compiling() and p.scores_bytes <= 2**30:
        return "torch.compile fuses the definition"
    return _derives_again(p) or small(p)


SDPA = Implementation(
    name="native",
    title="scaled_dot_product_attention",
    accepts=frozenset({"causal", "mask", "query_offset", "traced_offset", "positions", "bias", "origin"}),
    run=_run_sdpa,
    why_not=_nothing,
    passed_over=_derives_again,
    why="the library's own kernel is the fastest where it is exact",
    transforms=frozenset({"grad", "vmap", "compile", "export"}),
)
FLASH = Implementation(
    name="native",
    title="the flash kernel of the CPU",
    accepts=frozenset({"causal", "sinks"}),
    run=_sinks_on_flash,
    why_not=_why_not_flash,
    passed_over=_derives_again,
    why="a sink takes its share of what the library's own kernel gives",
)
FLEX = Implementation(
    name="native",
    title="FlexAttention",
    accepts=frozenset({"causal", "mask", "query_offset", "bias", "score_mod", "sinks", "lse"}),
    run=_flex,
    why_not=lambda p: _flex_reason(p),
    passed_over=_passed_over_flex,
    why="FlexAttention compiles a kernel for it",
    transforms=frozenset({"grad"}),
)
IMPLEMENTATIONS = (
    SDPA,
    FLASH,
    FLEX,
    replace(
        BLOCKWISE,
        why_not=_why_not_blockwise,
        passed_over=_passed_over_blockwise,
        transforms=frozenset({"grad", "compile"}),
    ),
    replace(REFERENCE, why_not=_why_not_definition),
)
