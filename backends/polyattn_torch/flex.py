"""FlexAttention's mask_mod, score_mod and BlockMask on arrays of any library.

    attention(q, k, v, mask=from_flex(block_mask), score_mod=from_flex(score_mod))

A mod of FlexAttention is written with torch functions for one score: its arguments are 0-d tensors. It is traced
once to ATen operations, and these run on whole arrays (`polyattn_torch.program`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

from polyattn import masks
from polyattn.arrays import Array, backend_of, is_array
from polyattn.masks.algebra import Mask
from polyattn.masks.arbitrary import Function
from polyattn.masks.tiles import EMPTY, FULL, UNSURE, Box, Tile
from polyattn.mods import Mod
from polyattn.places import Frame
from polyattn_torch.program import Program, Ref

__all__ = ["from_flex"]

WHO = "polyattn_torch.flex.from_flex"


def from_flex(mod: Any) -> Any:
    """The same mod for arrays of any library: a Mask of a mask_mod or BlockMask, a function of a score_mod.

    mod: (b, h, q_idx, kv_idx) -> bool, (score, b, h, q_idx, kv_idx) -> score, or a BlockMask, all as
    `torch.nn.attention.flex_attention` takes them. A mask that came from `Mask.to_block_mask` is that very
    Mask. The blocks of another BlockMask bind, and are what the engine knows of tiles.

    Captured tensors are read at every call (under `jax.jit` when it traces, as all that a function captures);
    Python numbers and names that a mod closes over are those of the moment of from_flex.
    A gradient for them flows on torch; other libraries refuse one that requires it while autograd is on.
    Floating numbers are computed in the dtype of the scores, in a mask in float32 unless it names float64;
    int64 on JAX is what JAX has for it. Positions count as in FlexAttention with query_offset=0.

    >>> import numpy as np
    >>> document = torch.tensor([0, 0, 1, 1])
    >>> mask = from_flex(lambda b, h, q, kv: (document[q] == document[kv]) & (q >= kv))
    >>> print(mask.show(4))
    # . . .
    # # . .
    . . # .
    . . # #
    >>> from_flex(lambda score, b, h, q, kv: 2 * torch.tanh(score / 2))(np.array([100.0]), 0, 0, 0, 0)
    array([2.])
    """
    if isinstance(mod, (Mask, Mod)):
        return mod
    if isinstance(mod, BlockMask):
        return _from_blocks(mod)
    count, star = _count_arguments(mod)
    if star and count not in (4, 5):
        raise TypeError(
            f"{WHO}: expected a mod with named parameters, score_mod (score, b, h, q_idx, kv_idx) or mask_mod "
            f"(b, h, q_idx, kv_idx), got {_name(mod)} with *{star}; name them, as their number tells which of the "
            "two it is"
        )
    if count not in (4, 5):
        raise TypeError(
            f"{WHO}: expected a score_mod (score, b, h, q_idx, kv_idx), a mask_mod (b, h, q_idx, kv_idx) or a "
            f"BlockMask, got {_name(mod)}"
            + (
                ", which cannot be called; an array goes to masks.from_array or bias="
                if count is None
                else f" of {count} arguments; those with defaults do not count"
            )
        )
    return _score_mod(mod) if count == 5 else masks.mask_mod(_mask_mod(mod))


def _score_mod(mod: Callable[..., Any]) -> Callable[..., Any]:
    # A score of float64, so that the constants of the mod keep all their digits.
    program = Program(mod, [torch.zeros((), dtype=torch.float64), *_indices()], WHO)
    if not isinstance(program.result, Ref):
        raise TypeError(
            f"{WHO}: expected a score_mod to return an array made from score, got "
            f"{type(program.result).__name__} from {program.name}; write a number as torch.full_like(score, number)"
        )

    def score_mod(score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        if _in_flex(score, b, h, q_idx, kv_idx):
            return mod(score, b, h, q_idx, kv_idx)
        modified = program((score, b, h, q_idx, kv_idx), floating=score.dtype)
        if not is_array(modified) or modified.shape == score.shape:
            return modified
        shape = torch.broadcast_shapes(tuple(modified.shape), tuple(score.shape))
        return backend_of(score).xp.broadcast_to(modified, shape)

    score_mod.__name__ = program.name
    return score_mod


def _mask_mod(mod: Callable[..., Any]) -> Callable[..., Any]:
    program = Program(mod, _indices(), WHO)

    def mask_mod(b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        given = (b, h, q_idx, kv_idx)
        return mod(*given) if _in_flex(*given) else program(given)

    mask_mod.__name__ = program.name
    return mask_mod


def _indices() -> list[torch.Tensor]:
    return [torch.zeros((), dtype=torch.int32) for _ in range(4)]


def _in_flex(*given: Any) -> bool:
    """Whether these are the scalars that FlexAttention gives, for which the mod was written."""
    return all(isinstance(x, torch.Tensor) and x.ndim == 0 for x in given)


def _name(mod: Any) -> str:
    return getattr(mod, "__name__", type(mod).__name__)


def _count_arguments(mod: Any) -> tuple[int | None, str]:
    """How many arguments a function needs (None: it is none), and the name of its *parameter, if it has one."""
    if not callable(mod):
        return None, ""
    one = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(mod.forward if isinstance(mod, torch.nn.Module) else mod)
    parameters = signature.parameters.values()
    star = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
    return sum(p.kind in one and p.default is p.empty for p in parameters), star


# BlockMask


@dataclass(frozen=True, repr=False, eq=False)
class Blocks(Function):
    """A mask_mod of which it is known what blocks of the score matrix it empties and fills."""

    lengths: tuple[int, int]  # queries, keys
    size: tuple[int, int]  # of a block
    states: Any  # NumPy (B|1, H|1, rows of blocks, columns of blocks): 0 empty, 1 full, 2 neither

    def arrays(self) -> Iterator[Array]:
        return iter(())

    def fit(self, frame: Frame) -> Self:
        shape = (*self.states.shape[:2], *self.lengths)
        fits = frame.rows <= shape[2] and frame.keys <= shape[3]
        if not fits or shape[0] not in (1, frame.batch) or shape[1] not in (1, frame.heads):
            raise ValueError(
                f"{frame.who}: expected a BlockMask for scores (B, Hq, L, S) = "
                f"{(frame.batch, frame.heads, frame.rows, frame.keys)}, got one of shape {shape}; "
                "make it with create_block_mask for these lengths"
            )
        return self

    def box(self, box: Box) -> Tile:
        if box.corners is None:
            return UNSURE
        q0, q1, k0, k1 = box.corners
        if q0 < 0 or q1 >= self.lengths[0] or k1 >= self.lengths[1]:
            return UNSURE
        (height, width), states = self.size, self.states
        b, h = (
            slice(None) if i is None or n == 1 else slice(i, i + 1)
            for i, n in zip((box.b, box.h), states.shape, strict=False)
        )
        met = states[b, h, q0 // height : q1 // height + 1, k0 // width : k1 // width + 1]
        return EMPTY if (met == 0).all() else FULL if (met == 1).all() else UNSURE

    def batch_size(self) -> int:
        return int(self.states.shape[0])

    def head_count(self) -> int:
        return int(self.states.shape[1])


def _from_blocks(block_mask: BlockMask) -> Mask:
    """Visible is what full blocks hold, and in partial blocks what mask_mod says."""
    (height, width), (queries, keys) = block_mask.BLOCK_SIZE, block_mask.seq_lengths
    columns = -(-keys // width)
    partial = _listed(block_mask.kv_num_blocks, block_mask.kv_indices, columns)
    full = torch.zeros_like(partial)
    if block_mask.full_kv_num_blocks is not None:
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, columns)
    mod, device = block_mask.mask_mod, partial.device
    try:
        said = create_mask(mod, *partial.shape[:2], queries, keys, device=str(device))
    except RuntimeError as error:
        raise ValueError(
            f"{WHO}: expected a BlockMask whose mask_mod can be called, got one where it says: {error}; "
            "give the whole BlockMask, not a part of it"
        ) from error

    def spread(blocks: torch.Tensor) -> torch.Tensor:
        return blocks.repeat_interleave(height, -2).repeat_interleave(width, -1)[..., :queries, :keys]

    def by_blocks(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        where = (b, h, q_idx // height, kv_idx // width)
        at = [torch.clamp(i, 0, n - 1) for i, n in zip(where, full.shape, strict=True)]
        listed = full[*at] | (partial[*at] & mod(b, h, q_idx, kv_idx))
        return listed & (q_idx >= 0) & (q_idx < queries) & (kv_idx < keys)

    if isinstance(mod, Mask) and torch.equal(said, spread(full) | (spread(partial) & said)):
        return mod  # to which the blocks add nothing
    # Those of another mod bind even so: it may read other batch items than they were made for, and tensors that
    # change after.
    by_blocks.__name__ = _name(mod)
    states = torch.where(full, 1, torch.where(partial, 2, 0)).cpu().numpy()
    return Blocks(_mask_mod(by_blocks), (queries, keys), (height, width), states)


def _listed(counts: torch.Tensor, indices: torch.Tensor, columns: int) -> torch.Tensor:
    """(B, H, rows, columns): True for the first `counts` of `indices`; what stands behind them is undefined."""
    counts, indices = (x.reshape(*(1,) * (n - x.ndim), *x.shape) for x, n in ((counts, 3), (indices, 4)))
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    seen = torch.zeros((*indices.shape[:-1], columns), dtype=torch.int32, device=indices.device)
    return seen.scatter_add(-1, torch.where(listed, indices, 0).long(), listed.int()) > 0
