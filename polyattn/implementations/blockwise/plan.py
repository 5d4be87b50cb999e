"""How a problem is cut into tiles, and which of them have to meet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyattn.arrays import Schedule
from polyattn.masks.tiles import EMPTY, FULL
from polyattn.problem.problem import Problem


@dataclass(frozen=True)
class Blockwise:
    """The blockwise implementation with tiles of a given size; None leaves the size to the adapter.

    >>> import numpy as np
    >>> from polyattn import Blockwise, attention
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> attention(x, x, x, is_causal=True, implementation=Blockwise(rows=2, keys=2))
    array([[0.        ],
           [0.73105858],
           [1.85093709]])
    """

    rows: int | None = None
    keys: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "keys"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(
                    f"polyattn.Blockwise: expected {name} to be a positive integer, got {size!r}; "
                    "it is the number of score matrix entries along one side of a tile"
                )


class Visits(NamedTuple):
    """Which tiles of the other axis every tile has to meet, per batch item (or one list for all).

    `full[b][i]` and `part[b][i]` are indices of tiles of whole size, padded to one length; `full_n` and
    `part_n` say how many count. `rest[b][i]` is 1 if the ragged last tile is to be met, which is masked.
    """

    full: Any  # 0 where no tile has any
    full_n: Any
    part: Any
    part_n: Any
    rest: Any


class Plan(NamedTuple):
    """A problem cut: sizes, and the visits of query tiles to key tiles and of key tiles to query tiles."""

    schedule: Schedule
    by_query: Visits
    by_key: Visits


def plan(p: Problem, wish: Blockwise) -> Plan:
    """The cut of a problem. Masks that cannot be read now (traced) leave every tile partial."""
    schedule = _finer_where_sparse(p, p.backend.schedule(p))
    rows = min(wish.rows or schedule.rows, max(p.frame.rows, 1))
    keys = min(wish.keys or schedule.keys, max(p.frame.keys, 1))
    heads = math.gcd(schedule.heads, p.k.shape[1])  # 0 means all
    schedule = Schedule(rows, keys, heads if schedule.heads else 0)
    n_rows, n_keys = -(-p.frame.rows // rows), -(-p.frame.keys // keys)
    if p.mask is None:
        grids = [[[FULL] * n_keys for _ in range(n_rows)]]
    else:
        shared = p.mask.batch_size() == 1 and (isinstance(p.offset, int) or math.prod(p.offset.shape) == 1)
        items: Any = [None] if shared or schedule.heads == 0 else range(p.frame.batch)
        sizes = (p.frame.rows, p.frame.keys, (rows, keys))
        grids = [
            p.mask.tiles(*sizes, b=b, query_offset=p.offset, remember=p.backend.may_remember()) for b in items
        ]
    ragged_rows, ragged_keys = bool(p.frame.rows % rows), bool(p.frame.keys % keys)
    turned = [[list(column) for column in zip(*grid, strict=True)] for grid in grids]
    if not n_rows:
        turned = [[[] for _ in range(n_keys)] for _ in grids]
    return Plan(schedule, _visits(p, grids, ragged_keys), _visits(p, turned, ragged_rows))


def _finer_where_sparse(p: Problem, schedule: Schedule) -> Schedule:
    """Smaller tiles for a mask that cuts most of the tiles it meets, as narrow windows do.

    The cost of a visit is its area and a constant, the time of about 2^14 scores (measured 2026-11-21).
    """
    known = p.mask is not None and isinstance(p.offset, int) and not any(True for _ in p.mask.arrays())
    if not known or not p.mask.exact:  # type: ignore[union-attr]
        return schedule

    def cost(choice: Schedule) -> int:
        assert p.mask is not None
        grid = p.mask.tiles(
            p.frame.rows, p.frame.keys, choice[:2], query_offset=p.offset, remember=p.backend.may_remember()
        )
        return sum(tile is not EMPTY for line in grid for tile in line) * (choice.rows * choice.keys + 2**14)

    sizes = [(schedule.rows // n, schedule.keys // n) for n in (1, 2, 4) if min(schedule[:2]) // n >= 64]
    return min((Schedule(*size, schedule.heads) for size in sizes or [schedule[:2]]), key=cost)


def _visits(p: Problem, grids: Any, ragged: bool) -> Visits:
    full: Any = []
    part: Any = []
    rest: Any = []
    for grid in grids:
        whole = [line[:-1] if ragged else line for line in grid]
        full.append([[j for j, tile in enumerate(line) if tile is FULL] for line in whole])
        part.append([[j for j, t in enumerate(line) if t is not FULL and t is not EMPTY] for line in whole])
        rest.append([int(ragged and line[-1] is not EMPTY) for line in grid])
    table = p.backend.table

    def padded(lists: Any) -> Any:
        longest = max((len(line) for grid in lists for line in grid), default=0)
        return longest and table(
            [[line + [0] * (longest - len(line)) for line in grid] for grid in lists], p.q
        )

    def counts(lists: Any) -> Any:
        return table([[len(line) for line in grid] for grid in lists], p.q)

    return Visits(padded(full), counts(full), padded(part), counts(part), table(rest, p.q))
