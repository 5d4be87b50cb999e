"""Causes that no kind of component is needed for: skipped, scaled, rounded, transposed, NaN."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import permutations

import numpy as np

from polyattn.parity.components.trial import Candidate, Case, factor_of
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["another_shape", "tiers"]


def another_shape(expected: Floats, seen: Floats, near: float) -> str | None:
    """How seen is expected with its axes in another order; None where it is not. near: the largest noise."""
    for axes in permutations(range(expected.ndim)):
        if list(axes) == sorted(axes):
            continue
        turned = expected.transpose(axes)
        room = ACCEPTANCE * near + 8 * UNIT_ROUNDOFF["float32"] * np.abs(turned)
        if turned.shape == seen.shape and (np.abs(turned - seen) <= room).all():
            return f"axes in the order {axes} of those of the reference: {seen.shape}, not {expected.shape}"
    room = ACCEPTANCE * near + 8 * UNIT_ROUNDOFF["float32"] * np.abs(expected)
    if expected.size == seen.size and (np.abs(expected.ravel() - seen.ravel()) <= room.ravel()).all():
        return f"the same numbers in shape {seen.shape}, not {expected.shape}"
    return None


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    yield _plain(case)
    yield _fitted(case)


def _plain(case: Case) -> Iterator[Candidate]:
    yield Candidate("output is 0 throughout", lambda case: np.zeros_like(case.expected))
    for i, x in enumerate(case.inputs):
        if x.shape == case.expected.shape and x.dtype.kind == "f":
            which = "the input" if i == 0 else f"input {i}"
            yield Candidate(f"skipped: {which} comes out as it is", lambda case, i=i: case.inputs[i])  # type: ignore[misc]
    yield Candidate("output negated", lambda case: -case.expected)
    shape = case.expected.shape
    for a in range(len(shape)):
        for b in range(a + 1, len(shape)):
            if shape[a] == shape[b] > 1:
                said = f"axes {a} and {b} of the output exchanged"
                yield Candidate(said, lambda case, a=a, b=b: case.expected.swapaxes(a, b), rowwise=False)  # type: ignore[misc]
    for axis in range(len(shape) - 1):
        if shape[axis] > 1:
            said = f"output reversed along axis {axis}"
            yield Candidate(said, lambda case, axis=axis: np.flip(case.expected, axis), rowwise=False)  # type: ignore[misc]
            for step in (1, -1):
                said = f"output moved by {step} along axis {axis}, round the end"
                yield Candidate(said, partial(_moved, step=step, axis=axis), rowwise=False)


def _moved(case: Case, step: int, axis: int) -> Floats:
    return np.roll(case.expected, step, axis)


def _fitted(case: Case) -> Iterator[Candidate]:
    if (factor := factor_of(case)) is not None:
        yield Candidate(f"output multiplied by {factor:.6g}", lambda case: factor * case.expected)
