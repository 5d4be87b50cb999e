"""Exercises of the chapter on attention tile by tile, and the law that its mistake breaks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.tiles import FORWARD, attention
from exercises.tiles_backward import BACKWARD


@law
def sizes_of_tiles_are_nothing(attend: Any) -> str:
    """However the scores are cut, the result is the same.

    `attend(q, k, v, rows, keys)` is causal attention of matrices in tiles of that size.
    """
    q, k, v = (draw(7, 4, seed=seed) for seed in (1, 2, 3))
    whole = attention(q, k, v, np.tri(7, dtype=bool))
    for rows, keys in ((7, 7), (2, 2), (1, 3), (2, 3), (3, 2), (4, 1)):
        what = f"in tiles of {rows} queries and {keys} keys"
        if found := apart(attend(q, k, v, rows, keys), whole, what):
            return found
    return ""


# ---- exercise 1: what a causal mask makes of a tile ----


def _answers(kind: Any, *asked: tuple[range, range, str]) -> str:
    for rows, keys, expected in asked:
        if (found := kind(rows, keys)) != expected:
            where = f"queries {rows[0]} to {rows[-1]} and keys {keys[0]} to {keys[-1]}"
            return f"{where}: {expected} was expected, {found} came"
    return ""


@law
def keys_that_are_all_later_are_empty(kind: Any) -> str:
    """Queries 0 to 3 see none of the keys 4 to 7."""
    return _answers(
        kind, (range(4), range(4, 8), "EMPTY"), (range(1), range(1, 2), "EMPTY"), (range(4), range(9, 12), "EMPTY")
    )  # fmt: skip


@law
def keys_that_are_all_earlier_are_full(kind: Any) -> str:
    """Queries 4 to 7 see all of the keys 0 to 3, and query 4 sees key 4."""
    return _answers(
        kind, (range(4, 8), range(4), "FULL"), (range(4, 8), range(5), "FULL"), (range(4, 5), range(4, 5), "FULL")
    )  # fmt: skip


@law
def where_the_border_runs_it_is_partial(kind: Any) -> str:
    """Of queries 0, 1, 2 and keys 2, 3 query 2 sees key 2, and no one else anything."""
    return _answers(
        kind, (range(3), range(2, 4), "PARTIAL"), (range(4), range(4), "PARTIAL"), (range(4, 8), range(6), "PARTIAL")
    )  # fmt: skip


@law
def no_entry_is_asked_for(kind: Any) -> str:
    """Of a tile of 1000 queries and 1000 keys no million of entries is made or asked for one by one."""
    for rows, keys in ((2000, 1000), (1000, 1500), (0, 1000)):
        reads = [0]
        tile = _Counted(rows, rows + 1000, reads), _Counted(keys, keys + 1000, reads)
        kind(*tile)
        tracemalloc.start()
        try:
            kind(*tile)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        what = f"queries {rows} to {rows + 999} and keys {keys} to {keys + 999}"
        if reads[0] > 20_000:
            return f"{what}: numbers of the ranges were read {reads[0]} times; their ends are 4"
        if most > 500_000:
            return f"{what}: {most // 1000} kB are there at once; the ends of the ranges take none"
    return ""


@dataclass(frozen=True)
class _Counted(Sequence[int]):
    """A range that counts what is read of it."""

    start: int
    stop: int
    reads: list[int]
    step: int = 1

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, at: Any) -> Any:
        self.reads[0] += 1
        return range(self.start, self.stop)[at]

    def __iter__(self) -> Iterator[int]:
        for number in range(self.start, self.stop):
            self.reads[0] += 1
            yield number


def _entry_by_entry(rows: range, keys: range) -> str:
    seen = np.array(list(keys)) <= np.array(list(rows))[:, None]
    return "FULL" if seen.all() else "PARTIAL" if seen.any() else "EMPTY"


def _by_first_ends(rows: range, keys: range) -> str:
    if keys[0] > rows[0]:
        return "EMPTY"
    return "FULL" if keys[-1] <= rows[0] else "PARTIAL"


def _strictly_earlier(rows: range, keys: range) -> str:
    if keys[0] > rows[-1]:
        return "EMPTY"
    return "FULL" if keys[-1] < rows[0] else "PARTIAL"


EXERCISES = (
    Exercise(
        (
            keys_that_are_all_later_are_empty,
            keys_that_are_all_earlier_are_full,
            where_the_border_runs_it_is_partial,
            no_entry_is_asked_for,
        ),
        {
            "keys_that_are_all_later_are_empty": lambda rows, keys: (
                "FULL" if keys[-1] <= rows[0] else "PARTIAL"
            ),
            "keys_that_are_all_earlier_are_full": _strictly_earlier,
            "where_the_border_runs_it_is_partial": _by_first_ends,
            "no_entry_is_asked_for": _entry_by_entry,
        },
    ),
    FORWARD,
    BACKWARD,
)
