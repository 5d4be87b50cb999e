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
from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.masks.algebra import Frame, Mask
from polyattn.masks.fitting import fit_array
from polyattn.places.positions import Positions, whole
from polyattn.problem.arguments import (
    dropout_argument,
    mask_argument,
    mod_argument,
    offset_argument,
    per_head,
    same_place,
    sinks_argument,
)

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
    admit: Callable[[Array, int], Array]  # and the way back, for cotangents
    layout: str

    @property
    def scores_shape(self) -> tuple[int, int, int, int]:
        """(B, Hq, L, S)"""
        return (self.frame.batch, self.frame.heads, self.frame.rows, self.frame.keys)

    @property
    def scores_bytes(self) -> int:
        """The memory of one score matrix."""
        return math.prod(self.scores_shape) * (8 if str(self.compute_dtype).endswith("64") else 4)

    def dismiss(self, name: str, gradient: Array, like: Array) -> Array:
        """A gradient in canonical axes, in the shape of the argument that it belongs to."""
        xp, shape = self.backend.xp, tuple(like.shape)
        if name in ("query", "key", "value"):
            if self.layout == "BLHD":
                gradient = xp.permute_dims(gradient, (0, 2, 1, 3))
            tail = tuple(gradient.shape[1:]) if len(shape) > 2 else tuple(gradient.shape[2:])
        else:
            tail = tuple(gradient.shape[1:]) if name == "bias" else ()
        if math.prod(gradient.shape) == math.prod(shape):
            return xp.reshape(gradient, shape)
        # Leading axes that were broadcast against the others: summed over.
        gradient = xp.reshape(gradient, (*self.frame.lead, *tail))
        lead = (*(1,) * (gradient.ndim - len(shape)), *shape)[: len(self.frame.lead)]
        axes = tuple(i for i, n in enumerate(lead) if n == 1)
        return xp.reshape(xp.sum(gradient, axis=axes, keepdims=True), shape)

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
    (heads, rows, width), (_, keys, _), _ = shapes
    frame = Frame(math.prod(lead), heads, rows, keys, lead)

    mask = mask_argument(backend, query, mask, is_causal, frame)
    mod_argument(backend, query, score_mod, frame)
    offset = offset_argument(backend, query, query_offset, mask, score_mod, frame)
    if bias is not None:
        if backend.compute_dtype(bias.dtype) is None:
            raise TypeError(
                f"polyattn.attention: expected a real floating bias, got {bias.dtype}; "
                "a bool mask goes to mask= (True = may attend), integers are cast by the caller"
            )
        bias = fit_array(bias, frame, "bias")
    whole = mask is not None and isinstance(offset, int) and not any(True for _ in mask.arrays())
    if mask is not None and whole and backend.lengths_are_fixed:
        # All of it as one tile: remembered from call to call.
        whole_tile = (max(frame.rows, 1), max(frame.keys, 1))
        everything = mask.tiles(
            frame.rows, frame.keys, whole_tile, query_offset=offset, remember=backend.may_remember()
        )
        mask = None if everything == [[masks.FULL]] else mask
    rate, seed = dropout_argument(backend, query, dropout_rate, dropout_seed)
    if scale is None:
        scale = 1.0 / math.sqrt(width) if width else 1.0

    def restore(x: Array, axes_after_length: int) -> Array:
        if axes_after_length and layout == "BLHD":
            # only `out` follows the layout of the inputs
            x = backend.xp.permute_dims(x, (0, 2, 1, 3))
        shape = (*lead, *(x.shape[1:] if query.ndim > 2 else x.shape[2:]))
        return x if tuple(x.shape) == shape else backend.xp.reshape(x, shape)

    def admit(x: Array, axes_after_length: int) -> Array:
        tail = (heads, rows, value.shape[-1]) if axes_after_length else (heads, rows)
        if axes_after_length and layout == "BLHD":
            x = backend.xp.reshape(x, (frame.batch, rows, heads, value.shape[-1]))
            return backend.xp.permute_dims(x, (0, 2, 1, 3))
        return backend.xp.reshape(x, (frame.batch, *tail))

    return Problem(
        backend=backend,
        q=q,
        k=k,
        v=v,
        mask=mask,
        bias=bias,
        score_mod=score_mod,
        offset=offset,
        scale=per_head(backend, query, scale, "scale", heads, compute_dtype),
        sinks=None if sinks is None else sinks_argument(backend, query, sinks, heads, compute_dtype),
        dropout_rate=rate,
        dropout_seed=seed,
        frame=frame,
        compute_dtype=compute_dtype,
        restore=restore,
        admit=admit,
        layout=layout,
    )


def _one_library(**arrays: Array | None) -> Backend:
    """The backend of all of them; they must share it, and the device."""
    backend: Backend | None = None
    for name, array in arrays.items():
        if array is None:
            continue
        if not is_array(array):
            raise TypeError(
                f"polyattn.attention: expected {name} to be an array of an array API library (NumPy, JAX, PyTorch, "
                f"...), got {type(array).__name__}; convert it, for example with numpy.asarray"
            )
        if backend is None:
            backend, first = backend_of(array), array
        else:
            same_place(backend, first, name, [array])
    assert backend is not None
    return backend


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
            raise wrong(
                "rank 3 or more (..., length, heads, width)", "use layout 'BHLD' for a single head (L, D)"
            )
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
    if (hk == 0 and hq > 0) or (hk and hq % hk):
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
