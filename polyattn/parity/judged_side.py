"""What the sides of a comparison gave, beside the truth and beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from polyattn.parity.reasons import blind_rows, why_infinite
from polyattn.parity.sides import Side, Worst
from polyattn.truth.judged import Judged
from polyattn.truth.measure import ACCEPTANCE, eta, unit_of
from polyattn.truth.spec import Floats, Spec

__all__ = ["allow_roundings", "apart", "judge_side", "worst_of"]


def judge_side(side: Side, spec: Spec, judged: Mapping[str, Judged], dtype: str) -> None:
    """Writes the eta of everything a side gave, and why one is infinite."""
    for quantity, value in side.values.items():
        side.etas[quantity] = eta(value, judged[quantity], dtype)
        if math.isinf(side.etas[quantity]):
            blind = blind_rows(spec) if quantity == "out" else None
            side.reasons[quantity] = why_infinite(value, judged[quantity], blind)


def allow_roundings(side: Side, judged: Mapping[str, Judged], dtype: str) -> None:
    """A side whose output is right but for scores, or query and key, that it rounds to half precision, is judged by that.

    Eager models round so. The condition follows an error of one rounding in every score to every result, so the unit of
    such a program is u * condition, for its gradients as for its output. What that does not explain stays wrong.
    """
    if side.diagnosis is None or not side.diagnosis.agrees or side.reasons:
        return
    finding = getattr(side.diagnosis, "rounded", None) or next(iter(side.diagnosis.findings), None)
    wide = {q: eta(x, judged[q]._replace(rounded=None), dtype) for q, x in side.values.items()}
    if finding is not None and wide["out"] <= ACCEPTANCE:
        side.etas, side.allowed = wide, tuple(finding.sentences)


def apart(sides: Sequence[Side], judged: Mapping[str, Judged], dtype: str) -> dict[str, float]:
    """The difference of two sides in units of rounding, for whatever both gave."""
    f, g = (side.values for side in sides)
    return {
        q: eta(f[q], _unit(sides, judged[q])._replace(value=g[q].astype(np.longdouble)), dtype)
        for q in f
        if q in g and f[q].shape == g[q].shape
    }


def worst_of(
    common: Sequence[str], sides: Sequence[Side], judged: Mapping[str, Judged], dtype: str
) -> Worst | None:
    """The element on which two sides differ most."""
    best: Worst | None = None
    largest = -1.0
    for quantity in common:
        a, b = (side.values[quantity] for side in sides)
        value = judged[quantity].value
        if a.shape != value.shape:
            continue
        ratio = _ratio(a, b, unit_of(_unit(sides, judged[quantity]), dtype))
        if ratio.size and float(ratio.max()) > largest:
            largest = float(ratio.max())
            place = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
            best = Worst(quantity, place, *(float(np.asarray(x)[place]) for x in (a, b, value)))
    return best


def _unit(sides: Sequence[Side], judged: Judged) -> Judged:
    return judged._replace(rounded=None) if any(side.allowed for side in sides) else judged


def _ratio(a: Floats, b: Floats, unit: Floats) -> Floats:
    unit = np.maximum(unit.astype(np.float64), np.finfo(np.float64).tiny)
    with np.errstate(all="ignore"):
        ratio = np.where(a == b, 0.0, np.abs(a - b) / unit)
    return np.where(np.isnan(ratio), np.inf, ratio)
