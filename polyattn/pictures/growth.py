"""Memory or time over length, of several ways to compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.arrays import is_array
from polyattn.calls import answers, shown
from polyattn.pictures.canvas import INK, LINES, beside, drawing, frame, numbers_of
from polyattn.pictures.words import spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["over_length"]

_WHO = "polyattn.pictures.over_length"


@answers(_WHO, "settings")
def over_length(
    lengths: Any,
    series: Mapping[str, Any],
    *,
    unit: str,
    title: str | None = None,
    label: str = "length",
) -> Figure:
    """What several ways cost over the length, both axes logarithmic, so that L^n is a line of slope n.

    lengths: numbers above 0, rising; series: name -> as many numbers above 0, None or NaN where nothing was measured,
    as where memory did not suffice. unit: of the numbers, as "seconds" or "bytes". label: what a length is, under the
    axis. Every line has a dash and a marker of its own, and its name at its end. At most seven series.

    >>> from polyattn import pictures
    >>> figure = pictures.over_length([1, 2, 4], {"L²": [1, 4, 16], "L": [1, 2, None]}, unit="bytes")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['L', 'L²']
    """
    xs = _row("lengths", lengths)
    if np.isnan(xs).any() or (np.diff(xs) <= 0).any():
        raise ValueError(f"{_WHO}: expected lengths that rise, got {shown(lengths)}; sort them")
    if not isinstance(series, Mapping) or not all(isinstance(name, str) for name in series):
        raise TypeError(
            f"{_WHO}: expected series to map names to numbers, got {shown(series)}; write {{'blockwise': numbers}}"
        )
    if not 0 < len(series) <= len(LINES):
        raise ValueError(
            f"{_WHO}: expected 1 to {len(LINES)} series, which can be told apart, got {len(series)}; draw two figures"
        )
    for name, text in (("unit", unit), ("label", label), *((("title", title),) if title is not None else ())):
        if not isinstance(text, str):
            raise TypeError(
                f"{_WHO}: expected {name} to be a text, got {shown(text)}; write {name}='seconds'"
            )
    lines = {name: _row(f"series[{name!r}]", given, len(xs)) for name, given in series.items()}
    with drawing(_WHO, (6.4, max(3.6, 0.25 * len(lines) + 1.4))) as figure:
        axes = figure.subplots()
        ends = []
        for (name, ys), (colour, dash, marker) in zip(lines.items(), LINES, strict=False):
            axes.plot(xs, ys, color=colour, linestyle=dash, marker=marker, markersize=5, linewidth=1.6)
            there = np.flatnonzero(~np.isnan(ys))
            if len(there) == 0:
                raise ValueError(
                    f"{_WHO}: expected a number in series[{name!r}], got none; leave that name out"
                )
            ends.append((float(xs[there[-1]]), float(ys[there[-1]]), spoken(name, 30), colour))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(xs[:: -(-len(xs) // 9)], [f"{x:g}" for x in xs[:: -(-len(xs) // 9)]])
        axes.minorticks_off()
        axes.grid(color=INK, alpha=0.22, linewidth=0.6)
        frame(axes, "left", "bottom")
        axes.set_xlabel(spoken(label, 60), parse_math=False)
        axes.set_ylabel(spoken(unit, 60), parse_math=False)
        if title is not None:
            axes.set_title(spoken(title, 70), parse_math=False, fontsize=11)
        beside(axes, ends, log=True)
    return figure


def _row(name: str, given: Any, count: int | None = None) -> NDArray[np.float64]:
    if is_array(given):
        found = numbers_of(_WHO, name, given, "(n,)").astype(np.float64)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        try:
            found = np.array([np.nan if x is None else float(x) for x in given])
        except (TypeError, ValueError):
            raise TypeError(
                f"{_WHO}: expected {name} to hold numbers, got {shown(given)}; write floats"
            ) from None
    else:
        raise TypeError(
            f"{_WHO}: expected {name} to be a list or an array of numbers, got {shown(given)}; list(...)"
        )
    if len(found) == 0 or (count is not None and len(found) != count):
        raise ValueError(
            f"{_WHO}: expected {name} to have {count or 'some'} numbers, one for each length, got {len(found)}; write None "
            "where nothing was measured"
        )
    if (found <= 0).any() or np.isinf(found).any():
        raise ValueError(
            f"{_WHO}: expected {name} above 0 and finite, as its axis is logarithmic, got {shown(given)}; write None where "
            "nothing was measured"
        )
    return found
