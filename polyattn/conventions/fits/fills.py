"""Hidden scores that hold a number too small to hide them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.numbers import figure, pick, polish, solve
from polyattn.conventions.fits.probe import Fit
from polyattn.conventions.fits.ranges import masks_as_stated
from polyattn.conventions.settings import CONTRACT
from polyattn.conventions.visible import allowed_keys
from polyattn.truth.spec import Floats

__all__ = ["fills"]

GRID = np.array([-40.0, -30.0, -22.0, -16.0, -12.0, -9.0, -6.5, -4.5, -3.0, -1.5, 0.0, 2.0, 5.0])
CONSTANTS = (0.0, -1.0, -2.0, -3.0, -5.0, -8.0, -9.0, -10.0, -15.0, -16.0, -20.0, -30.0, 1.0)
FEW = 3  # rows that may stay unexplained: those that see nothing, which programs fill as they like


def fills(evidence: Evidence) -> Iterator[Fit]:
    """The number that hidden scores hold, or that was added to them."""
    call = evidence.call
    if not masks_as_stated(evidence) or call.fill is not None:
        return
    if allowed_keys(replace(call, bias=None), CONTRACT, evidence.rows).all():
        return
    for what, change in _ways(call):
        yield from _of(evidence, what, change)


def _ways(call: Call) -> Iterator[tuple[str, Callable[[Call, float], Call]]]:
    """The places of the number: in the score or added to it, of the mask or of causality."""
    yield "hidden scores hold {} instead of -inf", lambda c, x: replace(c, fill=x)
    which = [
        name
        for name in ("mask", "causality")
        if (call.mask is not None if name == "mask" else call.is_causal)
    ]
    for name in which:
        yield f"{{}} added to the scores that {name} hides, instead of -inf", _added_by(name)
    if len(which) > 1:
        yield (
            "{} added to the scores that mask and causality hide, instead of -inf",
            lambda c, x: _added_by("causality")(_added_by("mask")(c, x), x),
        )


def _added_by(name: str) -> Callable[[Call, float], Call]:
    def change(call: Call, x: float) -> Call:
        if name == "mask":
            hidden: Floats = ~(np.ones((1, 1, 1, 1), bool) if call.mask is None else call.mask)
            other = replace(call, mask=None)
        else:
            at, key = np.arange(call.shape[2])[:, None] + call.offset, np.arange(call.shape[3])[None, :]
            hidden, other = (key > at)[None, None], replace(call, is_causal=False)
        shift = np.where(hidden, x, 0.0) + (0.0 if call.shift is None else call.shift)
        return replace(other, shift=shift)

    return change


def _of(evidence: Evidence, what: str, change: Callable[[Call, float], Call]) -> Iterator[Fit]:
    call, probe, whole = evidence.call, evidence.probe, evidence.whole
    found = solve(lambda x: probe.residual(change(probe.call, float(x[0]))).reshape(1, -1), GRID)
    if not found.found[0] or not found.doubts[0] < 1.0:
        return
    x, doubt = polish(lambda y: whole.residual(change(whole.call, float(y))), float(found.values[0]))
    if not doubt < 0.5:
        x, doubt = float(found.values[0]), float(found.doubts[0])
    named = pick(x, max(doubt, 1e-6), ((c, "") for c in CONSTANTS))
    for value in ([named[0]] if named else []) + [x]:
        said = figure(value, 0.0 if named else doubt) + ", which leaks,"
        fit = list(evidence.fit("hidden", what.format(said), change(call, value), but=FEW))
        if fit:
            yield from fit
            return
