"""What all pictures share: colours, paper, how arrays and tokens come in, labels that keep clear of one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polyattn.calls import array, is_traced, shown
from polyattn.draw import INK, TILE, drawing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BLUE",
    "HEAT",
    "INK",
    "LINES",
    "TILE",
    "VERMILLION",
    "bar",
    "beside",
    "drawing",
    "frame",
    "lone",
    "numbers_of",
    "shape_of_cells",
    "spread",
    "weights_of",
]

#: Of Okabe and Ito (2008), those that are in sight on white and on black; a line has a dash and a marker of its own too.
BLUE, VERMILLION = "#0072B2", "#D55E00"
LINES = (
    (BLUE, "-", "o"),
    (VERMILLION, "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    (INK, (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#E69F00", (0, (8, 2)), "P"),
    ("#56B4E9", (0, (2, 1)), "X"),
)
HEAT = "viridis"  # perceptually uniform: its lightness alone tells more from less


def numbers_of(who: str, name: str, value: Any, *shapes: str) -> NDArray[Any]:
    """The values of an array of any library as float64 of NumPy, or as bool; shapes: what it may be, as "(L, S)"."""
    backend = array(who, name, value, f"of shape {' or '.join(shapes)}" if shapes else "")
    if is_traced(value):
        raise TypeError(
            f"{who}: expected {name} with values that can be read, got {shown(value)}; draw outside of what is compiled"
        )
    if shapes and value.ndim not in [axes_of(shape) for shape in shapes]:
        advice = "index the batch item" if value.ndim > max(map(axes_of, shapes)) else "add the axes"
        if shapes == ("(L, S)",) and value.ndim > 2:
            advice = f"index batch item and head, as {name}[{', '.join('0' * (value.ndim - 2))}], or draw all with heads"
        raise ValueError(
            f"{who}: expected {name} of shape {' or '.join(shapes)}, got {tuple(value.shape)}; {advice}"
        )
    if shapes and 0 in value.shape:
        raise ValueError(
            f"{who}: expected {name} with something to draw, got an array of shape {tuple(value.shape)}; leave the call out"
        )
    read = backend.to_numpy(value)
    if backend.isdtype(value.dtype, "bool"):
        return np.asarray(read, bool)
    if backend.compute_dtype(value.dtype) is None and not backend.isdtype(value.dtype, "integral"):
        raise TypeError(f"{who}: expected {name} of real numbers, got {value.dtype}; draw its absolute value")
    return np.asarray(read).astype(np.float64)


def axes_of(shape: str) -> int:
    """How many axes "(H, L, S)" has."""
    return len([letter for letter in shape.strip("()").split(",") if letter.strip()])


def weights_of(who: str, value: Any, *shapes: str, name: str = "weights") -> NDArray[Any]:
    """Numbers, none of them infinite; NaN stays, as it is what one looks for."""
    found = numbers_of(who, name, value, *shapes).astype(np.float64)
    if np.isinf(found).any():
        raise ValueError(
            f"{who}: expected weights, which are finite, got {int(np.isinf(found).sum())} infinite numbers; are these "
            "scores? draw softmax(scores), or trace(...).figure()"
        )
    return found


def lone(axes: Any) -> None:
    """No frame and no ticks: what is drawn says enough."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def frame(axes: Any, *sides: str) -> None:
    """A frame on these sides alone, thin."""
    for name, spine in axes.spines.items():
        spine.set_visible(name in sides)
        spine.set_linewidth(0.8)
    axes.tick_params(width=0.8, length=3)


def shape_of_cells(rows: int, keys: int) -> Literal["equal", "auto"]:
    """Squares, "equal", unless one row of many keys would be a thread: then what fills the picture, "auto"."""
    return "equal" if max(rows, keys) <= 6 * min(rows, keys) else "auto"


def bar(figure: Any, image: Any, axes: Any, label: str = "weight") -> None:
    """The scale of a map, beside it."""
    scale = figure.colorbar(
        image, ax=axes, shrink=0.8, aspect=max(16.0, 5 * figure.get_figheight()), pad=0.02
    )
    scale.set_label(label, parse_math=False)
    scale.outline.set_visible(False)
    scale.solids.set_alpha(1.0)  # the map may lie over an image, the scale lies on paper
    scale.ax.tick_params(width=0.8, length=3)


def beside(axes: Any, labels: Iterable[tuple[float, float, str, Any]], *, log: bool = False) -> None:
    """Names at the right ends (x, y) of lines, in their order, moved apart where they would overlap.

    labels: x, y, words, colour. A thin line leads from the end to a name that had to move. Called when the limits of
    the axes stand.
    """
    low, high = axes.get_ylim()
    to_share = np.log if log else np.asarray
    span = to_share(high) - to_share(low)
    ends = sorted(labels, key=lambda label: label[1])
    if not ends:
        return
    inches = max(1.0, axes.get_figure().get_size_inches()[1] - 0.85)  # less what stands above and below
    least = 0.165 / inches  # the height of a line of text of 8 points
    last = max(x for x, *_ in ends)
    style: dict[str, Any] = {"va": "center", "fontsize": 8, "parse_math": False, "annotation_clip": False}
    for x, y, words, _ in ends:
        if x < last:  # a long thin line would look like the rest of this one
            axes.annotate(words, (x, y), (7, 0), textcoords="offset points", **style)
    ends = [end for end in ends if end[0] == last]
    wanted = [float((to_share(y) - to_share(low)) / span) for _, y, _, _ in ends]
    for (x, y, words, colour), place in zip(ends, spread(wanted, least), strict=True):
        leader = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.6,
            "shrinkA": 1,
            "shrinkB": 3,
            "relpos": (0, 0.5),
        }
        axes.annotate(words, (x, y), (1.05, place), textcoords="axes fraction", arrowprops=leader, **style)


def spread(wanted: Sequence[float], least: float) -> list[float]:
    """Of places that rise, the nearest ones (least squares) that are so far apart, within 0 to 1 if all find room there.

    >>> spread([0.0, 0.25, 0.75], 0.5)
    [0.0, 0.5, 1.0]
    """
    groups: list[
        tuple[float, int]
    ] = []  # less the room of those before, places may be alike: the mean of each run
    for i, place in enumerate(wanted):
        groups.append((place - least * i, 1))
        while len(groups) > 1 and groups[-1][0] < groups[-2][0]:
            (b, m), (a, n) = groups.pop(), groups.pop()
            groups.append(((a * n + b * m) / (n + m), n + m))
    most = 1.0 - least * (len(wanted) - 1)
    level = [mean if most < 0 else min(max(mean, 0.0), most) for mean, count in groups for _ in range(count)]
    return [start + least * i for i, start in enumerate(level)]
