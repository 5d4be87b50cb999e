"""Which query sees which key, as the operator Attention says it."""

from __future__ import annotations

from functools import reduce
from operator import and_
from typing import Any

from polyattn import masks
from polyattn.arrays import Array, Backend
from polyattn.masks.algebra import Mask

__all__ = ["masked"]


_WHO = "polyattn.onnx.attention"


def masked(
    backend: Backend, a: dict[str, Any], opset: int, q: Array, k: Array, given: dict[str, Array | None]
) -> dict[str, Any]:
    """The arguments of attention that say which query sees which key."""
    attn_mask, past_key, count = (given[name] for name in ("attn_mask", "past_key", "nonpad_kv_seqlen"))
    offset: int | Array = 0 if past_key is None else past_key.shape[2]
    seen: list[Mask] = []
    bias = None
    if count is not None:
        _check_count(backend, count, q.shape[0], k.shape[2])
        seen.append(masks.key_lengths(count))
        offset = count - q.shape[2]
    if attn_mask is not None:
        fitted = _fit_mask(backend, attn_mask, (*q.shape[:3], k.shape[2]), count, opset)
        if backend.isdtype(fitted.dtype, "bool"):
            seen.append(masks.from_array(fitted))
        else:
            bias = fitted
    is_causal, window = a["is_causal"] != 0, _window(a)
    if window is not None:
        seen.append(window)
    return {
        "mask": reduce(and_, seen) if seen else None,
        "bias": bias,
        "is_causal": is_causal,
        "query_offset": offset if is_causal or window is not None else 0,
    }


def _check_count(backend: Backend, count: Array, batch: int, keys: int) -> None:
    if tuple(count.shape) != (batch,) or not backend.isdtype(count.dtype, "integral"):
        raise ValueError(
            f"{_WHO}: expected nonpad_kv_seqlen of integers and of shape ({batch},), a number of keys per batch item, "
            f"got {count.dtype} of shape {tuple(count.shape)}; count the keys that are there"
        )
    values = backend.to_list(count) if backend.is_concrete(count) else []
    if any(not 0 <= n <= keys for n in values):
        raise ValueError(
            f"{_WHO}: expected nonpad_kv_seqlen from 0 to {keys}, the number of keys, got {values}; count the keys "
            "that are there"
        )


def _fit_mask(
    backend: Backend, mask: Array, scores: tuple[int, ...], nonpad: Array | None, opset: int
) -> Array:
    """The mask of rank 4 with a column for every key, or one for all; numbers in the compute dtype."""
    xp, keys, shape = backend.xp, scores[3], tuple(mask.shape)

    def wrong(advice: str) -> ValueError:
        return ValueError(
            f"{_WHO}: expected attn_mask to broadcast to the scores (B, Hq, L, P + S) = {scores}, got shape "
            f"{shape}; {advice}"
        )

    if not 1 <= len(shape) <= 4 or any(
        n not in (1, size) for n, size in zip(reversed(shape[:-1]), reversed(scores[:3]), strict=False)
    ):
        raise wrong("axes are counted from the last one: rank 3 is (heads, queries, keys)")
    mask = xp.reshape(mask, (*(1,) * (4 - len(shape)), *shape))
    compute = backend.compute_dtype(mask.dtype)  # first, because NumPy's isdtype knows no bfloat16
    is_bool = compute is None and backend.isdtype(mask.dtype, "bool")
    if not is_bool:
        if compute is None and not backend.isdtype(mask.dtype, "integral"):
            raise TypeError(f"{_WHO}: expected attn_mask of bools or real numbers, got {mask.dtype}; cast it")
        mask = backend.astype(mask, compute or xp.float32)
    reach = shape[-1]
    if reach == keys or (reach == 1 and opset < 24):
        return mask
    if opset < 24:
        raise wrong("from opset 24 on it may be shorter than the keys, which hides the others")
    if reach > keys:
        raise wrong("it has more columns than there are keys")
    if nonpad is not None and backend.is_concrete(nonpad):
        most = max(backend.to_list(nonpad), default=0)
        if reach < most:
            raise wrong(f"it must reach all {most} keys that nonpad_kv_seqlen says are there")
    beyond = xp.full(
        (*mask.shape[:3], keys - reach),
        False if is_bool else -xp.inf,
        dtype=mask.dtype,
        device=backend.device(mask),
    )
    return xp.concat((mask, beyond), axis=-1)


def _window(a: dict[str, Any]) -> Mask | None:
    """The sliding window of opset 25, None where both sides are open."""
    sides: list[int | None] = []
    for name in ("left_window_size", "right_window_size"):
        size = a.get(name, -1)
        if size < -1:
            raise ValueError(f"{_WHO}: expected {name} of -1 or more, got {size}; -1 leaves that side open")
        sides.append(None if size == -1 else size)
    return None if sides == [None, None] else masks.window(*sides)
