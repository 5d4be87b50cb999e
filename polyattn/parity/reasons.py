"""Why an eta is infinite, in words: no number says it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyattn.truth.definition import Judged
from polyattn.truth.spec import Floats, Spec

__all__ = ["Reason", "blind_rows", "why_infinite"]


class Reason(NamedTuple):
    """A word for a cell of a table, and a sentence for whoever asks."""

    word: str
    sentence: str


def blind_rows(spec: Spec) -> Floats:
    """The rows that see no key, (B, Hq, L)."""
    allowed = np.broadcast_to(spec.allowed, spec.shape)
    if spec.bias is not None:
        allowed = allowed & (spec.bias != -np.inf)
    return np.asarray(~allowed.any(-1))


def why_infinite(computed: Floats, judged: Judged, blind: Floats | None = None) -> Reason:
    """What is the matter with a result whose eta is infinite. blind: the rows, its first axes, that see no key.

    >>> truth = Judged(np.zeros(3, np.longdouble), np.zeros(3, np.longdouble))
    >>> print(why_infinite(np.array([0.0, np.nan, 1.0]), truth).sentence)
    NaN at 1 of 3 places, first at (1,), where the truth is 0
    >>> print(why_infinite(np.array([0.0, 0.0, 1.0]), truth).sentence)
    1 at (2,), where the truth is 0, exactly
    """
    value = judged.value
    computed = np.asarray(computed, np.longdouble)
    if computed.shape != value.shape:
        return Reason("shape", f"shape {computed.shape}, where the truth has {value.shape}")
    if (nan := np.isnan(computed)).any():
        place = _first(nan)
        return Reason(
            "NaN",
            f"NaN at {int(nan.sum())} of {nan.size} places, first at {place}, where the truth is {value[place]:.3g}"
            + _seeing(place, blind),
        )
    exact = ((judged.condition == 0) & (np.asarray(judged.floor) == 0)) | ~np.isfinite(value)
    wrong = (computed != value) & (exact | np.isinf(computed))
    if not wrong.any():  # a finite error over a unit that underflows
        return Reason("far off", "an error beyond every multiple of what rounding explains")
    place = _first(wrong)
    return Reason(
        "inf" if np.isinf(computed[place]) else f"not {value[place]:.2g}",
        f"{computed[place]:.3g} at {place}, where the truth is {value[place]:.3g}"
        + ("" if np.isinf(computed[place]) else ", exactly")
        + _seeing(place, blind),
    )


def _seeing(place: tuple[int, ...], blind: Floats | None) -> str:
    return " (a row that sees no key)" if blind is not None and blind[place[: blind.ndim]] else ""


def _first(places: Floats) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(places)), places.shape))
