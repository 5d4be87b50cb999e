"""PyTorch's own kernels, wherever they compute the contract exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from polyattn.arrays import Array
from polyattn.implementations import Implementation, Output
from polyattn.masks import Mask
from polyattn.masks.tiles import EMPTY, FULL, grid
from polyattn.problem import Problem
from polyattn_torch.hidden import Seen, allowed_in, clean, seen_in, zero
from polyattn_torch.once import given_once
from polyattn_torch.reasons import looked_on, nothing
from polyattn_torch.state import can_read, precisely, wants_gradients

__all__ = ["FLASH", "SDPA", "beside_sinks", "grouped"]

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
            q, k, v, attn_mask=attn_mask, scale=p.scale, **grouped(q, k), **options
        )
    return out.to(p.q.dtype)


def grouped(q: Array, k: Array) -> dict[str, bool]:
    # Asked rather than compared: with dynamic sizes a comparison is a symbol, which the kernels do not take.
    return {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}


def _run_sdpa(p: Problem, settings: Any) -> Output:
    if p.bias is None and (p.mask is None or p.is_causal_square):
        return Output(_sdpa(p, p.q, p.k, p.v, is_causal=p.mask is not None))
    mask = _known(p) if p.bias is None else None
    return _dense(p) if mask is None else _by_key_ranges(p, mask)


def _known(p: Problem) -> Mask | None:
    """The mask, if it is known which keys a range of queries may attend to, for all items alike."""
    mask = p.mask
    if mask is None or not mask.exact or not p.places.fixed or not can_read(p.q) or p.frame.rows <= ROWS:
        return None
    return mask if mask.head_count() == 1 and mask.batch_size() == 1 else None


def _by_key_ranges(p: Problem, mask: Mask) -> Output:
    """A query tile at a time, each with the keys from the first to the last that it may see."""
    frame = p.frame
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
                allowed = allowed_in(p, i * ROWS, q.shape[2], start, stop - start)
                seen[place] = allowed, seen_in(allowed, p.k.shape[1])
            allowed, who = seen[place]
            out = _without_the_hidden(p, q, k, v, who, attn_mask=allowed)
        parts.append(out.expand(frame.batch, -1, -1, -1))
    return Output(torch.cat(parts, dim=2))


def _dense(p: Problem) -> Output:
    """One call with the whole mask, or with the bias where there is one."""
    mask = allowed = allowed_in(p, 0, p.frame.rows, 0, p.frame.keys)
    if p.bias is not None:
        mask = torch.where(allowed, p.bias, -torch.inf)
        mask = mask if mask.dtype == torch.float32 else mask.to(p.q.dtype)
    return Output(_without_the_hidden(p, p.q, p.k, p.v, seen_in(allowed, p.k.shape[1]), attn_mask=mask))


def _without_the_hidden(p: Problem, q: Array, k: Array, v: Array, seen: Seen, *, attn_mask: Array) -> Array:
    return zero(seen, _sdpa(p, *clean(seen, q, k, v), attn_mask=attn_mask))


def _why_not_flash(p: Problem) -> str | None:
    given = (p.q, p.k, p.v, p.sinks)
    if p.q.device.type != "cpu" or not can_read(p.q):
        return "the fused kernel that tells its lse is one of the CPU, called eagerly"
    if wants_gradients(*given):
        return "autograd cannot pass through the fused kernel that tells its lse"
    if p.q.shape[3] != p.v.shape[3] or not p.q.shape[:2] == p.k.shape[:2] == p.v.shape[:2]:
        return "widths, heads or batches differ"
    return nothing(p)


def _sinks_on_flash(p: Problem, settings: Any) -> Output:
    """A sink takes its share of every row: out * sigmoid(lse - sink)."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(p.q, p.k, p.v, 0.0, p.mask is not None, scale=p.scale)
    return Output(beside_sinks(p, out, lse))


def beside_sinks(p: Problem, out: Array, lse: Array) -> Array:
    """What a sink leaves of every row, by the lse of the keys."""
    if p.sinks is None:
        return out
    return (out * torch.sigmoid(lse - p.sinks[..., 0])[..., None]).to(out.dtype)


def _passed_over_sdpa(p: Problem) -> str | None:
    apart = p.k.shape[1] != p.q.shape[1] and p.v.shape[3] != p.q.shape[3]
    if apart and p.q.device.type == "cpu":
        # It is exact, and slow: the flash kernel of the CPU wants E = D, and the one in its place repeats K and V for
        # every query head. A step of 16 heads over 4096 latents of widths 576 and 512 takes 205 ms, by the definition 4;
        # 8 heads on 2, D = 64, E = 128, 2048 causal rows 500 ms, in tiles 143. With V and the queries padded to one width
        # the flash kernel takes 15 and 101, with gradients 58 and 459 where the others take 19 and 388 (2026-11-30).
        return "beside values of another width it repeats the kv heads"
    return looked_on(p)


SDPA = Implementation(
    name="native",
    title="scaled_dot_product_attention",
    accepts=frozenset({"causal", "mask", "query_offset", "traced_offset", "positions", "bias", "origin"}),
    run=_run_sdpa,
    why_not=nothing,
    passed_over=_passed_over_sdpa,
    why="the library's own kernel is the fastest where it is exact",
    transforms=frozenset({"grad", "vmap", "compile", "export"}),
)
FLASH = Implementation(
    name="native",
    title="the flash kernel of the CPU",
    accepts=frozenset({"causal", "sinks"}),
    run=_sinks_on_flash,
    why_not=_why_not_flash,
    passed_over=looked_on,
    why="a sink takes its share of what the library's own kernel gives",
)
