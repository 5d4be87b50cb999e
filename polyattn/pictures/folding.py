"""One row of scores, folded tile by tile: the numbers of the monoid after each of them, still and moving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polyattn.arrays import Array
from polyattn.calls import answers, size
from polyattn.normalizers.softmax import SOFTMAX, Partial, finish, lift, merge, weights
from polyattn.pictures.canvas import INK, TILE, VERMILLION, drawing, frame, numbers_of

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Fold", "Step", "fold", "online_softmax", "online_softmax_animation"]

MOST_TILES, MOST_KEYS, MOST_ENTRIES = 24, 96, 24  # what can be seen
ABREAST = 6


class Step(NamedTuple):
    """What is known of a row after a tile."""

    start: int  # the tile holds keys start .. stop - 1
    stop: int
    top: float  # m, the largest score so far; -inf if every key was hidden
    sum: float  # l, the sum of exp(score - m)
    factor: float  # exp(m before - m): by what the sum so far was multiplied
    weights: NDArray[np.float64]  # (stop,) of the keys so far: exp(score - m) / l
    out: NDArray[np.float64]  # (E,) acc / l


class Fold(NamedTuple):
    """A row, and what is known after each tile."""

    scores: NDArray[np.float64]  # (S,)
    steps: list[Step]
    whole: NDArray[np.float64]  # (S,) the softmax of all keys at once
    out: NDArray[np.float64] | None  # (E,) its average of the values, None without values


def fold(who: str, scores: Any, values: Any, tile: Any) -> Fold:
    """The fold of lift and merge over the tiles of one row."""
    row = numbers_of(who, "scores", scores, "(S,)").astype(np.float64)
    if np.isnan(row).any() or (row == np.inf).any():
        raise ValueError(
            f"{who}: expected scores that are finite, or -inf where a key is hidden, got "
            f"{'NaN' if np.isnan(row).any() else 'inf'} among them; the average of such a row is NaN"
        )
    keys, tile = len(row), size(who, "tile", tile, 1)
    if keys > MOST_KEYS or -(-keys // tile) > MOST_TILES:
        raise ValueError(
            f"{who}: expected at most {MOST_KEYS} keys in at most {MOST_TILES} tiles, got {keys} in "
            f"{-(-keys // tile)}; more cannot be seen, take a part of the row or larger tiles"
        )
    held = np.eye(keys) if values is None else _values(who, values, keys)
    steps: list[Step] = []
    so_far: Partial | None = None
    for start in range(0, keys, tile):
        stop = min(start + tile, keys)
        new = lift(row[None, start:stop], held[start:stop])
        before = SOFTMAX.nothing(row[None, :], held.shape[1]) if so_far is None else so_far
        so_far = merge(before, new)
        top, factor = float(so_far.top[0, 0]), 0.0
        if before.top[0, 0] > -np.inf:
            factor = float(np.exp(before.top - so_far.top)[0, 0])
        seen = weights(row[None, :stop], so_far)[0]
        steps.append(Step(start, stop, top, float(so_far.sum[0, 0]), factor, seen, finish(so_far)[0]))
    whole = SOFTMAX.weights(row)
    return Fold(row, steps, whole, None if values is None else whole @ held)


def _values(who: str, values: Any, keys: int) -> NDArray[np.float64]:
    held = numbers_of(who, "values", values, "(S,)", "(S, E)").astype(np.float64)
    held = held[:, None] if held.ndim == 1 else held
    if len(held) != keys or held.shape[1] > MOST_ENTRIES or not np.isfinite(held).all():
        what = "an infinite number or NaN in it" if not np.isfinite(held).all() else f"shape {held.shape}"
        raise ValueError(
            f"{who}: expected values of shape ({keys}, E), finite, a row for each score, with E <= {MOST_ENTRIES}, got "
            f"{what}; take a part of the width, as values[:, :8]"
        )
    return held


@answers("polyattn.pictures.online_softmax", "settings")
def online_softmax(scores: Array, values: Array | None = None, *, tile: int = 1) -> Figure:
    """The softmax average of one row, tile by tile, a column a tile: it ends as the softmax of all keys at once.

        m' = max(m, max s_j),  l' = l exp(m - m') + sum_j exp(s_j - m'),  acc' = acc exp(m - m') + sum_j exp(s_j - m') v_j

    scores (S,), -inf where a key is hidden; values (S,) or (S, E). Above: the scores, those of the tile hatched, with the
    running maximum m and the sum l. Below: the weights exp(s - m) / l of the keys so far, then acc / l if there are
    values; circles are those of the whole row. The numbers are those of `polyattn.normalizers.softmax`: lift, merge,
    finish. Source: Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> figure = pictures.online_softmax(np.array([0.0, np.log(3.0)]))
    >>> [round(float(bar.get_height()), 2) for bar in figure.axes[3].patches]  # the weights after the last tile
    [0.25, 0.75]
    """
    who = "polyattn.pictures.online_softmax"
    found = fold(who, scores, values, tile)
    kinds = 2 if found.out is None else 3
    across = min(ABREAST, len(found.steps))
    lines = -(-len(found.steps) // across)
    wide = min(3.0, max(1.5, 0.13 * len(found.scores) + 0.6))
    with drawing(who, (wide * across + 0.9, lines * (1.35 * kinds + 0.9) + 0.35)) as figure:
        grid = figure.subplots(kinds * lines, across, squeeze=False)
        for i in range(lines * across):
            line, column = divmod(i, across)
            panels = list(grid[line * kinds : (line + 1) * kinds, column])
            if i < len(found.steps):
                _draw(panels, found, i, outer=column == 0)
            else:
                for axes in panels:
                    axes.set_axis_off()
        _legend(figure)
    return figure


@answers("polyattn.pictures.online_softmax_animation", "settings")
def online_softmax_animation(scores: Array, values: Array | None = None, *, tile: int = 1) -> FuncAnimation:
    """The pictures of `online_softmax` one after the other, a frame a tile, as an animation of matplotlib.

        pictures.online_softmax_animation(scores).save("fold.gif", writer="pillow")
        pictures.online_softmax_animation(scores).to_jshtml()     # a page with a button for each direction

    Its paper is white. `online_softmax_svg` moves without a script.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> moving = pictures.online_softmax_animation(np.array([0.0, 1.0, 2.0]))
    >>> len(moving.to_jshtml().split("data:image/png")) - 1  # frames
    3
    """
    who = "polyattn.pictures.online_softmax_animation"
    found = fold(who, scores, values, tile)
    kinds = 2 if found.out is None else 3
    wide = min(9.0, max(4.8, 0.16 * len(found.scores) + 1.2))
    with drawing(who, (wide, 1.5 * kinds + 1.1)) as figure:
        from matplotlib.animation import FuncAnimation

        figure.set_facecolor("#ffffff")  # frames of a gif that can be seen through would pile up
        panels = list(figure.subplots(kinds, 1))
        _legend(figure)
        _draw(panels, found, 0)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what stands still stands still

    def show(i: int) -> list[Any]:
        with _again():
            for axes in panels:
                axes.clear()
            _draw(panels, found, i)
        return []

    return FuncAnimation(
        figure, show, frames=len(found.steps), interval=1200, repeat_delay=2400, cache_frame_data=False
    )


def _again() -> Any:
    """The ink of `drawing`, for what is drawn into a figure later."""
    from matplotlib import rc_context

    return rc_context(
        dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK)
    )


def _draw(panels: list[Any], found: Fold, i: int, *, outer: bool = True) -> None:
    """The panels of one tile: scores, weights, and where there are values the average; outer: with names of the axes."""
    step = found.steps[i]
    above, below = panels[:2]
    _scores(above, found, step)
    ends = f"key {step.start}" if step.stop - step.start == 1 else f"keys {step.start} to {step.stop - 1}"
    above.set_title(f"tile {i}: {ends}", fontsize=9)
    factor = f"old sum × {step.factor:.3g}" if i else "nothing before"
    above.set_xlabel(f"m = {step.top:.3g}   l = {step.sum:.3g}\n{factor}", fontsize=8)
    _bars(below, step.weights, found.whole, (0.0, 1.08))
    below.set_xlabel("key", fontsize=8)
    named = ["score", "weight"]
    if found.out is not None:
        ends_of = [0.0, *(x for each in found.steps for x in each.out.tolist()), *found.out.tolist()]
        room = 0.08 * (max(ends_of) - min(ends_of)) or 1.0
        _bars(panels[2], step.out, found.out, (min(ends_of) - room, max(ends_of) + room))
        panels[2].set_xlabel("entry of acc / l", fontsize=8)
        named.append("average")
    for axes, name in zip(panels, named, strict=True):
        axes.set_ylabel(name if outer else "", fontsize=9)
        axes.tick_params(labelsize=7)
        if not outer:
            axes.set_yticklabels([])
        frame(axes, "left")


def _scores(axes: Any, found: Fold, step: Step) -> None:
    row = found.scores
    there = np.isfinite(row)
    keys = np.arange(len(row))
    heights = np.where(there, row, 0.0)
    past, later = keys < step.start, keys >= step.stop
    now = ~past & ~later
    axes.bar(keys[past], heights[past], 0.8, color=TILE, alpha=0.55)
    axes.bar(keys[now], heights[now], 0.8, color=TILE, edgecolor="#ffffff", hatch="////", linewidth=0.0)
    axes.bar(keys[later], heights[later], 0.8, color="none", edgecolor=INK, linewidth=0.8, linestyle=":")
    axes.plot(keys[~there], 0 * keys[~there], linestyle="", marker="x", color=INK, markersize=4)
    axes.axhline(0, color=INK, linewidth=0.6)
    if np.isfinite(step.top):
        axes.axhline(step.top, color=VERMILLION, linestyle="--", linewidth=1.3)
    low, high = min(0.0, heights.min()), max(0.0, heights.max())
    room = 0.12 * (high - low) or 1.0
    axes.set(ylim=(low - room, high + room), xlim=(-0.6, len(row) - 0.4), xticks=[])


def _bars(axes: Any, now: NDArray[Any], whole: NDArray[Any], limits: tuple[float, float]) -> None:
    axes.bar(np.arange(len(now)), now, 0.8, color=TILE)
    size = 5.0 if len(whole) <= 24 else 3.0
    axes.plot(
        np.arange(len(whole)), whole, linestyle="", marker="o", markersize=size, markerfacecolor="none",
        markeredgecolor=VERMILLION, markeredgewidth=1.0,
    )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.6)
    beside = max(0.6, 2.0 - len(whole))  # a single bar is no wall
    axes.set(ylim=limits, xlim=(-beside, len(whole) - 1 + beside))
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5, min_n_ticks=1)


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=TILE, edgecolor="#ffffff", hatch="////", linewidth=0, label="this tile"),
        Patch(facecolor=TILE, alpha=0.55, label="before"),
        Patch(facecolor="none", edgecolor=INK, linestyle=":", label="to come"),
        Line2D([], [], color=VERMILLION, linestyle="--", label="m, the largest so far"),
        Line2D(
            [],
            [],
            color=VERMILLION,
            linestyle="",
            marker="o",
            markerfacecolor="none",
            label="softmax of all keys",
        ),
    ]
    columns = 5 if figure.get_figwidth() >= 7 else 3 if figure.get_figwidth() >= 4.7 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
