"""Arrays that are one on one side and several on the other: queries, keys and values packed, or gate and up."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from polyattn.parity.components.pairing import telling
from polyattn.truth.spec import Floats

__all__ = ["Piece", "pieces"]


class Piece(NamedTuple):
    """An array of one side that lies in one of the other; sentence: how, where it is not in one run, else ""."""

    name: str
    port_name: str
    sentence: str


def pieces(reference: Mapping[str, Floats], port: Mapping[str, Floats]) -> list[Piece]:
    """What of the reference is a part of an array of the port, and the reverse, row by row or column by column."""
    found = []
    for part_of_reference in (True, False):
        parts, wholes = (reference, port) if part_of_reference else (port, reference)
        for whole_name, whole in wholes.items():
            for name, part in parts.items():
                said = _lies(part, whole)
                if said is None:
                    continue
                pair = (name, whole_name) if part_of_reference else (whole_name, name)
                sentence = f"{whole_name} holds {name} {said}" if said else ""
                found.append(Piece(*pair, sentence))
    return found


def _lies(part: Floats, whole: Floats) -> str | None:
    """How a smaller array lies in a larger one: "" in one run, words in several, None not at all."""
    if part.ndim != whole.ndim or part.ndim not in (1, 2) or part.size >= whole.size or not telling(part):
        return None
    for a, said in ((part, "rows"), (part.T, "columns")):
        for b in (whole, whole.T):
            if a.shape[1:] == b.shape[1:] and len(a) < len(b) and (at := _places(a, b)) is not None:
                return _told(at, said)
    return None


def _places(a: Floats, b: Floats) -> Floats | None:
    """The rows of b that are those of a, in the order of a."""
    keys = {row.tobytes(): i for i, row in enumerate(_rows(b))}
    if len(keys) < len(b):
        return None  # rows that are equal tell nothing
    found = []
    for row in _rows(a):
        at = keys.get(row.tobytes())
        if at is None:
            return None
        found.append(at)
    return np.array(found)


def _rows(x: Floats) -> Floats:
    return np.ascontiguousarray(x.astype(np.float64).reshape(len(x), -1)) + 0.0


def _told(at: Floats, what: str) -> str:
    steps = np.diff(at)
    if (steps == 1).all():
        return ""
    breaks = np.flatnonzero(steps != 1) + 1
    runs = np.split(at, breaks)
    size = len(runs[0])
    if all(len(run) == size for run in runs) and size > 1:
        gaps = {int(b[0] - a[0]) for a, b in pairwise(runs)}
        every = f", one every {gaps.pop()}" if len(gaps) == 1 else ""
        return f"in blocks of {size} {what}{every}: packed head by head, not side by side"
    if size == 1 and len(set(steps.tolist())) == 1:
        return f"in every {int(steps[0])}th of its {what}: packed in turn, not side by side"
    return f"with its {what} in another order, in {len(runs)} runs"
