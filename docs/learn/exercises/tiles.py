"""The second exercise of the chapter on attention tile by tile: forward."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed


def attention(q: Any, k: Any, v: Any, seen: Any = True) -> Any:
    s = np.where(seen, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
    w = np.exp(s - s.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True) @ v


def _tiles(attend: Any, length: int, rows: int, keys: int) -> str:
    q, k, v = (draw(length, 4, seed=seed) for seed in (1, 2, 3))
    return apart(
        attend(q, k, v, rows, keys), attention(q, k, v), f"{length} tokens in tiles of {rows} x {keys}"
    )


@law
def tiles_weigh_what_they_hold(attend: Any) -> str:
    """Tiles are merged by their sums, not averaged as if all were equal."""
    return _tiles(attend, 8, 4, 2)


@law
def the_last_tile_may_be_smaller(attend: Any) -> str:
    """Seven tokens in tiles of three: three, three and one."""
    return _tiles(attend, 7, 3, 3) or _tiles(attend, 7, 2, 4)


@law
def what_comes_in_is_left_as_it_is(attend: Any) -> str:
    """q, k and v are the same afterwards."""
    return changed(lambda *given: attend(*given, 2, 2), "q k v", *(draw(5, 4, seed=n) for n in (1, 2, 3)))


@law
def sides_may_be_any(attend: Any) -> str:
    """2 queries 9 wide, 3 keys, values 1 wide: of q = 1 and k = log(2) / 3 times 3, 2, 2 values 8, 4, 0 have the average 5."""
    q, k = np.ones((2, 9)), np.repeat(np.log(2) / 3 * np.array([[3.0], [2.0], [2.0]]), 9, 1)
    found = attend(q, k, np.array([[8.0], [4.0], [0.0]]), 1, 2)
    return apart(found, [[5.0], [5.0]], "of 2 queries 9 wide and values 8, 4, 0 in tiles of 1 x 2")


@law
def rows_may_be_far_apart(attend: Any) -> str:
    """Queries 1, 0, -1 with keys 0, 2000 + log 2, 2000 and values 9, 6, 3: 4 + 1 = 5, (9 + 6 + 3) / 3 = 6 and 9."""
    q, k = np.array([[1.0], [0.0], [-1.0]]), np.array([[0.0], [2000 + np.log(2)], [2000.0]])
    for rows, keys in ((3, 1), (2, 2), (5, 5)):
        what = (
            f"of queries 1, 0, -1, keys 0, 2000 + log 2, 2000 and values 9, 6, 3 in tiles of {rows} x {keys}"
        )
        if said := apart(
            attend(q, k, np.array([[9.0], [6.0], [3.0]]), rows, keys), [[5.0], [6.0], [9.0]], what
        ):
            return said
    return ""


@law
def a_tile_is_of_so_many_keys(attend: Any) -> str:
    """4 queries and 100000 keys, 1 wide, in tiles of 1000 keys take less than the keys twice, 1600 kB."""
    q, k = draw(4, 1, seed=1), draw(100_000, 1, seed=2)
    most = _memory(attend, q, k, k, 100_000, 1000)
    what = "4 queries and 100000 keys, 1 wide, in tiles of 1000 keys"
    return "" if most < 1_600_000 else f"{what} took {most // 1000} kB; 4 x 1000 scores take 32"


@law
def pieces_are_as_long_as_asked(attend: Any) -> str:
    """11 queries and 13 keys in tiles of 5 x 4: what is cut of the queries has 5 rows, what is cut of the keys 4."""
    q, k, v = draw(11, 3, seed=1), draw(13, 3, seed=2), draw(13, 2, seed=3)
    cut: tuple[set[tuple[int, ...]], ...] = (set(), set())
    attend(_watched(q, cut[0]), _watched(k, cut[1]), v, 5, 4)
    for name, shapes, size in zip(("queries", "keys"), cut, (5, 4), strict=True):
        if shapes and not any(size in shape for shape in shapes):
            return f"in tiles of 5 x 4 the {name} are cut in pieces of {max(shapes)[0]}, not of {size}"
    return ""


def _watched(x: Any, shapes: set[tuple[int, ...]]) -> Any:
    """The array, which writes down the shapes of the matrices that are cut of it."""

    class Watched(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            if np.ndim(found) == 2:
                shapes.add(found.shape)
            return found

        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
            return getattr(ufunc, method)(*map(np.asarray, inputs), **options)

    return x.view(Watched)


def _memory(attend: Any, *given: Any) -> int:
    tracemalloc.start()
    try:
        attend(*given)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@law
def no_matrix_of_scores_is_there(attend: Any) -> str:
    """1024 tokens in tiles of 64 take less than a tenth of the 8 MB of their scores."""
    q, k, v = (draw(1024, 4, seed=seed) for seed in (1, 2, 3))
    most = _memory(attend, q, k, v, 64, 64)
    return (
        ""
        if most < 800_000
        else f"1024 tokens in tiles of 64 took {most / 1e6:.1f} MB, much more than a few tiles of scores"
    )


def _mean_of_tiles(q: Any, k: Any, v: Any, rows: int, keys: int) -> Any:
    return np.mean([attention(q, k[j : j + keys], v[j : j + keys]) for j in range(0, len(k), keys)], axis=0)


def _whole_tiles(q: Any, k: Any, v: Any, rows: int, keys: int) -> Any:
    whole = len(k) // keys * keys
    return attention(q, k[:whole], v[:whole])


def _folded(q: Any, k: Any, v: Any, rows: int, keys: int, *, width: int = 0, shared: bool = False) -> Any:
    """Right, or with another scale, or with one maximum for all rows of a tile."""
    found = []
    for i in range(0, len(q), rows):
        tile, m, total, acc = q[i : i + rows] / (width or q.shape[-1]) ** 0.5, -np.inf, 0.0, 0.0
        for j in range(0, len(k), keys):
            s = tile @ k[j : j + keys].T
            top = np.maximum(m, s.max() if shared else s.max(-1, keepdims=True))
            powers, old = np.exp(s - top), np.exp(m - top)
            m, total = top, total * old + powers.sum(-1, keepdims=True)
            acc = acc * old + powers @ v[j : j + keys]
        found.append(acc / total)
    return np.concatenate(found)


def _scaled_in_place(q: Any, k: Any, v: Any, rows: int, keys: int) -> Any:
    found = _folded(q, k, v, rows, keys)
    q *= q.shape[-1] ** -0.5
    return found


def _row_by_row(q: Any, k: Any, v: Any, rows: int, keys: int) -> Any:
    return np.concatenate([attention(q[i : i + 1], k, v) for i in range(len(q))])


FORWARD = Exercise(
    (
        what_comes_in_is_left_as_it_is,
        tiles_weigh_what_they_hold,
        the_last_tile_may_be_smaller,
        sides_may_be_any,
        rows_may_be_far_apart,
        no_matrix_of_scores_is_there,
        a_tile_is_of_so_many_keys,
        pieces_are_as_long_as_asked,
    ),
    {
        "tiles_weigh_what_they_hold": _mean_of_tiles,
        "the_last_tile_may_be_smaller": _whole_tiles,
        "what_comes_in_is_left_as_it_is": _scaled_in_place,
        "sides_may_be_any": lambda q, k, v, rows, keys: _folded(q, k, v, rows, keys, width=4),
        "rows_may_be_far_apart": lambda q, k, v, rows, keys: _folded(q, k, v, rows, keys, shared=True),
        "no_matrix_of_scores_is_there": lambda q, k, v, rows, keys: attention(q, k, v),
        "a_tile_is_of_so_many_keys": _row_by_row,
        "pieces_are_as_long_as_asked": lambda q, k, v, rows, keys: _folded(q, k, v, 2, min(keys, 64)),
    },
)
