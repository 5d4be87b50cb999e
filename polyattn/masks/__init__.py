"""Masks as objects that compose: True = may attend, everywhere.

>>> from polyattn import masks
>>> print((masks.sliding_window(2) | masks.prefix(1)).show(4))
# . . .
# # . .
# # # .
# . # #
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyattn.arrays import Array, backend_of, is_array
from polyattn.masks.algebra import Frame, Mask
from polyattn.masks.builtin import (
    Below,
    Chunked,
    Dilated,
    FromArray,
    Function,
    Segments,
    Window,
)
from polyattn.masks.fitting import lengths, positive
from polyattn.masks.tiles import EMPTY, FULL, PARTIAL, Tile

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "Frame",
    "Mask",
    "Tile",
    "causal",
    "chunked",
    "dilated",
    "from_array",
    "key_lengths",
    "mask_mod",
    "prefix",
    "query_lengths",
    "segments",
    "sliding_window",
    "window",
]


def causal() -> Mask:
    """kv <= q: no query sees a later position.

    >>> print(causal().show(3))
    # . .
    # # .
    # # #
    """
    return Window(None, 0)


def window(left: int | None, right: int | None) -> Mask:
    """q - left <= kv <= q + right: neighbours on each side, the token itself not counted; None = unbounded.

    (1, 0) is two keys, the token and the one before it. FlashAttention and ONNX count in the same way;
    see `sliding_window` for the other convention of the field.

    >>> print(window(1, 1).show(4))
    # # . .
    # # # .
    . # # #
    . . # #
    """
    return Window(
        *(side if side is None else positive(side, "window", "both sides", 0) for side in (left, right))
    )


def sliding_window(size: int) -> Mask:
    """window(size - 1, 0) & causal(): the last `size` keys, the token itself included (Hugging Face, cuDNN).

    >>> print(sliding_window(2).show(3))
    # . .
    # # .
    . # #
    """
    return window(positive(size, "sliding_window", "size") - 1, 0) & causal()


def prefix(n: int | Sequence[int] | Array) -> Mask:
    """kv < n: the first n keys, for every query. ``causal() | prefix(n)`` is the mask of a prefix LM.

    n: one integer, or one per batch item (sequence or integer array of shape (batch,)).

    >>> print((causal() | prefix(2)).show(3))
    # # .
    # # .
    # # #
    """
    return Below(lengths(n, "prefix"), "prefix")


def chunked(n: int) -> Mask:
    """q // n == kv // n: attention within chunks of n positions.

    >>> print(chunked(2).show(4))
    # # . .
    # # . .
    . . # #
    . . # #
    """
    return Chunked(positive(n, "chunked", "n"))


def dilated(step: int) -> Mask:
    """(q - kv) % step == 0: every step-th key.

    >>> print(dilated(2).show(4))
    # . # .
    . # . #
    # . # .
    . # . #
    """
    return Dilated(positive(step, "dilated", "step"))


def segments(q_ids: Array, kv_ids: Array | None = None) -> Mask:
    """q_ids[q] == kv_ids[kv]: documents packed into one sequence do not see each other.

    q_ids: integers (L,) or (batch, L), one per query row; kv_ids: (S,) or (batch, S), q_ids if None.

    >>> import numpy as np
    >>> print(segments(np.array([0, 0, 1])).show(3))
    # # .
    # # .
    . . #
    """
    kv_ids = q_ids if kv_ids is None else kv_ids
    for ids in (q_ids, kv_ids):
        if not is_array(ids) or not backend_of(ids).xp.isdtype(ids.dtype, "integral"):
            raise TypeError(
                "polyattn.masks.segments: expected arrays of integer ids, got "
                f"{getattr(ids, 'dtype', type(ids).__name__)}; number the documents"
            )
        if ids.ndim == 0:
            raise ValueError(
                "polyattn.masks.segments: expected ids of shape (L,) or (batch, L), got a single number; "
                "give one id per token"
            )
    return Segments(q_ids, kv_ids)


def key_lengths(n: int | Sequence[int] | Array) -> Mask:
    """kv < n: padding of keys and values. n: one integer, or one per batch item.

    >>> key_lengths([1, 2]).dense(1, 2, batch=2)[:, 0, 0, :]
    array([[ True, False],
           [ True,  True]])
    """
    return Below(lengths(n, "key_lengths"), "key_lengths")


def query_lengths(n: int | Sequence[int] | Array) -> Mask:
    """row < n: padding of queries; rows beyond it see nothing, so their output is 0.

    n: one integer, or one per batch item. Rows are counted from 0 whatever the query offset.

    >>> print(query_lengths(1).show(2))
    # #
    . .
    """
    return Below(lengths(n, "query_lengths"), "query_lengths")


def from_array(allowed: Array) -> Mask:
    """A bool array, True = may attend, broadcasting to (..., H, L, S); laid on the rows, not on positions.

    >>> import numpy as np
    >>> print((from_array(np.array([[True, False]])) | causal()).show(2))
    # .
    # #
    """
    if not is_array(allowed) or not backend_of(allowed).xp.isdtype(allowed.dtype, "bool"):
        raise TypeError(
            "polyattn.masks.from_array: expected a bool array (True = may attend), got "
            f"{getattr(allowed, 'dtype', type(allowed).__name__)}; "
            "compare it (mask != 0), or pass additive values as bias="
        )
    return FromArray(allowed)


def mask_mod(f: Callable[[Array, Array, Array, Array], Array]) -> Mask:
    """An arbitrary function (b, h, q_idx, kv_idx) -> bool on broadcast integer arrays, as FlexAttention has it.

    >>> print(mask_mod(lambda b, h, q, kv: (q + kv) % 2 == 0).show(2))
    # .
    . #
    """
    if isinstance(f, Mask):
        return f
    if not callable(f):
        raise TypeError(
            f"polyattn.masks.mask_mod: expected a function (b, h, q_idx, kv_idx) -> bool, got {f!r}; "
            "a bool array goes to masks.from_array"
        )
    return Function(f)
