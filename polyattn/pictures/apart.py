"""Where two outputs differ: which heads, which rows, which entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.arrays import Array
from polyattn.calls import answers, shown
from polyattn.pictures.canvas import HEAT, INK, TILE, VERMILLION, bar, drawing, frame, numbers_of
from polyattn.pictures.words import label_axis, spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["mismatch"]

_WHO = "polyattn.pictures.mismatch"


@answers(_WHO, "settings")
def mismatch(
    observed: Array, expected: Array, *, names: tuple[str, str] = ("observed", "expected")
) -> Figure:
    """The profile of a mismatch: the largest |observed - expected| by head and row, by row and by entry.

    observed, expected: outputs (..., H, L, E), or weights (..., H, L, S) whose last axis are keys, or (L, E); from
    whatever libraries. Batch items are taken together. The scale is logarithmic; where both are the same, bit for bit,
    nothing is drawn. A red cross: one is NaN or infinite there and the other is not, or is so otherwise. names: of the
    two. What a mismatch means in units of rounding, and where it comes from: `polyattn.parity.compare` and `diagnose`.

    A wrong mask shows as rows, a wrong rotary as rows that get worse, exchanged heads as heads, a layout as everything.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> right = np.zeros((2, 3, 4)); wrong = right.copy(); wrong[1, 2, 3] = 0.5
    >>> pictures.mismatch(wrong, right).get_suptitle()
    '|observed - expected|: at most 0.5, at head 1, row 2, entry 3; 1 of 24 numbers differ'
    """
    if (
        not isinstance(names, Sequence)
        or isinstance(names, str)
        or len(names) != 2
        or not all(isinstance(name, str) for name in names)
    ):
        raise TypeError(
            f"{_WHO}: expected names to be two texts, got {shown(names)}; write names=('mine', 'theirs')"
        )
    f, g = (
        numbers_of(_WHO, name, x).astype(np.float64)
        for name, x in (("observed", observed), ("expected", expected))
    )
    if f.shape != g.shape or f.ndim < 2 or 0 in f.shape:
        raise ValueError(
            f"{_WHO}: expected two arrays of one shape (..., H, L, E), got {tuple(f.shape)} and {tuple(g.shape)}; "
            "bring both into one layout, as numpy.swapaxes(x, 1, 2) does with BLHD"
        )
    gap, wild = _gap(f, g)
    shape = gap.shape
    most = np.unravel_index(int(np.where(wild, np.inf, gap).argmax()), shape)
    gap, wild = (x.reshape(-1, *((1,) * (3 - x.ndim)), *shape[-3:]) for x in (gap, wild))
    heads, rows = gap.shape[1:3]
    maps = gap.max(axis=(0, 3)), wild.any(axis=(0, 3))
    low, high = _decades(np.concatenate([maps[0].ravel(), gap.max(axis=(0, 1, 2))]))
    tall = max(1.0, min(3.2, 0.24 * heads))
    with drawing(_WHO, (8.4, tall + 2.9)) as figure:
        from matplotlib.colors import LogNorm

        boxes: dict[str, Any] = figure.subplot_mosaic(
            [["map", "map"], ["rows", "entries"]], height_ratios=[tall, 1.9], width_ratios=[1, 1]
        )
        axes = boxes["map"]
        image = axes.imshow(
            np.ma.masked_less_equal(maps[0], 0), cmap=HEAT, norm=LogNorm(low, high), aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        where = np.nonzero(maps[1])
        axes.plot(where[1], where[0], linestyle="", marker="x", color=VERMILLION, markersize=5)
        frame(axes, "top", "bottom", "left", "right")
        axes.set(xlabel="row", ylabel="head", title="by head and row")
        label_axis(axes.xaxis, None, rows)
        label_axis(axes.yaxis, None, heads)
        bar(figure, image, axes, "difference")
        _profile(
            boxes["rows"], gap.max(axis=(0, 1, 3)), np.asarray(wild.any(axis=(0, 1, 3))), (low, high), "row"
        )
        _profile(
            boxes["entries"],
            gap.max(axis=(0, 1, 2)),
            np.asarray(wild.any(axis=(0, 1, 2))),
            (low, high),
            "entry",
        )
        for box in boxes.values():
            box.title.set_fontsize(10)
        said = _sentence(f, g, gap, wild, most, names)
        figure.suptitle(said, fontsize=10, parse_math=False)
    return figure


def _gap(f: NDArray[Any], g: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """|f - g|, 0 where one of them is not finite; and where they are not finite in another way."""
    finite = np.isfinite(f) & np.isfinite(g)
    same = (f == g) | (np.isnan(f) & np.isnan(g))
    return np.where(finite, np.abs(np.where(finite, f, 0.0) - np.where(finite, g, 0.0)), 0.0), ~finite & ~same


def _decades(gap: NDArray[Any]) -> tuple[float, float]:
    """Powers of ten around what differs, at least one, at most 18."""
    there = gap[gap > 0]
    if there.size == 0:
        return 1e-16, 1.0
    high = np.ceil(np.log10(there.max()))
    return 10.0 ** max(min(np.floor(np.log10(there.min())), high - 1), high - 18), 10.0**high


def _profile(axes: Any, gap: NDArray[Any], wild: NDArray[Any], span: tuple[float, float], name: str) -> None:
    places = np.arange(len(gap))
    axes.set(yscale="log", ylim=(span[0] / 2, span[1] * 2), xlim=(-0.6, len(gap) - 0.4))
    axes.bar(places, np.where(gap > 0, gap, np.nan), 0.8 if len(gap) <= 64 else 1.0, color=TILE)
    axes.plot(
        places[wild], np.full(wild.sum(), span[1]), linestyle="", marker="x", color=VERMILLION, markersize=5
    )
    axes.grid(axis="y", color=INK, alpha=0.22, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    axes.set(xlabel=name, title=f"by {name}")
    label_axis(axes.xaxis, None, len(gap))
    frame(axes, "left", "bottom")


def _sentence(
    f: NDArray[Any],
    g: NDArray[Any],
    gap: NDArray[Any],
    wild: NDArray[Any],
    most: tuple[Any, ...],
    names: Sequence[str],
) -> str:
    first, second = (spoken(name, 24) for name in names)
    count = int((gap > 0).sum() + wild.sum())
    if not count:
        return f"{first} and {second} are the same, bit for bit"
    words = ["item"] * (len(most) - 3) + ["head", "row", "entry"][-min(3, len(most)) :]
    at = ", ".join(f"{word} {int(i)}" for word, i in zip(words, most, strict=True))
    if wild.any():
        what = f"{first} {f[most]:.3g}, {second} {g[most]:.3g}"
    else:
        what = f"|{first} - {second}|: at most {gap.max():.3g}"
    return f"{what}, at {at}; {count} of {gap.size} numbers differ"
