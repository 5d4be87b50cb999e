"""Forgetting attention: a gate for each token and head, which all earlier keys have passed."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.arrays import Array, backend_of
from polyattn.calls import answers, real
from polyattn.mods.mod import Mod, to_all
from polyattn.places import Positions


@dataclass(frozen=True, eq=False)
class Forgetting(Mod):
    kept: Array  # (Hq, N + 1) or (B, Hq, N + 1): the sum of log f up to each position, and NaN for all others
    compares_positions = True
    keys_per_head = True

    @property
    def heads(self) -> int:  # type: ignore[override]
        return int(self.kept.shape[-2])

    @property
    def batch(self) -> int | None:  # type: ignore[override]
        return None if self.kept.ndim == 2 else int(self.kept.shape[0])

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        backend, kept = backend_of(score), self.kept
        beyond = kept.shape[-1] - 1

        def at(position: Array) -> Array:
            # NaN is looked up, not made: a kernel would make it of the rows and keys that pad its tiles.
            index = backend.xp.where((position >= 0) & (position < beyond), position, beyond)
            found = kept[(h, index) if kept.ndim == 2 else (b, h, index)]
            return backend.astype(found, score.dtype)

        return score + (at(q_idx) - at(kv_idx))

    def derivative(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        backend = backend_of(score)
        xp = backend.xp

        def laid(x: Array, position: Array) -> Array:
            """(b, h, n) at the positions of a tile, as (b, h, N)."""
            index = xp.reshape(position, (position.shape[0], -1))
            return backend.summed_at(x, index, self.kept.shape[-1])

        of_rows, of_keys = (xp.sum(cotangent, axis=axis) for axis in (3, 2))
        found = laid(of_rows, at.q) - laid(of_keys, at.kv)
        found = to_all(xp.permute_dims(found, (0, 2, 1)), at.h, self.heads)  # (b, N, H)
        if self.batch is None:
            return cotangent, (xp.matrix_transpose(xp.sum(found, axis=0)),)
        found = to_all(xp.permute_dims(found, (2, 1, 0)), at.b, self.batch)  # (H, N, B)
        return cotangent, (xp.permute_dims(found, (2, 0, 1)),)


@answers("polyattn.mods.forgetting")
def forgetting(log_forget: Array) -> Mod:
    """s_ij -> s_ij + sum_{l = j+1 .. i} log f_l: a key is weighed by all gates after it (FoX).

    log_forget: (Hq, N) or (B, Hq, N), log f <= 0 of every position 0 .. N - 1, differentiable; log sigmoid of a projection of
    x in the paper. Positions count: a decoded query at position i needs log f of all tokens up to i, those in a cache too,
    and one position for each, so that a score whose query or key stands outside 0 .. N - 1 is NaN, unless it is hidden.
    Meant for a causal mask; a key after its query is weighed by 1 / f.

    Kept is c_i = log f_0 + ... + log f_i, of which a score gets c_i - c_j: N numbers, not L S, with the rounding of a
    sum in the compute dtype, u |c_i|. It is the array of the mod, with a NaN behind it: `attention_vjp` gives dc, and
    d log f_l is the sum of dc from l on. Autodiff goes to log_forget by itself.

    Source: Lin 2025, arXiv:2503.02130.

    >>> import numpy as np
    >>> q, kv, h = np.arange(3)[:, None], np.arange(3), np.array(0)
    >>> forgetting(np.array([[-5.0, -1.0, -2.0]]))(np.zeros((3, 3)), None, h, q, kv)
    array([[ 0.,  1.,  3.],
           [-1.,  0.,  2.],
           [-3., -2.,  0.]])
    """
    who = "polyattn.mods.forgetting"
    backend = real(who, "log_forget", log_forget, "of shape (Hq, N) or (B, Hq, N)")
    if log_forget.ndim not in (2, 3):
        raise ValueError(
            f"{who}: expected log_forget of shape (Hq, N) or (B, Hq, N), got {tuple(log_forget.shape)}; give log f of "
            "every head and position"
        )
    compute = backend.astype(log_forget, backend.compute_dtype(log_forget.dtype))
    xp = backend.xp
    none = xp.full((*compute.shape[:-1], 1), xp.nan, dtype=compute.dtype, device=backend.device(compute))
    return Forgetting(xp.concat((backend.cumulative_sum(compute, axis=-1), none), axis=-1))
