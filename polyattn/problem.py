"""One attention problem: what the caller asked, checked, in one canonical form.

Everything that can be wrong with a call is said here, before any kernel runs. Behind this door arrays
have rank 4 (batch, heads, length, width), masks are one `Mask`, scale and sinks broadcast over heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyattn import masks, mods
from polyattn.backend import Array, Backend, backend_of
from polyattn.masks.algebra import Frame, Mask
from polyattn.masks.builtin import fit_array
from polyattn.positions import Positions, whole

LAYOUTS = ("BHLD", "BLHD")


@dataclass(frozen=True, eq=False)
class Problem:
    """Attention of q (B, Hq, L, D) to k (B, Hkv, S, D) and v (B, Hkv, S, E); B may be 1 in any of them."""

    backend: Backend
    q: Array
    k: Array
    v: Array
    mask: Mask | None
    bias: Array | None  # (B|1, Hq|1, L|1, S|1)
    score_mod: mods.ScoreMod | None
    offset: int | Array  # position of query row 0; 0-d or (B,)
    scale: float | Array  # a number or (Hq|1, 1, 1)
    sinks: Array | None  # (Hq|1, 1, 1) in the compute dtype
    dropout_rate: float
    dropout_seed: int | Array
    frame: Frame
    compute_dtype: Any
    restore: Callable[[Array, int], Array]  # gives a result (B, Hq, L, ...) the axes the caller expects

    def positions(self) -> Positions:
        """The positions of the whole score matrix."""
        f = self.frame
        return whole(self.backend, self.q, f.batch, f.heads, f.rows, f.keys, self.offset)


def pose(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Any = None,
    bias: Array | None = None,
    score_mod: mods.ScoreMod | None = None,
    is_causal: bool = False,
    query_offset: int | str | Array | None = None,
    scale: float | Array | None = None,
    sinks: float | Array | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: int | Array | None = None,
    layout: str = "BHLD",
) -> Problem:
    """The arguments of `attention` as a Problem, or the sentence that says what is wrong with them."""
    if layout not in LAYOUTS:
        raise ValueError(
            f"polyattn.attention: expected layout 'BHLD' or 'BLHD', got {layout!r}; "
            "name the axes of query, key and value (batch, heads, length, width)"
        )
    backend = _one_library(query=query, key=key, value=value, bias=bias)
    compute_dtype = _dtypes(backend, query, key, value)
    lead, shapes = _shapes(layout, query, key, value)
    q, k, v = (_rank4(backend, x, layout, lead) for x in (query, key, value))
    (heads, rows, width), (_, keys, _), (_, _, out_width) = shapes
    frame = Frame(math.prod(lead), heads, rows, keys, lead)

    mask = _mask(backend, query, mask, is_causal, frame)
    offset = _offset(backend, query, query_offset, mask, score_mod, frame)
    if bias is not None:
        if backend.compute_dtype(bias.dtype) is None:
            raise TypeError(
                f"polyattn.attention: expected a real floating bias, got {bias.dtype}; "
                "a bool mask goes to mask= (True = may attend), integers are cast by the caller"
            )
        bias = fit_array(bias, frame, "bias")
    if score_mod is not None:
        if not callable(score_mod):
            raise TypeError(
                "polyattn.attention: expected score_mod to be a function (score, b, h, q_idx, kv_idx) -> score, "
                f"got {type(score_mod).__name__}; an array of additive values goes to bias="
            )
        if isinstance(score_mod, mods.Mod):
            _same_place(backend, query, "the arrays of score_mod", score_mod.arrays())
    rate, seed = _dropout(backend, query, dropout_rate, dropout_seed)
    if scale is None:
        scale = 1.0 / math.sqrt(width) if width else 1.0

    def restore(x: Array, axes_after_length: int) -> Array:
        if axes_after_length and layout == "BLHD":
            # only `out` follows the layout of the inputs
            x = backend.xp.permute_dims(x, (0, 2, 1, 3))
        shape = (*lead, *(x.shape[1:] if query.ndim > 2 else x.shape[2:]))
        return x if tuple(x.shape) == shape else backend.xp.reshape(x, shape)

    return Problem(
        backend=backend,
        q=q,
        k=k,
        v=v,
        mask=mask,
        bias=bias,
        score_mod=score_mod,
        offset=offset,
        scale=_per_head(backend, query, scale, "scale", heads, compute_dtype),
        sinks=None if sinks is None else _sinks(backend, query, sinks, heads, compute_dtype),
        dropout_rate=rate,
        dropout_seed=seed,
        frame=frame,
        compute_dtype=compute_dtype,
        restore=restore,
    )


def _one_library(**arrays: Array | None) -> Backend:
    """The backend of all of them; they must share it, and the device."""
    backend: Backend | None = None
    for name, array in arrays.items():
        if array is None:
            continue
        here = backend_of(array)
        if backend is None:
            backend, first = here, array
        else:
            _same_place(backend, first, name, [array])
    assert backend is not None
    return backend


def _same_place(backend: Backend, query: Array, name: str, arrays: Any) -> None:
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


def _dtypes(backend: Backend, query: Array, key: Array, value: Array) -> Any:
    compute_dtype = backend.compute_dtype(query.dtype)
    if compute_dtype is None:
        raise TypeError(
            f"polyattn.attention: expected query, key and value of a real floating dtype, got {query.dtype}; "
            "cast them to the dtype in which you want the result"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            "polyattn.attention: expected query, key and value of one dtype, got "
            f"{query.dtype}, {key.dtype}, {value.dtype}; cast them to the dtype in which you want the result"
        )
    return compute_dtype


def _shapes(
    layout: str, query: Array, key: Array, value: Array
) -> tuple[tuple[int, ...], list[tuple[int, int, int]]]:
    """The broadcast leading axes, and (heads, length, width) of query, key and value."""
    given = [tuple(x.shape) for x in (query, key, value)]
    names = f"query {given[0]}, key {given[1]}, value {given[2]} in layout {layout}"

    def wrong(expected: str, advice: str) -> ValueError:
        return ValueError(f"polyattn.attention: expected {expected}, got {names}; {advice}")

    if len({len(shape) for shape in given}) > 1 or len(given[0]) < 2:
        raise wrong("query, key and value of one rank, 2 or more", "add the axes that are missing, of size 1")
    if layout == "BLHD":
        if len(given[0]) < 3:
            raise wrong("rank 3 or more (..., length, heads, width)", "use layout 'BHLD' for a single head (L, D)")
        given = [(*shape[:-3], shape[-2], shape[-3], shape[-1]) for shape in given]
    (hq, _, d), (hk, s, dk), (hv, sv, _) = shapes = [
        (shape[-3] if len(shape) > 2 else 1, shape[-2], shape[-1]) for shape in given
    ]
    if d != dk:
        raise wrong("query and key of one width D", "project them to the same width")
    if s != sv:
        raise wrong("key and value of one length S", "every key needs its value")
    if hk != hv:
        raise wrong("key and value of one number of heads", "every key head needs its value head")
    if hk == 0 and hq > 0 or hk and hq % hk:
        raise wrong(
            "a number of query heads that is a multiple of the number of key heads",
            "grouped heads read key head h // (Hq // Hkv); check the layout",
        )
    lead: list[int] = []
    for sizes in zip(*(shape[:-3] for shape in given), strict=True):
        distinct = {n for n in sizes if n != 1}
        if len(distinct) > 1:
            raise wrong("leading axes that broadcast against each other", "give each axis one size, or 1")
        lead.append(distinct.pop() if distinct else 1)
    return tuple(lead), shapes


def _rank4(backend: Backend, x: Array, layout: str, lead: tuple[int, ...]) -> Array:
    xp = backend.xp
    if layout == "BLHD":
        axes = tuple(range(x.ndim))
        x = xp.permute_dims(x, (*axes[:-3], axes[-2], axes[-3], axes[-1]))
    if x.ndim == 4:
        return x
    if x.ndim < 4:
        return xp.reshape(x, (*(1,) * (4 - x.ndim), *x.shape))
    if math.prod(x.shape[:-3]) == 1:
        return xp.reshape(x, (1, *x.shape[-3:]))
    if tuple(x.shape[:-3]) != lead:
        x = xp.broadcast_to(x, (*lead, *x.shape[-3:]))
    return xp.reshape(x, (math.prod(lead), *x.shape[-3:]))


def _mask(backend: Backend, query: Array, mask: Any, is_causal: bool, frame: Frame) -> Mask | None:
    if not isinstance(is_causal, bool):
        raise TypeError(
            f"polyattn.attention: expected is_causal to be True or False, got {is_causal!r}; "
            "a mask goes to mask="
        )
    if mask is not None and not isinstance(mask, Mask):
        if callable(mask):
            mask = masks.mask_mod(mask)
        elif not hasattr(mask, "dtype"):
            raise TypeError(
                "polyattn.attention: expected mask to be a bool array, a polyattn.masks mask or a function "
                f"(b, h, q_idx, kv_idx) -> bool, got {type(mask).__name__}; make it an array of query's library"
            )
        else:
            if not backend_of(mask).xp.isdtype(mask.dtype, "bool"):
                raise TypeError(
                    f"polyattn.attention: expected a bool mask (True = may attend), got dtype {mask.dtype}; "
                    "compare it (mask != 0), or pass values to be added to the scores as bias="
                )
            mask = masks.from_array(mask)
    if mask is not None:
        _same_place(backend, query, "the arrays of mask", mask.arrays())
    if is_causal:
        mask = masks.causal() if mask is None else mask & masks.causal()
    return None if mask is None else mask.fit(frame)


def _offset(
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
    if hasattr(offset, "dtype"):
        _same_place(backend, query, "query_offset", [offset])
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
        return offset if offset.ndim < 2 else backend.xp.reshape(offset, (-1,))
    if isinstance(offset, bool) or not hasattr(offset, "__index__"):
        raise TypeError(
            f"polyattn.attention: expected query_offset to be an integer, an integer array or 'end', "
            f"got {offset!r}; it is the position of query row 0"
        )
    return int(offset.__index__())


def _per_head(
    backend: Backend, query: Array, value: float | Array, name: str, heads: int, compute_dtype: Any
) -> float | Array:
    """A number, or an array of shape (), (1,) or (Hq,) as (Hq|1, 1, 1) in the compute dtype."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not hasattr(value, "dtype"):
        raise TypeError(
            f"polyattn.attention: expected {name} to be a number or an array of query's library, got "
            f"{value!r}; make it a float, or an array of shape (Hq,)"
        )
    _same_place(backend, query, name, [value])
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


def _sinks(backend: Backend, query: Array, sinks: float | Array, heads: int, compute_dtype: Any) -> Array:
    sinks = _per_head(backend, query, sinks, "sinks", heads, compute_dtype)
    if isinstance(sinks, float):
        sinks = backend.xp.reshape(backend.asarray(sinks, compute_dtype, query), (1, 1, 1))
    return sinks


def _dropout(
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
    if hasattr(seed, "dtype"):
        _same_place(backend, query, "dropout_seed", [seed])
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
