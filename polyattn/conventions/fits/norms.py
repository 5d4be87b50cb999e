"""Queries and keys normalised before their product, which nobody asked for, with whatever scale comes after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.numbers import figure, pick, polish, solve
from polyattn.conventions.fits.probe import Fit
from polyattn.truth.spec import Floats

__all__ = ["norms"]

GRID = np.geomspace(0.05, 50, 12)
#: What is normed, and by what: the mean is kept, or taken off.
WAYS = (
    ("qk", "query and key", ("their root mean square", "their standard deviation, their mean taken off")),
    ("q", "query", ("its root mean square",)),
    ("k", "key", ("its root mean square",)),
)


def norms(evidence: Evidence) -> Iterator[Fit]:
    """Queries, keys or both divided by their root mean square, and a scale."""
    call, probe, whole = evidence.call, evidence.raw, evidence.whole
    if evidence.settings.scale != "as stated" or call.q.shape[3] < 2:
        return
    for names, what, ways in WAYS:
        for centred, how in zip((False, True), ways, strict=False):
            cut, full = (_normed(c, names, centred) for c in (probe.call, call))

            def residual(x: Floats, cut: Call = cut) -> Floats:
                return probe.residual(replace(cut, scale=cut.scale * x[0])).reshape(1, -1)

            def everywhere(x: float, full: Call = full) -> Floats:
                return whole.residual(replace(full, scale=full.scale * x))

            found = solve(residual, GRID)
            if not found.found[0]:
                continue
            x, doubt = polish(everywhere, float(found.values[0]))
            width = math.sqrt(call.q.shape[3])
            lengths = width ** len(names)
            named = pick(
                x, doubt, [(1.0, ""), (1 / lengths, "length alone"), (width / lengths, "length alone")]
            )
            value = named[0] if named else x
            # The epsilon of a norm may move the number a little from 1; read as 1, there is nothing to say.
            factor = figure(value, doubt)
            beside = "" if factor == "1" else f", scale x {factor}"
            sentence = f"{what} divided by {how}, which nobody asked for{beside}"
            changed = _normed(call, names, centred)
            fit = list(evidence.fit("norm", sentence, replace(changed, scale=call.scale * value)))
            if fit:
                yield from fit
                return


def _normed(call: Call, names: str, centred: bool) -> Call:
    def normed(x: Floats) -> Floats:
        x = x - x.mean(-1, keepdims=True) if centred else x
        size = np.sqrt(np.mean(x**2, -1, keepdims=True))
        return x / np.where(size == 0, 1.0, size)

    moved: dict[str, Any] = {name: normed(getattr(call, name)) for name in names}
    return replace(call, **moved)
