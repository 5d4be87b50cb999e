"""An output as it comes: of any library and layout, whole or in part, exact or printed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyattn.arrays import backend_of, is_array
from polyattn.conventions.call import Call
from polyattn.parity.diagnosis.seen import Seen
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["observed"]

_WHO = "polyattn.parity.diagnose"
MOST_DECIMALS = 17  # more than float64 has


def observed(
    output: Any,
    call: Call,
    layout: str,
    dtype: str | None,
    *,
    rows: Any = None,
    heads: Any = None,
    where: Any = None,
    decimals: int | None = None,
) -> Seen:
    """The output in (B, Hq, rows, E), and which of its elements count."""
    if isinstance(output, tuple):
        raise TypeError(
            f"{_WHO}: expected output to be one array, got a tuple of {len(output)}; "
            "pass the one that holds the result of attention"
        )
    half = _half(decimals)
    plain = np.asarray(backend_of(output).to_numpy(output) if is_array(output) else output)
    printed = half > 0 and plain.dtype.kind in "iuf"  # digits do not tell what they were computed in
    name = dtype or ("float32" if printed and plain.dtype.itemsize > 4 else plain.dtype.name)
    if name not in UNIT_ROUNDOFF:
        raise TypeError(f"{_WHO}: expected dtype among {', '.join(UNIT_ROUNDOFF)}, got {name}; pass dtype=")
    batch, all_heads, length, _ = call.shape
    at_rows, at_heads = _chosen("rows", rows, length), _chosen("heads", heads, all_heads)
    width = call.v.shape[3]
    whole = (batch, all_heads, length, width)
    part = (batch, len(at_heads), len(at_rows), width)
    out, of_part = _unfolded(plain, layout, whole, part)
    seen = out.astype(np.float64)
    counts = np.ones(seen.shape, bool)
    if where is not None:
        counts = _where(where, plain.shape, layout, part if of_part else whole)
    if not of_part:
        seen, counts = (x[:, at_heads][:, :, at_rows] for x in (seen, counts))
    if len(at_heads) < all_heads:
        seen, counts = (_among(x, at_heads, all_heads) for x in (seen, counts))
    largest = float(np.max(np.abs(call.v), initial=0.0, where=np.isfinite(call.v)))
    found = Seen(
        seen,
        name,
        length,
        None if rows is None else at_rows,
        None if counts.all() else counts,
        half,
        floor=call.shape[3] * largest,
    )
    if not counts.any() and seen.size:
        raise ValueError(
            f"{_WHO}: expected elements of the output to explain, got none of {seen.size} that count; "
            "True in where= means that an element counts"
        )
    return found if found.trusted is None else found.only(found.trusted)


def _half(decimals: int | None) -> float:
    if decimals is None:
        return 0.0
    if (
        isinstance(decimals, bool)
        or not isinstance(decimals, int | np.integer)
        or not 0 <= decimals <= MOST_DECIMALS
    ):
        raise ValueError(
            f"{_WHO}: expected decimals to be an integer from 0 to {MOST_DECIMALS}, got {decimals!r}; count the digits "
            "after the point"
        )
    return 0.5 * 10.0 ** -int(decimals)


def _chosen(name: str, given: Any, count: int) -> Floats:
    """The indices that are asked for, from 0."""
    if given is None:
        return np.arange(count)
    if isinstance(given, slice):
        index = np.arange(count)[given]
    else:
        index = np.atleast_1d(np.asarray(backend_of(given).to_numpy(given) if is_array(given) else given))
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise TypeError(
                f"{_WHO}: expected {name} to be a slice or integers, got {index.dtype} of shape {index.shape}; "
                f"write {name}=[0, 5] or {name}=slice(8)"
            )
    if (
        len(index) == 0
        or index.min() < -count
        or index.max() >= count
        or len(np.unique(index % count)) < len(index)
    ):
        raise ValueError(
            f"{_WHO}: expected {name} to be different indices below {count}, got {np.array2string(index, threshold=8)}; "
            "name each once"
        )
    return np.asarray(index % count)


def _unfolded(
    plain: Floats, layout: str, whole: tuple[int, ...], part: tuple[int, ...], what: str = "output"
) -> tuple[Floats, bool]:
    """(B, H, rows, E), of all rows and heads or of those asked for; and whether of those."""
    for shape in dict.fromkeys((part, whole)):
        b, h, n, e = shape
        flat, one = (
            (b, n, h * e),
            ((n, h, e) if layout == "BLHD" else (h, n, e)),
        )  # `one`: without a batch axis
        x = plain
        if x.shape == flat and x.shape != one:  # heads already side by side
            return x.reshape(b, n, h, e).swapaxes(1, 2), shape == part
        if layout == "BLHD" and x.ndim > 2:
            x = x.swapaxes(-2, -3)
        if x.size == math.prod(shape) and x.shape[-2:] == shape[-2:]:
            return x.reshape(shape), shape == part
    b, h, n, e = part
    of_all = "" if part == whole else f", or of all rows and heads {whole}"
    raise ValueError(
        f"{_WHO}: expected {what} of shape {part} or {(b, n, h * e)}{of_all}, got {plain.shape}; "
        "layout= says how heads and length lie"
    )


def _where(where: Any, given: tuple[int, ...], layout: str, shape: tuple[int, ...]) -> Floats:
    """Which elements count, laid out as the output is."""
    counts = np.asarray(backend_of(where).to_numpy(where) if is_array(where) else where)
    if counts.dtype != bool:
        raise TypeError(
            f"{_WHO}: expected where to be of bools, True = counts, got {counts.dtype}; compare, as in real > 0"
        )
    try:
        counts = np.broadcast_to(counts, given)
    except ValueError:
        raise ValueError(
            f"{_WHO}: expected where to broadcast to the output of shape {given}, got {counts.shape}; add or move its axes"
        ) from None
    return _unfolded(counts, layout, shape, shape, "where")[0]


def _among(x: Floats, heads: Floats, count: int) -> Floats:
    """Among all heads, those that are not there 0 or False."""
    whole = np.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)
    whole[:, heads] = x
    return whole
