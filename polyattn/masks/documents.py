"""Documents packed into one sequence, alone or over a prefix that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from polyattn.arrays import Array, backend_of, readable
from polyattn.calls import answers, array
from polyattn.masks.algebra import Mask
from polyattn.masks.fitting import reshape
from polyattn.masks.lengths import prefix
from polyattn.masks.tiles import EMPTY, PARTIAL, UNSURE, Box, Tile, decide
from polyattn.places import Frame, Positions


@dataclass(frozen=True, repr=False, eq=False)
class Segments(Mask):
    """Queries and keys with the same segment id."""

    q_ids: Array  # (L,) or (batch, L)
    kv_ids: Array  # (S,) or (batch, S)
    known: dict[Any, Any] | None = None  # while boxes are looked at: the ids, and the sets made of them

    def allowed(self, at: Positions) -> Array:
        q_ids = reshape(self.q_ids, (self.q_ids.shape[0] if self.q_ids.ndim > 1 else 1, 1, -1, 1))
        kv_ids = reshape(self.kv_ids, (self.kv_ids.shape[0] if self.kv_ids.ndim > 1 else 1, 1, 1, -1))
        return at.cut(q_ids) == at.cut(kv_ids)

    def read(self) -> Segments:
        arrays = (self.q_ids, self.kv_ids)
        if not readable(*arrays):
            return self
        lists = (backend_of(a).to_list(a) for a in arrays)
        return replace(
            self, known={"ids": [[x] if a.ndim == 1 else x for a, x in zip(arrays, lists, strict=True)]}
        )

    def box(self, box: Box) -> Tile:
        if self.known is None:
            return UNSURE
        tile: Tile | None = None
        for b in range(self.batch_size()) if box.b is None else (box.b,):
            queries, keys = self._ids(0, b, box.rows), self._ids(1, b, box.keys)
            here = decide(len(queries | keys) == 1, not queries & keys)
            if here is PARTIAL or (tile is not None and here is not tile):
                return PARTIAL
            tile = here
        return EMPTY if tile is None else tile

    def _ids(self, side: int, b: int, indices: range) -> frozenset[int]:
        """The ids that occur in a range of rows (side 0) or keys (side 1)."""
        known = self.known or {}
        key = (side, b, indices)
        if key not in known:
            rows = known["ids"][side]
            known[key] = frozenset(rows[b if len(rows) > 1 else 0][indices.start : indices.stop])
        ids: frozenset[int] = known[key]
        return ids

    def batch_size(self) -> int:
        return max(a.shape[0] if a.ndim > 1 else 1 for a in (self.q_ids, self.kv_ids))

    def own_size(self) -> tuple[int, int]:
        return self.q_ids.shape[-1], self.kv_ids.shape[-1]

    def fit(self, frame: Frame) -> Segments:
        for ids, name, size in ((self.q_ids, "q_ids", frame.rows), (self.kv_ids, "kv_ids", frame.keys)):
            shape = tuple(ids.shape)
            if shape not in ((size,), (1, size), (frame.batch, size), (*frame.lead, size)):
                raise ValueError(
                    f"{frame.who}: expected {name} of masks.segments to have shape ({size},) or "
                    f"({frame.batch}, {size}), got {shape}; give one id per "
                    f"{'query row' if name == 'q_ids' else 'key'} (kv_ids too where L != S)"
                )
        q_ids, kv_ids = (
            reshape(a, (-1, a.shape[-1])) if a.ndim > 2 else a for a in (self.q_ids, self.kv_ids)
        )
        return self if (q_ids is self.q_ids and kv_ids is self.kv_ids) else Segments(q_ids, kv_ids)

    def cumulative_lengths(self) -> list[list[int]]:
        """The boundaries of the query segments of every batch item: 0, ..., L, as "cu_seqlens" of varlen kernels.

        >>> import numpy as np
        >>> Segments(np.array([7, 7, 9]), np.array([7, 7, 9])).cumulative_lengths()
        [[0, 2, 3]]
        """
        known = self.read().known
        if known is None:
            raise ValueError(
                "polyattn.masks: expected concrete segment ids for cumulative_lengths, got traced ones; "
                "call it outside jit"
            )
        return [
            [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1]), len(ids)] for ids in known["ids"][0]
        ]

    def __str__(self) -> str:
        return "segments(...)"


@answers("polyattn.masks.segments")
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
        array("polyattn.masks.segments", "ids", ids, "of integers")
        if not backend_of(ids).isdtype(ids.dtype, "integral"):
            raise TypeError(
                "polyattn.masks.segments: expected arrays of integer ids, got "
                f"{ids.dtype}; number the documents"
            )
        if ids.ndim == 0:
            raise ValueError(
                "polyattn.masks.segments: expected ids of shape (L,) or (batch, L), got a single number; "
                "give one id per token"
            )
    return Segments(q_ids, kv_ids)


@answers("polyattn.masks.shared_prefix")
def shared_prefix(n: int | Sequence[int] | Array, q_ids: Array, kv_ids: Array | None = None) -> Mask:
    """kv < n or q_ids[q] == kv_ids[kv]: several continuations of one prefix, which is computed and kept once.

    prefix(n) | segments(q_ids, kv_ids), most often `& causal()`. The prefix has n positions (an integer, or one for each item)
    and an id of its own; with `query_positions` and `key_positions` that go on from n in every continuation, each of them
    gets what it gets alone.

    >>> import numpy as np
    >>> from polyattn.masks import causal
    >>> print((shared_prefix(2, np.array([0, 0, 1, 1, 2, 2])) & causal()).show(6))
    # . . . . .
    # # . . . .
    # # # . . .
    # # # # . .
    # # . . # .
    # # . . # #
    """
    return prefix(n) | segments(q_ids, kv_ids)
