"""FlexAttention as the fused kernel of CUDA: masks, biases and modifications become part of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from polyattn import mods
from polyattn.arrays import Array
from polyattn.arrays.leaves import says_all, take_out
from polyattn.implementations import Implementation, Output
from polyattn.implementations.reference import modified, visible_keys
from polyattn.masks import Mask
from polyattn.masks.tiles import FULL, PARTIAL, grid
from polyattn.places import Places, gather, positions
from polyattn.problem import Problem
from polyattn_torch.hidden import Seen, allowed_in, clean, zero
from polyattn_torch.native import beside_sinks, grouped
from polyattn_torch.once import given_once
from polyattn_torch.reasons import looked_on, nothing
from polyattn_torch.state import can_read, precisely

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["FLEX"]

BLOCK = 128  # rows and keys of a block that is skipped or not, as FlexAttention has it
MOST = 64  # compiled functions that are kept
LEAST = 16  # of a width: Triton's products are no narrower


def _no_kernel(p: Problem) -> str | None:
    """Why the kernel that is compiled would not take the arrays."""
    if p.q.device.type != "cuda":
        return "FlexAttention is the kernel of CUDA: on the CPU it has neither derivatives nor lse"
    if p.q.dtype == torch.float64:
        return "FlexAttention has no float64 kernel"
    if min(p.q.shape[3], p.v.shape[3]) < LEAST:
        return f"FlexAttention takes widths from {LEAST} on"
    return None


def _why_not(p: Problem) -> str | None:
    if not can_read(p.q):
        return "the call is already being compiled or transformed"
    return _no_kernel(p) or nothing(p)


def _kernel(p: Problem) -> Callable[..., Any]:
    """The compiled function for masks and modifications like these; functions of the user share one."""
    kind = take_out((p.mask, p.score_mod), [])
    return _compiled(kind if says_all(kind) else None)


@lru_cache(maxsize=MOST)
def _compiled(kind: Any) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Of one function Dynamo keeps eight programs, and runs what it is given beyond them uncompiled: each kind has its
    # own eight. Its lengths become symbols when a second one comes.
    return torch.compile(flex_attention, isolate_recompiles=True)


def _run(p: Problem, settings: Any) -> Output:
    from torch.nn.attention.flex_attention import AuxRequest

    mask, bias, mod = p.mask, p.bias, p.score_mod
    _check_mod(p)
    places = _captured(p)

    def score_mod(score: Array, b: Array, h: Array, q: Array, kv: Array) -> Array:
        at = gather(b, h, q, kv, places)
        if isinstance(p.scale, torch.Tensor):
            score = score * at.cut(p.scale)
        if mod is not None:
            score = mod(score, at.b, at.h, at.q, at.kv)
        return score if bias is None else score + at.cut(bias)

    seen = Seen(None, None) if mask is None and bias is None else _seen(p)
    q, k, v = (x.expand(p.frame.batch, -1, -1, -1) for x in given_once(*clean(seen, p.q, p.k, p.v)))
    plain = mod is None and bias is None and isinstance(p.scale, float)
    with precisely(q):
        out, aux = _kernel(p)(
            q,
            k,
            v,
            score_mod=None if plain else score_mod,
            block_mask=None if mask is None else _block_mask(p, mask, places),
            scale=p.scale if isinstance(p.scale, float) else 1.0,
            **grouped(q, k),
            return_aux=AuxRequest(lse=True),
        )
    if seen.rows is None:
        return Output(beside_sinks(p, out, aux.lse), aux.lse)
    rows = seen.rows[..., 0]
    out = beside_sinks(
        p, out, torch.where(rows, aux.lse, 0.0)
    )  # an infinite sink beside -inf is NaN, backward too
    return Output(zero(seen, out), torch.where(rows, aux.lse, -torch.inf))


def _captured(p: Problem) -> Places:
    """The places with offsets as tensors: a number would be part of the kernel, and another one a new kernel."""

    def held(where: int | Array) -> int | Array:
        fixed = not isinstance(where, int) or where == 0
        return where if fixed else torch.tensor(where, dtype=torch.int32, device=p.q.device)

    return Places(*(held(x) for x in (p.places.query, p.places.key, p.places.batch, p.places.head)))


def _seen(p: Problem) -> Seen:
    """Who sees and who is seen, some rows at a time."""
    rows = p.frame.rows
    tiles = [allowed_in(p, i, min(1024, rows - i), 0, p.frame.keys) for i in range(0, rows, 1024)]
    keys = torch.stack([visible_keys(allowed, p.k.shape[1], torch) for allowed in tiles]).any(0)
    return Seen(torch.cat([allowed.any(-1, keepdim=True) for allowed in tiles], 2), keys)


def _block_mask(p: Problem, mask: Mask, places: Places) -> BlockMask:
    """What blocks the mask empties and fills, from the mask itself: no score matrix of bools is made for it."""
    from torch.nn.attention.flex_attention import BlockMask

    frame = p.frame
    each = mask.batch_size() > 1 or p.places.per_item
    lines = [
        grid(mask, frame.rows, frame.keys, (BLOCK, BLOCK), b=b, places=p.places, remember=True)
        for b in (range(frame.batch) if each else (None,))
    ]
    full, part = (
        torch.tensor([[[[x in kind for x in line] for line in one]] for one in lines], device=p.q.device)
        for kind in ((FULL,), (PARTIAL,))
    )
    # A ragged block is never full: what lies beyond the end is masked.
    for axis, n in ((-2, frame.rows), (-1, frame.keys)):
        if n % BLOCK:
            part.select(axis, -1).logical_or_(full.select(axis, -1))
            full.select(axis, -1).zero_()
    return BlockMask.from_kv_blocks(
        *_listed(part),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, q, kv: mask.allowed(gather(b, h, q, kv, places)),
        seq_lengths=(frame.rows, frame.keys),
    )


def _listed(blocks: Array) -> tuple[Array, Array]:
    """How many blocks of each line there are, and their numbers first."""
    count = blocks.sum(-1, dtype=torch.int32)
    return count, blocks.int().argsort(dim=-1, descending=True, stable=True).int()


def _check_mod(p: Problem) -> None:
    """What is wrong with a score_mod, said of a few scores: FlexAttention has other words for it."""
    batch, heads, rows, keys = (min(n, 2) for n in p.scores_shape)
    sizes = (batch, heads, rows, keys)
    at = positions(p.backend, p.q, sizes, p.places)
    score = torch.zeros(sizes, dtype=p.compute_dtype, device=p.q.device)
    for mod in mods.parts(p.score_mod):
        modified(p, mod, score, at)


FLEX = Implementation(
    name="fused",
    title="FlexAttention",
    # No dropout: as a score of -inf it would act on the normaliser too.
    accepts=frozenset(
        [
            "causal",
            "mask",
            "query_offset",
            "traced_offset",
            "positions",
            "bias",
            "score_mod",
            "scale",
            "sinks",
            "origin",
            "lse",
        ]
    ),
    run=_run,
    why_not=_why_not,
    passed_over=looked_on,
    why="FlexAttention compiles a kernel for it",
    transforms=frozenset({"grad"}),
)
