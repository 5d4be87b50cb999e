"""Why the patches of an image are wrong: in which order the numbers of each are read, and in which order they come."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np

from polyattn.parity.components.trial import Candidate, Case
from polyattn.truth.spec import Floats

__all__ = ["tiers"]

_NAMES = ("channel", "row", "column")


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """One thing at a time, then two orders at once."""
    weight, bias = case.facts.arrays.get("patches.weight"), case.facts.arrays.get("patches.bias")
    if weight is None or weight.ndim != 4 or case.x.ndim != 4 or case.x.dtype.kind != "f":
        return
    w = weight.astype(np.float64)
    b = np.zeros(len(w)) if bias is None else bias.astype(np.float64)
    cut = _cut(case.x, w)
    if cut is None or not case.reproduces(_map(cut, w, b, case.expected)):
        return
    yield _alone(case, cut, w, b)
    yield _orders(case, cut, w, b)


def _cut(x: Floats, w: Floats) -> Floats | None:
    """The patches of images (B, C, H, W) as (B, rows, columns, C, height, width); None where they do not cover them."""
    _, channels, height, width = w.shape
    if x.shape[1] != channels or x.shape[2] % height or x.shape[3] % width:
        return None
    parts = x.reshape(len(x), channels, x.shape[2] // height, height, x.shape[3] // width, width)
    return parts.transpose(0, 2, 4, 1, 3, 5)


def _map(cut: Floats, w: Floats, b: Floats, like: Floats) -> Floats:
    """Each patch through the weight, its numbers as they lie; as rows (B, N, E), or as a grid (B, E, rows, columns)."""
    y = cut.reshape(*cut.shape[:3], -1) @ w.reshape(len(w), -1).T + b
    if like.ndim == 3:
        return y.reshape(len(y), -1, y.shape[-1])
    return y.transpose(0, 3, 1, 2)


def _alone(case: Case, cut: Floats, w: Floats, b: Floats) -> Iterator[Candidate]:
    if b.any():
        yield _given("bias of the patches missing", _map(cut, w, np.zeros_like(b), case.expected))
    yield _given("channels of the image in reverse order", _map(cut[:, :, :, ::-1], w, b, case.expected))
    said = "weight turned by 180 degrees: a convolution, not a correlation"
    yield _given(said, _map(cut[..., ::-1, ::-1], w, b, case.expected))
    yield _by_columns(case, cut, w, b)
    yield from (candidate for _, candidate in _inner(case, cut, w, b))


def _by_columns(case: Case, cut: Floats, w: Floats, b: Floats, beside: str = "") -> Candidate:
    said = f"patches in the order of columns, not of rows{beside}"
    return _given(said, _map(cut.swapaxes(1, 2), w, b, case.expected))


def _inner(case: Case, cut: Floats, w: Floats, b: Floats) -> Iterator[tuple[Floats, Candidate]]:
    """The numbers of a patch read in every other order."""
    for axes in permutations(range(3)):
        if axes != (0, 1, 2):
            turned = cut.transpose(0, 1, 2, *(3 + a for a in axes))
            order = ", ".join(_NAMES[a] for a in axes)
            said = f"the numbers of a patch in the order {order}, not {', '.join(_NAMES)}"
            yield turned, _given(said, _map(turned, w, b, case.expected))


def _orders(case: Case, cut: Floats, w: Floats, b: Floats) -> Iterator[Candidate]:
    """Patches and their numbers both in another order."""
    for turned, candidate in _inner(case, cut, w, b):
        yield _by_columns(case, turned, w, b, f", and {candidate.sentence}")


def _given(said: str, out: Floats) -> Candidate:
    return Candidate(said, lambda case: out, rowwise=False)
