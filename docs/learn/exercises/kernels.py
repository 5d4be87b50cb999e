"""Exercises of the chapter on kernels, and the law that its mistake breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, draw, law

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


# ---- exercise 3: what was fetched ----


def _given(behind: Any, count: int = 3) -> tuple[Any, ...]:
    q, k, v = draw(2, 4, seed=1), draw(4, 4, seed=2), draw(4, 3, seed=3)
    s = q @ k[:count].T / 2
    w = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    k[count:], v[count:] = behind
    return q, k, v, w @ v[:count]


@law
def keys_behind_the_end_weigh_nothing(average: Any) -> str:
    """Three of four keys are there; zeros in the place of the fourth are no key."""
    q, k, v, expected = _given((0.0, 0.0))
    return apart(average(q, k, v, 3), expected, "with 3 of 4 keys there, and zeros behind them")


@law
def nothing_comes_of_values_behind_the_end(average: Any) -> str:
    """NaN in the place of the fourth value changes nothing, though 0 times NaN is NaN."""
    q, k, v, expected = _given((0.0, np.nan))
    found = apart(average(q, k, v, 3), expected, "with NaN in the values behind the end")
    q, k, v, expected = _given((np.nan, np.inf))
    return found or apart(
        average(q, k, v, 3), expected, "with NaN in the keys behind the end, inf in the values"
    )


@law
def a_tile_without_keys_gives_nothing(average: Any) -> str:
    """Where no key is there the result is 0."""
    q, k, v, _ = _given((0.0, 0.0))
    return apart(average(q, k, v, 0), np.zeros((2, 3)), "with no key there")


def _softmax(s: Any) -> Any:
    w = np.exp(s - s.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def _hidden_by_score(q: Any, k: Any, v: Any, count: int) -> Any:
    return _softmax(np.where(np.arange(len(k)) < count, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)) @ v


def _replaced(q: Any, k: Any, v: Any, count: int) -> Any:
    there = np.arange(len(k))[:, None] < count
    return _hidden_by_score(q, np.where(there, k, 0), np.where(there, v, 0), count)


EXERCISES = (
    Exercise(
        (scores_pass_four_times, queries_and_keys_are_counted_apart, every_number_has_its_bytes),
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
        },
    ),
    Exercise(
        (every_tile_reads_all_keys, a_smaller_last_tile_reads_them_too, numbers_have_their_bytes),
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
        },
    ),
    Exercise(
        (
            keys_behind_the_end_weigh_nothing,
            nothing_comes_of_values_behind_the_end,
            a_tile_without_keys_gives_nothing,
        ),
        {
            "keys_behind_the_end_weigh_nothing": lambda q, k, v, count: (
                _softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v
            ),
            "nothing_comes_of_values_behind_the_end": _hidden_by_score,
            "a_tile_without_keys_gives_nothing": _replaced,
        },
    ),
)
