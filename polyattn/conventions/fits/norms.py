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


def norms(evidence: Evidence) -> Iterator[Fit]:
    """Queries, keys or both divided by their root mean square, and a scale."""
    call, probe, whole = evidence.call, evidence.raw, evidence.whole
    if evidence.settings.scale != "as stated" or call.q.shape[3] < 2:
        return
    ways = {False: "root mean square", True: "standard deviation, their mean taken off"}
    for names, what in ((("q", "k"), "query and key"), (("q",), "query"), (("k",), "key")):
        for centred, how in list(ways.items())[: len(names)]:
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
            beside = "" if value == 1.0 else f", scale x {figure(value, doubt)}"
            sentence = f"{what} divided by their {how}, which nobody asked for{beside}"
            changed = _normed(call, names, centred)
            fit = list(evidence.fit("norm", sentence, replace(changed, scale=call.scale * value)))
            if fit:
                yield from fit
                return


def _normed(call: Call, names: tuple[str, ...], centred: bool) -> Call:
    def normed(x: Floats) -> Floats:
        x = x - x.mean(-1, keepdims=True) if centred else x
        size = np.sqrt(np.mean(x**2, -1, keepdims=True))
        return x / np.where(size == 0, 1.0, size)

    moved: dict[str, Any] = {name: normed(getattr(call, name)) for name in names}
    return replace(call, **moved)
