"""The reference's inputs in the place of a port's own: which array of one call is which of another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyattn.parity.models.measuring import aligned, row_rms
from polyattn.parity.models.trees import leaves, mapped, native, snapshot, to_numpy
from polyattn.truth.spec import Floats

__all__ = ["fed"]


def fed(
    args: Any, kwargs: Any, inputs: Sequence[Floats], paths: Sequence[str]
) -> tuple[Any, Any, tuple[str, ...]] | None:
    """The arguments of a port's component with the reference's arrays in them, and the paths of those it kept.

    By order where every array fits; else the first is the first, and others go by their keyword, then by being alike, then
    where nothing else of the other side fits. A single array may be longer or shorter along its leading axes. None where the
    first does not fit otherwise: then nobody knows what the reference's input would be here.
    """
    own = [(path.partition(".")[2], to_numpy(x)) for path, x in leaves((args, kwargs))]
    if not own and not inputs:
        return snapshot(args), snapshot(kwargs), ()
    if not own or not inputs:
        return None
    if len(own) == len(inputs) == 1 and _longer(inputs[0], own[0][1]):
        new = mapped(lambda _, x: native(inputs[0], x), (snapshot(args), snapshot(kwargs)))
        return *new, ()
    if not _fits(inputs[0], own[0][1]):
        return None
    if len(own) == len(inputs) and all(_fits(x, y) for x, (_, y) in zip(inputs, own, strict=True)):
        chosen = {path: x for x, (path, _) in zip(inputs, own, strict=True)}
    else:
        chosen = _chosen(own, inputs, paths)

    def put(path: str, x: Any) -> Any:
        path = path.partition(".")[2]
        return native(chosen[path].reshape(tuple(x.shape)), x) if path in chosen else x

    new = mapped(put, (snapshot(args), snapshot(kwargs)))
    return *new, tuple(path for path, _ in own if path not in chosen)


def _chosen(
    own: Sequence[tuple[str, Floats]], inputs: Sequence[Floats], paths: Sequence[str]
) -> dict[str, Floats]:
    found = {own[0][0]: inputs[0]}
    free = dict(zip(paths[1:], inputs[1:], strict=False))
    for path, x in own[1:]:
        word = path.rpartition(".")[2]
        same = [p for p in free if p == path or (p.rpartition(".")[2] == word and not word.isdecimal())]
        near = [p for p in free if _near(free[p], x)]
        for p in (*same, *near):
            if _fits(free[p], x):
                found[path] = free.pop(p)
                break
    return found | _left(own, free, found)


def _left(
    own: Sequence[tuple[str, Floats]], free: dict[str, Floats], found: dict[str, Floats]
) -> dict[str, Floats]:
    """What is left on both sides, where each fits the other and nothing else."""
    rest = {path: x for path, x in own if path not in found}
    pairs = [(path, p) for path, x in rest.items() for p in free if _fits(free[p], x)]
    alone = [
        (path, p)
        for path, p in pairs
        if sum(path == a for a, _ in pairs) == sum(p == b for _, b in pairs) == 1
    ]
    return {path: free[p] for path, p in alone}


def _longer(x: Floats, y: Floats) -> bool:
    """Whether one is the other with more or fewer rows."""
    same = x.ndim == y.ndim > 1 and x.shape[-1] == y.shape[-1] and x.dtype.kind == y.dtype.kind == "f"
    return same and x.shape != y.shape and aligned(x, y) is None


def _fits(x: Floats, y: Floats) -> bool:
    """Whether one can stand for the other: shape, and kind of numbers (a mask of bools is no mask of floats)."""
    kinds = {x.dtype.kind.replace("u", "i"), y.dtype.kind.replace("u", "i")}
    return len(kinds) == 1 and aligned(x, y) is not None


def _near(x: Floats, y: Floats) -> bool:
    """Alike to a tenth."""
    if not _fits(x, y):
        return False
    with np.errstate(all="ignore"):
        apart = row_rms(x.reshape(y.shape).astype(np.float64) - y)
    return float(np.mean(apart)) <= 0.1 * float(np.mean(row_rms(y)))
