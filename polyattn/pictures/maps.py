"""Weights as maps: of one head, of all heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.arrays import Array
from polyattn.calls import answers, flag, integer, shown
from polyattn.pictures.canvas import HEAT, bar, drawing, frame, shape_of_cells, weights_of
from polyattn.pictures.words import inches, label_axis, spoken, tokens_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["heads", "weights"]

FEW = 12  # queries or keys up to which numbers fit into cells
WORDY = 24  # signs of what stands at an axis


@answers("polyattn.pictures.weights", "settings")
def weights(
    weights: Array,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    *,
    title: str | None = None,
    numbers: bool | None = None,
    rows: str = "query",
    columns: str = "key",
    colours: str = "weight",
) -> Figure:
    """A map of weights (L, S): queries downwards, keys to the right, the lighter the larger.

    queries, keys: the tokens along the axes. If only one of them is given and L = S, it labels both axes, as in
    self-attention; else the axis that it names. numbers: whether each cell says its weight; None: up to 12 x 12 it
    does. NaN is left blank with a cross. Tokens are shown as they are, whatever they hold, in at most 20 signs.
    rows, columns, colours: what stands at the axes and at the bar of colours, if it is not queries, keys and weights.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> figure = pictures.weights(np.eye(2), ["a", "b"])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['a', 'b']
    """
    who = "polyattn.pictures.weights"
    found = weights_of(who, weights, "(L, S)")
    high, wide = found.shape
    for name, said in {"title": title, "rows": rows, "columns": columns, "colours": colours}.items():
        if not isinstance(said, str) and (said, name) != (None, "title"):
            raise TypeError(f"{who}: expected {name} to be a text, got {shown(said)}; write {name}=str(...)")
    if high == wide and (queries is None) != (keys is None):
        queries = keys = keys if queries is None else queries
    down, across = (
        tokens_of(who, "queries", queries, high, "queries"),
        tokens_of(who, "keys", keys, wide, "keys"),
    )
    written = max(high, wide) <= FEW if numbers is None else flag(who, "numbers", numbers)
    cell = 0.42 if written else _cell(max(high, wide))
    size = (
        max(2.2, cell * wide) + 1.5 + inches(down),
        max(1.6, cell * high) + 0.8 + inches(across),
    )
    with drawing(who, size) as figure:
        axes = figure.subplots()
        image = _map(axes, found, down, across, *_span(found))
        axes.set_xlabel(spoken(columns, WORDY), parse_math=False)
        axes.set_ylabel(spoken(rows, WORDY), parse_math=False)
        if title is not None:
            axes.set_title(spoken(title, 60), parse_math=False, fontsize=11)
        if written:
            _write(axes, found, image)
        bar(figure, image, axes, spoken(colours, WORDY))
    return figure


@answers("polyattn.pictures.heads", "settings")
def heads(weights: Array, tokens: Sequence[str] | None = None, *, columns: int | None = None) -> Figure:
    """The weights (H, L, S) of all heads in a grid, on one scale.

    tokens: label the keys, and the queries too if L = S. columns: how many heads stand side by side; None: as many as
    make the grid nearly square, at most 6.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> figure = pictures.heads(np.full((3, 2, 2), 0.5), columns=3)
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['head 0', 'head 1', 'head 2']
    """
    who = "polyattn.pictures.heads"
    found = weights_of(who, weights, "(H, L, S)")
    count, rows, keys = found.shape
    across = tokens_of(who, "tokens", tokens, keys, "keys")
    down = across if rows == keys else None
    side = min(6, int(np.ceil(count**0.5))) if columns is None else integer(who, "columns", columns, 1)
    side = min(side, count)
    lines = -(-count // side)
    long = 1.2 + inches(across)
    panel = max(1.3, min(3.0, _cell(max(rows, keys)) * max(rows, keys) * 0.7))
    high = panel * min(1.0, max(0.25, rows / keys))
    wide = panel * min(1.0, max(0.25, keys / rows))
    with drawing(who, (side * (wide + 0.25) + long, lines * (high + 0.45) + long - 0.8)) as figure:
        grid = figure.subplots(lines, side, squeeze=False)
        low, most = _span(found)
        for i, axes in enumerate(grid.flat):
            if i >= count:
                axes.set_axis_off()
                continue
            image = _map(axes, found[i], down, across, low, most, small=True)
            axes.set_title(f"head {i}", fontsize=9)
            if i % side:
                axes.set(ylabel="", yticklabels=[])
            if i + side < count:
                axes.set(xlabel="", xticklabels=[])
        bar(figure, image, list(grid.flat))
    return figure


def _cell(count: int) -> float:
    """The inches of a cell of so many: a map of 2.6 to 9 inches."""
    return min(0.34, max(2.6, min(9.0, 0.16 * count)) / count)


def _span(found: NDArray[Any]) -> tuple[float, float]:
    """From 0, or from the least where that is less, to the largest: an average of one key alone is not nothing."""
    if np.isnan(found).all():
        return 0.0, 1.0
    low, most = min(0.0, float(np.nanmin(found))), float(np.nanmax(found))
    return low, most if most > low else low + 1.0


def _map(
    axes: Any,
    found: NDArray[Any],
    down: Sequence[str] | None,
    across: Sequence[str] | None,
    low: float,
    most: float,
    *,
    small: bool = False,
) -> Any:
    image = axes.imshow(
        found, cmap=HEAT, vmin=low, vmax=most, interpolation="nearest", aspect=shape_of_cells(*found.shape)
    )
    y, x = np.nonzero(np.isnan(found))
    if len(x):
        axes.plot(x, y, linestyle="", marker="x", color="#D55E00", markersize=5)
    axes.set(xlabel="key", ylabel="query")
    frame(axes)
    label_axis(axes.xaxis, across, found.shape[1], most=24 if small else 80)
    label_axis(axes.yaxis, down, found.shape[0], most=24 if small else 80)
    return image


def _write(axes: Any, found: NDArray[Any], image: Any) -> None:
    """The weight in every cell, dark on light and light on dark."""
    for (row, key), weight in np.ndenumerate(found):
        if np.isnan(weight):
            continue
        red, green, blue, _ = image.to_rgba(weight)
        light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18
        text = f"{weight:.2f}".replace("0.", ".") if abs(weight) < 0.995 else f"{weight:.3g}"
        text = "0" if weight == 0 else text
        axes.text(
            key, row, text, ha="center", va="center", fontsize=8, color="#000000" if light else "#ffffff"
        )
