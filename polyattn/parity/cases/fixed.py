"""The set of cases, to which each file of this folder adds its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn.parity.case import Case, Draw, Sample
from polyattn.truth.spec import Floats

__all__ = ["at", "case", "cases"]

_CASES: dict[str, Case] = {}


def case(*rules: int) -> Callable[[Callable[[Draw], Sample]], Callable[[Draw], Sample]]:
    """Adds a drawing function to the set, named after it, with the rules of the contract that it covers."""

    def add(draw: Callable[[Draw], Sample]) -> Callable[[Draw], Sample]:
        name = draw.__name__.strip("_").replace("_", " ")
        _CASES[name] = Case(name, tuple(f"rule-{rule}" for rule in rules), draw)
        return draw

    return add


def cases() -> tuple[Case, ...]:
    """All fixed cases, in order."""
    return tuple(_CASES.values())


def at(rows: int, keys: int, offset: Any = 0) -> tuple[Floats, Floats]:
    """Positions of queries (B|1, 1, L, 1) and keys (1, 1, 1, S)."""
    offset = np.reshape(offset, (-1, 1, 1, 1))
    return np.arange(rows)[:, None] + offset, np.arange(keys)[None, None, None]
