"""The same attention with its heads, or the entries of a head, in another order."""

from __future__ import annotations

from polyattn.arrays import Array, backend_of

__all__ = ["grouped_to_tiled", "half_to_interleaved", "interleaved_to_half", "tiled_to_grouped"]


def interleaved_to_half(w: Array, width: int | None = None) -> Array:
    """Query or key weights (..., D) for rotary pairs (0, 1), (2, 3), ... -> for pairs (i, i + width/2).

    Meta's Llama checkpoints are interleaved, Hugging Face's are half-split. Scores do not change, since q and
    k are permuted alike. width: the entries that are turned (None = all of D).

    >>> import numpy as np
    >>> interleaved_to_half(np.arange(6)).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    width = _even("interleaved_to_half", w, width)
    xp = backend_of(w).xp
    return xp.concat((w[..., 0:width:2], w[..., 1:width:2], w[..., width:]), axis=-1)


def half_to_interleaved(w: Array, width: int | None = None) -> Array:
    """The inverse of `interleaved_to_half`.

    >>> import numpy as np
    >>> half_to_interleaved(np.asarray([0, 2, 4, 1, 3, 5])).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    width = _even("half_to_interleaved", w, width)
    xp = backend_of(w).xp
    pairs = xp.stack((w[..., : width // 2], w[..., width // 2 : width]), axis=-1)
    return xp.concat((xp.reshape(pairs, (*w.shape[:-1], width)), w[..., width:]), axis=-1)


def tiled_to_grouped(w: Array, kv_heads: int, axis: int = -2) -> Array:
    """Query heads that read kv head h % Hkv (x-transformers) -> in the order in which they read h // G.

    Apply it to w_q and b_q (axis=-2) and to the head axis of w_o (axis=-3).

    >>> import numpy as np
    >>> tiled_to_grouped(np.arange(6)[:, None], 2)[:, 0].tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return _regroup("tiled_to_grouped", w, kv_heads, axis, lambda group: (group, kv_heads))


def grouped_to_tiled(w: Array, kv_heads: int, axis: int = -2) -> Array:
    """The inverse of `tiled_to_grouped`.

    >>> import numpy as np
    >>> grouped_to_tiled(np.asarray([0, 2, 4, 1, 3, 5])[:, None], 2)[:, 0].tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return _regroup("grouped_to_tiled", w, kv_heads, axis, lambda group: (kv_heads, group))


def _regroup(function: str, w: Array, kv_heads: int, axis: int, split: object) -> Array:
    axis %= w.ndim
    heads = w.shape[axis]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"polyattn.weights.{function}: expected kv_heads to divide the {heads} heads of axis {axis}, got {kv_heads}; "
            "axis is that of the heads"
        )
    xp = backend_of(w).xp
    parts = xp.reshape(w, (*w.shape[:axis], *split(heads // kv_heads), *w.shape[axis + 1 :]))  # type: ignore[operator]
    axes = list(range(parts.ndim))
    axes[axis], axes[axis + 1] = axes[axis + 1], axes[axis]
    return xp.reshape(xp.permute_dims(parts, tuple(axes)), w.shape)


def _even(function: str, w: Array, width: int | None) -> int:
    width = w.shape[-1] if width is None else width
    if width % 2 or not 0 < width <= w.shape[-1]:
        raise ValueError(
            f"polyattn.weights.{function}: expected an even width of at most {w.shape[-1]}, got {width}; "
            "entries are turned in pairs"
        )
    return width
