"""The constant of a soft cap, asked for or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.numbers import figure, pick, polish, solve
from polyattn.conventions.fits.probe import Fit

__all__ = ["caps"]

GRID = np.geomspace(0.5, 500, 16)
CONSTANTS = (50.0, 30.0, 20.0, 15.0, 10.0, 100.0, 25.0, 5.0, 8.0, 1.0, 2.0)  # that models have


def caps(evidence: Evidence) -> Iterator[Fit]:
    """The constant that the scores were capped at."""
    call, probe, whole = evidence.call, evidence.probe, evidence.whole
    if evidence.settings.softcap == "dropped":
        return
    found = solve(lambda x: probe.residual(replace(probe.call, softcap=float(x[0]))).reshape(1, -1), GRID)
    if not found.found[0] or found.values[0] <= 0:
        return
    x, doubt = polish(lambda y: whole.residual(replace(whole.call, softcap=float(y))), float(found.values[0]))
    if not doubt < 0.05 * x:
        return
    named = pick(x, doubt, ((c, "") for c in CONSTANTS))
    read = [named[0]] if named else []
    for value in (*read, x):
        said = figure(value, 0.0 if read else doubt)
        words = (
            f"soft cap {said}, which nobody asked for"
            if call.softcap is None
            else f"soft cap {said} instead of {call.softcap:g}"
        )
        fit = list(evidence.fit("softcap", words, replace(call, softcap=value)))
        if fit:
            yield from fit
            return
