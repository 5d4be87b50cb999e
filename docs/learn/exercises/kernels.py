"""Exercises of the chapter on kernels, and the law that its mistake breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law
from exercises.given import changed

MIB = 2**20


@law
def what_lies_behind_the_end_is_nothing(attend: Any) -> str:
    """What memory holds behind the last key changes nothing, NaN included.

    `attend(q, k, v, behind)` fetches tiles that reach beyond the end, where everything is `behind`.
    """
    q, k, v = (draw(2, 4, 6, 8, seed=seed) for seed in (1, 2, 3))
    s = q @ k.swapaxes(-1, -2) / np.sqrt(8)
    w = np.exp(s)
    expected = w / w.sum(-1, keepdims=True) @ v
    for behind in (0.0, 100.0, np.nan, np.inf):
        if found := apart(attend(q, k, v, behind), expected, f"with {behind:g} behind the end"):
            return found
    return ""


# ---- exercise 1: three kernels ----


@law
def scores_pass_four_times(traffic: Any) -> str:
    """1024 tokens of width 64, two bytes a number: 4 N^2 + 4 N D numbers, 8.5 MiB."""
    return apart(traffic(1024, 1024, 64, 2) / MIB, 8.5, "MiB for 1024 tokens of width 64")


@law
def a_head_may_have_any_width(traffic: Any) -> str:
    """2 queries, 3 keys, width 5, one byte a number: 4 * 2 * 3 + 2 * 2 * 5 + 2 * 3 * 5 = 74."""
    return apart(traffic(2, 3, 5, 1), 74.0, "bytes for 2 queries and 3 keys of width 5, one byte a number")


@law
def queries_and_keys_are_counted_apart(traffic: Any) -> str:
    """One query and 1024 keys of width 64: 4 * 1024 + 2 * 64 + 2 * 1024 * 64 numbers."""
    return apart(float(traffic(1, 1024, 64, 2)), 2 * 135296.0, "bytes for 1 query and 1024 keys of width 64")


@law
def every_number_has_its_bytes(traffic: Any) -> str:
    """Four bytes a number are twice the traffic of two."""
    return apart(traffic(1024, 1024, 64, 4) / MIB, 17.0, "MiB with four bytes a number")


# ---- exercise 2: one kernel ----


@law
def every_tile_reads_all_keys(traffic: Any) -> str:
    """1024 tokens in 8 tiles of 128: 0.25 MiB of queries and results, and 8 times 0.25 MiB of keys and values."""
    return apart(traffic(1024, 1024, 64, 2, 128) / MIB, 2.25, "MiB for 1024 tokens in tiles of 128 queries")


@law
def a_smaller_last_tile_reads_them_too(traffic: Any) -> str:
    """130 queries in tiles of 128 are two tiles, and one query is a tile."""
    found = apart(traffic(130, 1024, 64, 2, 128) / 2**10, 544.5, "KiB for 130 queries in tiles of 128")
    return found or apart(traffic(1, 1024, 64, 2, 128) / 2**10, 256.25, "KiB for 1 query in tiles of 128")


@law
def numbers_have_their_bytes(traffic: Any) -> str:
    """Four bytes a number are twice the traffic of two."""
    return apart(traffic(1024, 1024, 64, 4, 128) / MIB, 4.5, "MiB with four bytes a number")


@law
def every_size_is_asked(traffic: Any) -> str:
    """5 queries in tiles of 2, 3 keys, width 4, one byte a number: 2 * 5 * 4 and 3 times 2 * 3 * 4 are 112."""
    return apart(
        traffic(5, 3, 4, 1, 2), 112.0, "bytes for 5 queries in tiles of 2, 3 keys, width 4, one byte a number"
    )


# ---- exercise 3: what was fetched ----


VALUES = (8.0, 4.0, 0.0)


def _average(average: Any, scores: Any, behind: tuple[float, float], queries: Any = (1.0,)) -> Any:
    """Of width 1: the scores are products with the query, the values 8, 4, 0, and one more of each is behind the end."""
    k, v = (np.array([*x, y])[:, None] for x, y in zip((scores, VALUES[: len(scores)]), behind, strict=True))
    return average(np.array(queries)[:, None], k, v, len(scores))


@law
def with_all_keys_there_it_is_attention(average: Any) -> str:
    """Of width 4, q = 1 and k = log(2) / 2 * 3, 2, 2 have the scores log(2) * 3, 2, 2: 8/2 + 4/4 = 5."""
    k = np.repeat(np.log(2) / 2 * np.array([[3.0], [2.0], [2.0]]), 4, 1)
    out = average(np.ones((1, 4)), k, np.array(VALUES)[:, None], 3)
    return apart(out, [[5.0]], "of width 4, q = 1, k = log(2) / 2 * 3, 2, 2 and values 8, 4, 0")


@law
def keys_behind_the_end_weigh_nothing(average: Any) -> str:
    """Scores log(2) * 3, 2, 2 and values 8, 4, 0 are there, a score and value of 0 is not: 8/2 + 4/4 = 5."""
    out = _average(average, np.log(2) * np.array([3, 2, 2]), (0.0, 0.0))
    return apart(out, [[5.0]], "of scores log(2) * 3, 2, 2 and values 8, 4, 0, with a zero behind them")


@law
def every_query_has_its_own_average(average: Any) -> str:
    """Of k = log(2) * 3, 2, 2 the query 1 reads 8/2 + 4/4 = 5, the query 0 reads (8 + 4 + 0) / 3 = 4."""
    out = _average(average, np.log(2) * np.array([3, 2, 2]), (0.0, 0.0), (1.0, 0.0))
    return apart(out, [[5.0], [4.0]], "of queries 1 and 0, k = log(2) * 3, 2, 2 and values 8, 4, 0")


@law
def scores_may_be_large(average: Any) -> str:
    """Scores of 2000, 0, 0 give 8, and those of -2000, 0, 0 beside them (4 + 0) / 2 = 2."""
    out = _average(average, (2000.0, 0.0, 0.0), (0.0, 0.0), (1.0, -1.0))
    return apart(out, [[8.0], [2.0]], "of queries 1 and -1, k = 2000, 0, 0 and values 8, 4, 0")


@law
def what_is_behind_the_end_is_below_all_scores(average: Any) -> str:
    """Scores of -2000 and -2000 are halves, whatever is behind them: (8 + 4) / 2 = 6."""
    out = _average(average, (-2000.0, -2000.0), (0.0, 0.0))
    return apart(out, [[6.0]], "of scores -2000, -2000 and values 8, 4, with a zero behind them")


@law
def nothing_comes_of_values_behind_the_end(average: Any) -> str:
    """NaN in the place of the last value changes nothing, though 0 times NaN is NaN: (8 + 4) / 2 = 6."""
    for behind in ((0.0, np.nan), (np.nan, np.inf), (np.inf, 1e300), (-np.inf, np.nan)):
        what = f"of scores 0, 0 and values 8, 4, with a key of {behind[0]:g} and a value of {behind[1]:g} behind them"
        if found := apart(_average(average, (0.0, 0.0), behind), [[6.0]], what):
            return found
    return ""


@law
def what_is_there_comes_through(average: Any) -> str:
    """NaN in a value that is there is NaN in the result, so that a mistake before it is found."""
    out = np.asarray(average(np.ones((1, 1)), np.zeros((2, 1)), np.array([[8.0], [np.nan]]), 2))
    return (
        "" if np.isnan(out).all() else f"of values 8 and NaN, both there, {out.ravel()[0]:.3g} came, not NaN"
    )


@law
def a_tile_without_keys_gives_nothing(average: Any) -> str:
    """Where no key is there the result is 0, as wide as the values are."""
    q, k, v = draw(2, 4, seed=1), draw(5, 4, seed=2), draw(5, 3, seed=3)
    return apart(
        average(q, k, v, 0), np.zeros((2, 3)), "of 2 queries and values of width 3, with no key there"
    )


@law
def what_was_fetched_stays_as_it_is(average: Any) -> str:
    """Arguments belong to the caller: what lies behind the end lies there afterwards."""
    q, k, v = draw(2, 4, seed=1), draw(5, 4, seed=2), draw(5, 3, seed=3)
    return changed(lambda *tile: average(*tile, 3), q=q, k=k, v=v)


@law
def tiles_may_have_any_size(average: Any) -> str:
    """3 queries and 5 keys of width 8, values of width 2, of which 1, 2, ... 5 are there, beside a loop."""
    q, k, v = 4 * draw(3, 8, seed=1), draw(5, 8, seed=2), draw(5, 2, seed=3)
    for count in range(1, 6):
        w = np.exp(q @ k[:count].T / np.sqrt(8))
        expected = w / w.sum(-1, keepdims=True) @ v[:count]
        what = f"of 3 queries of width 8 and {count} of 5 keys"
        if found := apart(average(q.copy(), k.copy(), v.copy(), count), expected, what):
            return found
    return ""


def _softmax(s: Any, top: Any = None) -> Any:
    w = np.exp(s - (s.max(-1, keepdims=True) if top is None else top(s)))
    return w / w.sum(-1, keepdims=True)


def _hidden_by_score(q: Any, k: Any, v: Any, count: int, hidden: float = -np.inf) -> Any:
    return _softmax(np.where(np.arange(len(k)) < count, q @ k.T / np.sqrt(q.shape[-1]), hidden)) @ v


def _replaced(q: Any, k: Any, v: Any, count: int, hidden: float = -np.inf) -> Any:
    there = np.arange(len(k))[:, None] < count
    return _hidden_by_score(q, np.where(there, k, 0), np.where(there, v, 0), count, hidden)


def _cut(q: Any, k: Any, v: Any, count: int, width: int = 0, top: Any = None) -> Any:
    """Right, unless it is given what is wrong."""
    if count == 0:
        return np.zeros((len(q), v.shape[1]))
    return _softmax(q @ k[:count].T / (width or q.shape[-1]) ** 0.5, top) @ v[:count]


def _emptied(q: Any, k: Any, v: Any, count: int) -> Any:
    k[count:], v[count:] = 0, 0
    return _cut(q, k, v, count)


EXERCISES = (
    Exercise(
        (
            scores_pass_four_times,
            queries_and_keys_are_counted_apart,
            every_number_has_its_bytes,
            a_head_may_have_any_width,
        ),
        {
            "scores_pass_four_times": lambda queries, keys, width, item: (
                item * (2 * queries * keys + 2 * width * (queries + keys))
            ),
            "queries_and_keys_are_counted_apart": lambda queries, keys, width, item: (
                item * (4 * queries * keys + 4 * queries * width)
            ),
            "every_number_has_its_bytes": lambda queries, keys, width, item: (
                2 * (4 * queries * keys + 2 * width * (queries + keys))
            ),
            "a_head_may_have_any_width": lambda queries, keys, width, item: (
                item * (4 * queries * keys + 2 * 64 * (queries + keys))
            ),
        },
    ),
    Exercise(
        (
            every_tile_reads_all_keys,
            a_smaller_last_tile_reads_them_too,
            numbers_have_their_bytes,
            every_size_is_asked,
        ),
        {
            "every_tile_reads_all_keys": lambda queries, keys, width, item, rows: (
                item * width * 2 * (queries + keys)
            ),
            "a_smaller_last_tile_reads_them_too": lambda queries, keys, width, item, rows: (
                item * width * 2 * (queries + queries // rows * keys)
            ),
            "numbers_have_their_bytes": lambda queries, keys, width, item, rows: (
                2 * width * 2 * (queries + -(-queries // rows) * keys)
            ),
            "every_size_is_asked": lambda queries, keys, width, item, rows: (
                item * 64 * 2 * (queries + -(-queries // rows) * keys)
            ),
        },
    ),
    Exercise(
        (
            with_all_keys_there_it_is_attention,
            keys_behind_the_end_weigh_nothing,
            every_query_has_its_own_average,
            scores_may_be_large,
            what_is_behind_the_end_is_below_all_scores,
            nothing_comes_of_values_behind_the_end,
            what_is_there_comes_through,
            a_tile_without_keys_gives_nothing,
            what_was_fetched_stays_as_it_is,
            tiles_may_have_any_size,
        ),
        {
            "with_all_keys_there_it_is_attention": lambda q, k, v, count: _cut(q, k, v, count, width=1),
            "keys_behind_the_end_weigh_nothing": lambda q, k, v, count: _cut(q, k, v, len(k)),
            "every_query_has_its_own_average": lambda q, k, v, count: np.broadcast_to(
                _cut(q[:1], k, v, count), (len(q), v.shape[1])
            ),
            "scores_may_be_large": lambda q, k, v, count: _cut(q, k, v, count, top=np.max),
            "what_is_behind_the_end_is_below_all_scores": lambda q, k, v, count: _replaced(
                q, k, v, count, hidden=-100.0
            ),
            "nothing_comes_of_values_behind_the_end": _hidden_by_score,
            "what_is_there_comes_through": lambda q, k, v, count: _cut(q, k, np.nan_to_num(v), count),
            "a_tile_without_keys_gives_nothing": _replaced,
            "what_was_fetched_stays_as_it_is": _emptied,
            "tiles_may_have_any_size": lambda q, k, v, count: _cut(q, k, v, count, width=min(q.shape[1], 4)),
        },
    ),
)
