"""The learned relative positions of T5."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polyattn.arrays import Array, backend_of
from polyattn.calls import answers, flag, integer, integral, real, size
from polyattn.mods.mod import Mod, to_all
from polyattn.places import INT32, Positions


@dataclass(frozen=True, eq=False)
class RelativePositionBias(Mod):
    table: Array
    bidirectional: bool
    max_distance: int
    compares_positions = True

    @property
    def heads(self) -> int:  # type: ignore[override]
        return int(self.table.shape[1])

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        steps = _steps(self.table.shape[0], self.bidirectional, self.max_distance)
        rows = [(self.table[bucket, ...][(h,)], begins) for bucket, begins in steps]
        return score + backend_of(score).astype(_stepwise(rows, kv_idx - q_idx), score.dtype)

    def derivative(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        backend = backend_of(score)
        xp, buckets = backend.xp, self.table.shape[0]
        bucket = relative_bucket(
            at.kv - at.q, buckets, bidirectional=self.bidirectional, max_distance=self.max_distance
        )
        per_bucket = [xp.sum(xp.where(bucket == n, cotangent, 0.0), axis=(0, 2, 3)) for n in range(buckets)]
        return cotangent, (to_all(xp.stack(per_bucket), at.h, self.table.shape[1]),)


@answers("polyattn.mods.relative_position_bias")
def relative_position_bias(table: Array, *, bidirectional: bool = True, max_distance: int = 128) -> Mod:
    """s -> s + table[bucket(kv - q), h]: the learned buckets of T5 (Raffel 2019, arXiv:1910.10683, section 2.1).

    table: (buckets, Hq), differentiable. bidirectional: keys after the query have buckets of their own
    (encoders); otherwise they share bucket 0 (decoders). max_distance: all keys farther share one bucket.

    >>> import numpy as np
    >>> table = np.arange(8.0)[:, None]
    >>> q, kv, h = np.arange(2)[:, None], np.arange(3), np.array(0)
    >>> relative_position_bias(table)(np.zeros((2, 3)), None, h, q, kv)
    array([[0., 5., 6.],
           [1., 0., 5.]])
    """
    who = "polyattn.mods.relative_position_bias"
    real(who, "table", table, "of shape (buckets, Hq)")
    bidirectional, max_distance = (
        flag(who, "bidirectional", bidirectional),
        integer(who, "max_distance", max_distance, most=INT32 - 1),
    )
    if table.ndim != 2:
        raise ValueError(
            f"{who}: expected a table of shape (buckets, Hq), got {tuple(table.shape)}; give one column per head"
        )
    exact = table.shape[0] // (4 if bidirectional else 2)
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"{who}: expected at least {4 if bidirectional else 2} buckets and "
            f"max_distance beyond the {exact} exact ones, got {table.shape[0]} and {max_distance}; "
            "T5 has 32 buckets and 128"
        )
    return RelativePositionBias(table, bidirectional, max_distance)


@answers("polyattn.mods.relative_bucket")
def relative_bucket(distance: Array, buckets: int, *, bidirectional: bool, max_distance: int) -> Array:
    """The T5 bucket of kv - q: one each for small distances, logarithmic up to max_distance, then one.

    >>> import numpy as np
    >>> relative_bucket(np.array([-200, -8, -1, 0, 1]), 32, bidirectional=True, max_distance=128)
    array([15,  8,  1,  0, 17], dtype=int32)
    """
    who = "polyattn.mods.relative_bucket"
    backend = integral(who, "distance", distance, "kv - q")
    bidirectional = flag(who, "bidirectional", bidirectional)
    buckets = size(who, "buckets", buckets, 4 if bidirectional else 2)
    max_distance = size(who, "max_distance", max_distance, buckets // (4 if bidirectional else 2) + 1)
    steps = _steps(buckets, bidirectional, max_distance)
    distance = backend.astype(distance, backend.xp.int32)
    return _stepwise([(distance * 0 + bucket, begins) for bucket, begins in steps], distance)


def _steps(buckets: int, bidirectional: bool, max_distance: int) -> list[tuple[int, int]]:
    """(bucket, the first distance kv - q in it), from the keys farthest before the query on."""
    half = buckets // 2 if bidirectional else buckets
    exact = half // 2
    # The logarithmic buckets begin where the integers say so: no logarithm of rounded numbers.
    far = [exact * (max_distance / exact) ** (step / (half - exact)) for step in range(1, half - exact)]
    begins = [*range(exact + 1), *(math.ceil(x - 1e-9) for x in far)]  # of the buckets 0, 1, ...
    ends = [*(b - 1 for b in begins[1:]), INT32]
    before = [(bucket, -ends[bucket]) for bucket in reversed(range(half))]
    return before + ([(half + bucket, begins[bucket]) for bucket in range(1, half)] if bidirectional else [])


def _stepwise(values: list[tuple[Array, int]], x: Array) -> Array:
    """The value whose step has begun last: by comparisons, which every chip has, and no table."""
    found, _ = values[0]
    for value, begins in values[1:]:
        found = backend_of(x).xp.where(x >= begins, value, found)
    return found
