"""The exercise of the chapter on rings about who holds which tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from classroom import Exercise, apart, law


@law
def every_token_has_one_device(zigzag: Any, tokens: int = 16, devices: int = 4) -> str:
    """All tokens are there once, and each device has as many as another."""
    found, each = zigzag(tokens, devices), [tokens // devices] * devices
    what = f"{tokens} tokens on {devices} device{'s' * (devices > 1)}"
    if list(map(len, found)) != each:
        return f"{what}: {list(map(len, found))} tokens each, not {each}"
    return apart(np.sort(np.ravel(found)) * 1.0, np.arange(tokens), f"{what}, sorted")


@law
def all_work_alike(zigzag: Any, tokens: int = 16, devices: int = 4) -> str:
    """Token t sees t + 1 keys: 136 pairs of 16 tokens are 34 for each of 4 devices."""
    found = [sum(int(token) + 1 for token in held) for held in zigzag(tokens, devices)]
    what = f"{tokens} tokens on {devices} devices see {found} keys"
    return apart(np.asarray(found, float), [tokens * (tokens + 1) / 2 / devices] * devices, what)


@law
def stretches_are_unbroken(zigzag: Any, tokens: int = 16, devices: int = 4) -> str:
    """A device has at most two stretches of neighbours."""
    for i, held in enumerate(zigzag(tokens, devices)):
        stretches = 1 + int(np.count_nonzero(np.diff(sorted(held)) != 1))
        if stretches > 2:
            return f"device {i} has the tokens {list(map(int, held))}: {stretches} stretches, not 2"
    return ""


@law
def tokens_rise(zigzag: Any, tokens: int = 16, devices: int = 4) -> str:
    """A device has its tokens in rising order."""
    for i, held in enumerate(zigzag(tokens, devices)):
        if sorted(held) != list(held):
            return f"device {i} has the tokens {list(map(int, held))}: they are not in rising order"
    return ""


@law
def texts_and_rings_may_be_of_any_size(zigzag: Any) -> str:
    """One device, three devices and two, with stretches of 5, 1 and 6 tokens, keep the same laws."""
    for sizes in ((10, 1), (6, 3), (24, 2)):
        for asked in (every_token_has_one_device, all_work_alike, stretches_are_unbroken, tokens_rise):
            if not (verdict := asked(zigzag, *sizes)):
                return str(verdict.sentence)
    return ""


def _second_half_again(tokens: int, devices: int) -> Any:
    stretches = np.split(np.arange(tokens), 2 * devices)
    return [[*stretches[i], *stretches[-i]] for i in range(devices)]


def _striped(tokens: int, devices: int) -> Any:
    return [list(range(i, tokens, devices)) for i in range(devices)]


def _back_and_forth(tokens: int, devices: int) -> Any:
    rows = np.arange(tokens).reshape(-1, devices)
    rows[1::2] = rows[1::2, ::-1]
    return rows.T.tolist()


def _later_first(tokens: int, devices: int) -> Any:
    stretches = np.split(np.arange(tokens), 2 * devices)
    return [[*stretches[-1 - i], *stretches[i]] for i in range(devices)]


def _in_twos(tokens: int, devices: int) -> Any:
    return [[2 * i, 2 * i + 1, tokens - 2 * i - 2, tokens - 2 * i - 1] for i in range(devices)]


ZIGZAG = Exercise(
    (
        every_token_has_one_device,
        all_work_alike,
        stretches_are_unbroken,
        tokens_rise,
        texts_and_rings_may_be_of_any_size,
    ),
    {
        "every_token_has_one_device": _second_half_again,
        "all_work_alike": _striped,
        "stretches_are_unbroken": _back_and_forth,
        "tokens_rise": _later_first,
        "texts_and_rings_may_be_of_any_size": _in_twos,
    },
)
