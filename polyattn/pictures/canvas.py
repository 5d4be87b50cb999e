"""What all pictures share: colours, paper, how arrays and tokens come in, labels that keep clear of one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.arrays import Array
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
    "beside",
    "drawing",
    "frame",
    "lone",
    "numbers_of",
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
    inches = axes.get_figure().get_size_inches()[1] * 0.8
    least = 0.155 / inches  # the height of a line of text of 8 points
    wanted = [float((to_share(y) - to_share(low)) / span) for _, y, _, _ in ends]
    for (x, y, words, colour), place in zip(ends, spread(wanted, least), strict=True):
        axes.annotate(
            words, (x, y), (1.04, place), xycoords="data", textcoords="axes fraction", va="center", fontsize=8,
            parse_math=False, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip


def spread(wanted: Sequence[float], least: float) -> list[float]:
    """The nearest places in the same order, rising, that are at least so far apart: neighbours too near share their mean.

    >>> spread([0.0, 0.0, 1.0], 0.5)
    [-0.25, 0.25, 1.0]
    """
    groups: list[tuple[float, int]] = []  # the mean of the first place of each group, and how many it holds
    for place in wanted:
        groups.append((place, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < least * groups[-2][1]:
            (b, m), (a, n) = groups.pop(), groups.pop()
            groups.append(((a * n + (b - least * n) * m) / (n + m), n + m))
    return [start + least * i for start, count in groups for i in range(count)]


def count_of(value: Array) -> str:
    """A number in few signs."""
    return f"{value:.2g}"
