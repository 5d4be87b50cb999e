"""How a problem is cut into tiles, and which of them have to meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from polyattn.arrays import TileSizes
from polyattn.calls import answers, shown
from polyattn.masks.tiles import FULL, Cut, Run, both_ways
from polyattn.problem import Problem


@answers("polyattn.Blockwise", "settings")
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
                    f"polyattn.Blockwise: expected {name} to be a positive integer, got {shown(size)}; "
                    "it is the number of score matrix entries along one side of a tile"
                )


@dataclass(frozen=True)
class Visits:
    """Which tiles of the other axis every tile has to meet, per batch item (or one list for all).

    `full[b][i]` and `part[b][i]` are indices of tiles of whole size, padded to one length; `full_n` and
    `part_n` say how many count. `rest[b][i]` is 1 if the ragged last tile is to be met, which is masked.
    """

    full: Any  # 0 where no tile has any
    full_n: Any
    part: Any
    part_n: Any
    rest: Any


@dataclass(frozen=True)
class Plan:
    """A problem cut: sizes, and the visits of query tiles to key tiles and of key tiles to query tiles."""

    sizes: TileSizes
    by_query: Visits
    by_key: Visits


Cuts = tuple[Cut, Cut]  # a line for every query tile, and one for every key tile


def plan(p: Problem, wish: Blockwise) -> Plan:
    """The cut of a problem. Masks that cannot be read now (traced) leave every tile partial."""
    sizes = p.backend.tile_sizes(p)
    if sizes.kv_heads is not None:
        sizes = sizes._replace(kv_heads=gcd(sizes.kv_heads, p.k.shape[1]))
    rows, keys = p.frame.rows, p.frame.keys
    if p.mask is None:
        sizes = _wished(sizes, wish, rows, keys)
        down, across = -(-rows // sizes.rows), -(-keys // sizes.keys)
        cuts: Sequence[Cuts] = [((((0, across, FULL),),) * down, (((0, down, FULL),),) * across)]
    elif wish == Blockwise() and (fine := _finest(p, sizes)) is not None:
        sizes, one = _cheapest(p, sizes, fine)
        sizes, cuts = _wished(sizes, wish, rows, keys), [one]
    else:
        sizes = _wished(sizes, wish, rows, keys)
        shared = sizes.kv_heads is None or (p.mask.batch_size() == 1 and not p.places.per_item)
        cuts = [_cut(p, sizes, b) for b in ((None,) if shared else range(p.frame.batch))]
    down, across = -(-rows // sizes.rows), -(-keys // sizes.keys)
    return Plan(
        sizes,
        by_query=_visits(p, [one for one, _ in cuts], across, ragged=bool(keys % sizes.keys)),
        by_key=_visits(p, [turned for _, turned in cuts], down, ragged=bool(rows % sizes.rows)),
    )


def _wished(sizes: TileSizes, wish: Blockwise, rows: int, keys: int) -> TileSizes:
    return sizes._replace(rows=min(wish.rows or sizes.rows, rows), keys=min(wish.keys or sizes.keys, keys))


def _cut(p: Problem, sizes: TileSizes, b: int | None = None) -> Cuts:
    return both_ways(
        p.mask,  # type: ignore[arg-type]
        p.frame.rows,
        p.frame.keys,
        sizes[:2],
        b=b,
        places=p.places,
        remember=p.backend.may_remember(),
    )


# Smaller tiles for a mask that cuts most of the tiles it meets, as narrow windows do.


def _finest(p: Problem, sizes: TileSizes) -> TileSizes | None:
    """The smallest tiles that are tried; None for a mask whose cut is not the same for all items and calls."""
    mask = p.mask
    if mask is None or not p.places.fixed or not mask.exact or any(True for _ in mask.arrays()):
        return None
    if mask.batch_size() > 1 and sizes.kv_heads is not None:
        return None
    small = min(sizes.rows, sizes.keys) // 64
    n = 4 if small >= 4 else 2 if small >= 2 else 1
    return sizes._replace(rows=sizes.rows // n, keys=sizes.keys // n)


def _cheapest(p: Problem, sizes: TileSizes, fine: TileSizes) -> tuple[TileSizes, Cuts]:
    """The tiles whose visits cost least: their area and a constant, the time of about 2^14 scores (2026-11-21)."""

    def cost(choice: tuple[TileSizes, Cuts]) -> int:
        visits = sum([stop - start for line in choice[1][0] for start, stop, _ in line])
        return visits * (choice[0].rows * choice[0].keys + 2**14)

    tried = []
    n = sizes.rows // fine.rows
    while n >= 1:
        size = sizes._replace(rows=fine.rows * n, keys=fine.keys * n)
        tried.append((size, _cut(p, size)))
        n //= 2
    best = tried[0]
    for choice in tried[1:]:
        best = choice if cost(choice) < cost(best) else best
    return best


def _visits(p: Problem, cuts: Sequence[Cut], tiles: int, *, ragged: bool) -> Visits:
    """tiles: how many a line has; ragged: whether the last one is smaller than the others."""
    whole = tiles - 1 if ragged else tiles

    def met(line: tuple[Run, ...], full: bool) -> list[int]:
        return [
            j for start, stop, tile in line if (tile is FULL) == full for j in range(start, min(stop, whole))
        ]

    table = p.backend.table

    def padded(lists: Any) -> Any:
        longest = max([len(line) for one in lists for line in one])
        if longest == 0:
            return 0
        return table([[line + [0] * (longest - len(line)) for line in one] for one in lists], p.q)

    def counts(lists: Any) -> Any:
        return table([[len(line) for line in one] for one in lists], p.q)

    full = [[met(line, True) for line in one] for one in cuts]
    part = [[met(line, False) for line in one] for one in cuts]
    rest = [[int(ragged and bool(line) and line[-1][1] == tiles) for line in one] for one in cuts]
    return Visits(padded(full), counts(full), padded(part), counts(part), table(rest, p.q))
