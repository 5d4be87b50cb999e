"""The arguments of `attention`, one by one: checked, and brought to the form in which a Problem keeps them."""

from __future__ import annotations

import math
from typing import Any

from polyattn import masks, mods
from polyattn.arrays import Array, Backend, backend_of, eagerly, is_array
from polyattn.masks.algebra import Frame, Mask

_CAUSAL = masks.causal()


def same_place(backend: Backend, query: Array, name: str, arrays: Any) -> None:
    for array in arrays:
        here = backend_of(array)
        if here is not backend:
            raise TypeError(
                f"polyattn.attention: expected {name} to be an array of the library of query ({backend.name}), "
                f"got one of {here.name}; convert it, or keep one library per call"
            )
        if backend.device(array) != backend.device(query):
            raise ValueError(
                f"polyattn.attention: expected {name} on the device of query ({backend.device(query)}), "
                f"got {backend.device(array)}; move it"
            )


def mask_argument(backend: Backend, query: Array, mask: Any, is_causal: bool, frame: Frame) -> Mask | None:
    if not isinstance(is_causal, bool):
        raise TypeError(
            f"polyattn.attention: expected is_causal to be True or False, got {is_causal!r}; "
            "a mask goes to mask="
        )
    if mask is not None and not isinstance(mask, Mask):
        if callable(mask):
            mask = masks.mask_mod(mask)
        elif not is_array(mask):
            raise TypeError(
                "polyattn.attention: expected mask to be a bool array, a polyattn.masks mask or a function "
                f"(b, h, q_idx, kv_idx) -> bool, got {type(mask).__name__}; "
                + (
                    "polyattn_torch.flex.from_flex makes a mask of it"
                    if type(mask).__name__ == "BlockMask"
                    else "make it an array of query's library"
                )
            )
        else:
            if not backend_of(mask).xp.isdtype(mask.dtype, "bool"):
                raise TypeError(
                    f"polyattn.attention: expected a bool mask (True = may attend), got dtype {mask.dtype}; "
                    "compare it (mask != 0), or pass values to be added to the scores as bias="
                )
            mask = masks.from_array(mask)
    if mask is None:
        return _CAUSAL if is_causal else None
    same_place(backend, query, "the arrays of mask", mask.arrays())
    if is_causal:
        mask = mask & _CAUSAL
    with eagerly(mask.arrays()):
        fitted: Mask = mask.fit(frame)
        return fitted


def mod_argument(backend: Backend, query: Array, score_mod: Any, frame: Frame) -> None:
    if score_mod is None:
        return
    if not callable(score_mod):
        raise TypeError(
            "polyattn.attention: expected score_mod to be a function (score, b, h, q_idx, kv_idx) -> score, "
            f"got {type(score_mod).__name__}; an array of additive values goes to bias="
        )
    if isinstance(score_mod, mods.Mod):
        same_place(backend, query, "the arrays of score_mod", score_mod.arrays())
        for mod in score_mod.built_in():
            if mod.heads not in (None, frame.heads):
                raise ValueError(
                    f"polyattn.attention: expected score_mod to have parameters for {frame.heads} heads, got "
                    f"{mod.heads}; give one slope or column per head"
                )


def offset_argument(
    backend: Backend,
    query: Array,
    offset: int | str | Array | None,
    mask: Mask | None,
    score_mod: mods.ScoreMod | None,
    frame: Frame,
) -> int | Array:
    if offset is None:
        compares = (mask is not None and mask.compares_positions) or (
            score_mod is not None and mods.compares_positions(score_mod)
        )
        if compares and frame.rows != frame.keys:
            raise ValueError(
                "polyattn.attention: expected query_offset, because the mask or score_mod compares positions "
                f"and L = {frame.rows} differs from S = {frame.keys}; got None, which is ambiguous: "
                "query_offset=0 aligns the first rows (PyTorch, JAX, Keras), query_offset='end' the last "
                "(FlashAttention, MLX, decoding with a cache)"
            )
        return 0
    if isinstance(offset, str):
        if offset != "end":
            raise ValueError(
                f"polyattn.attention: expected query_offset to be an integer, an integer array or 'end', "
                f"got {offset!r}; 'end' is S - L"
            )
        return frame.keys - frame.rows
    if is_array(offset):
        same_place(backend, query, "query_offset", [offset])
        if not backend.xp.isdtype(offset.dtype, "integral"):
            raise TypeError(
                f"polyattn.attention: expected query_offset to be of an integer dtype, got {offset.dtype}; "
                "positions are whole numbers"
            )
        shape = tuple(offset.shape)
        if shape not in ((), (1,), (frame.batch,), frame.lead):
            raise ValueError(
                f"polyattn.attention: expected query_offset to be one integer or of shape ({frame.batch},), one "
                f"per batch item, got shape {shape}; the batch is every axis before the head axis"
            )
        offset = backend.astype(offset, backend.xp.int32)
        return backend.xp.reshape(offset, (-1,)) if len(shape) > 1 else offset
    if isinstance(offset, bool) or not hasattr(offset, "__index__"):
        raise TypeError(
            f"polyattn.attention: expected query_offset to be an integer, an integer array or 'end', "
            f"got {offset!r}; it is the position of query row 0"
        )
    return int(offset.__index__())


def per_head(
    backend: Backend, query: Array, value: float | Array, name: str, heads: int, compute_dtype: Any
) -> float | Array:
    """A number, or an array of shape (), (1,) or (Hq,) as (Hq|1, 1, 1) in the compute dtype."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not is_array(value):
        raise TypeError(
            f"polyattn.attention: expected {name} to be a number or an array of query's library, got "
            f"{value!r}; make it a float, or an array of shape (Hq,)"
        )
    same_place(backend, query, name, [value])
    if backend.compute_dtype(value.dtype) is None:
        raise TypeError(
            f"polyattn.attention: expected {name} of a real floating dtype, got {value.dtype}; cast it"
        )
    shape = tuple(value.shape)
    per_head = math.prod(shape) in (1, heads) and (len(shape) < 2 or shape[-3:] == (*shape[-3:-2], 1, 1))
    if not per_head or len(shape) > 4:
        raise ValueError(
            f"polyattn.attention: expected {name} to be a scalar or of shape ({heads},), one per query head, "
            f"got shape {shape}; pass one value per head"
        )
    return backend.xp.reshape(backend.astype(value, compute_dtype), (-1, 1, 1))


def sinks_argument(
    backend: Backend, query: Array, sinks: float | Array, heads: int, compute_dtype: Any
) -> Array:
    sinks = per_head(backend, query, sinks, "sinks", heads, compute_dtype)
    if isinstance(sinks, float):
        sinks = backend.xp.reshape(backend.asarray(sinks, compute_dtype, query), (1, 1, 1))
    return sinks


def dropout_argument(
    backend: Backend, query: Array, rate: float, seed: int | Array | None
) -> tuple[float, int | Array]:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(
            f"polyattn.attention: expected dropout_rate to be a Python number, got {rate!r}; it is static"
        )
    if not 0.0 <= rate < 1.0:
        raise ValueError(
            f"polyattn.attention: expected 0 <= dropout_rate < 1, got {rate!r}; it is the share of weights dropped"
        )
    if seed is None:
        if rate > 0.0:
            raise ValueError(
                f"polyattn.attention: expected dropout_seed with dropout_rate = {rate!r}, got None; pass an "
                "integer that changes from step to step, or dropout_rate=0.0 outside training"
            )
        return float(rate), 0
    if is_array(seed):
        same_place(backend, query, "dropout_seed", [seed])
        if seed.ndim or not backend.xp.isdtype(seed.dtype, "integral"):
            raise TypeError(
                "polyattn.attention: expected dropout_seed to be an integer or a 0-d integer array, got "
                f"{seed.dtype} of shape {tuple(seed.shape)}; one seed serves the whole call"
            )
        return float(rate), seed
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(
            f"polyattn.attention: expected dropout_seed to be an integer or a 0-d integer array, got {seed!r}; "
            "pass a Python int"
        )
    if not 0 <= seed.__index__() < 2**64:
        raise ValueError(
            f"polyattn.attention: expected 0 <= dropout_seed < 2**64, got {seed!r}; reduce it modulo 2**64"
        )
    return float(rate), int(seed.__index__())
