"""Masks: what each query may attend to, and what of that an engine need not look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.arrays import Array, is_array
from polyattn.calls import answers, shown, size
from polyattn.masks import EMPTY, FULL, PARTIAL, Mask, Tile, from_array
from polyattn.pictures.canvas import INK, TILE, VERMILLION, drawing, frame, numbers_of
from polyattn.pictures.words import inches, label_axis, spoken, tokens_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["mask"]

_WHO = "polyattn.pictures.mask"
#: How a kind of tile is drawn: colour, hatch, letter, and what it means.
KINDS: dict[Tile, tuple[str, str, str, str]] = {
    FULL: (TILE, "", "F", "full: computed without a comparison"),
    PARTIAL: (VERMILLION, "////", "P", "partial: computed and masked"),
    EMPTY: ("none", "", "E", "empty: skipped"),
}


@answers(_WHO, "settings")
def mask(
    mask: Mask | Array,
    queries: int | Sequence[str] | None = None,
    keys: int | Sequence[str] | None = None,
    *,
    tile: tuple[int, int] | None = None,
    b: int = 0,
    h: int = 0,
) -> Figure:
    """A mask of `polyattn.masks`, or a bool array (..., L, S), True = may attend: a cell where a query may attend.

    queries, keys: how many there are, or their tokens; keys default to queries, and both to the size of the array.
    tile=(rows, keys): what `Mask.tiles` says of the tiles of that size, EMPTY, FULL or PARTIAL, by hatch and letter.
    b, h: the batch item and the head that are drawn.

    >>> from polyattn import masks, pictures
    >>> figure = pictures.mask(masks.causal(), 4, tile=(2, 2))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['P', 'E', 'F', 'P']
    """
    if is_array(mask):
        mask = _of_array(mask)
    if not isinstance(mask, Mask):
        raise TypeError(
            f"{_WHO}: expected a mask of polyattn.masks or a bool array, got {shown(mask)}; wrap a function in masks.mask_mod"
        )
    own = mask.own_size()
    rows, down = _side("queries", queries, own[0])
    count, across = (rows, down) if keys is None and own[1] in (None, rows) else _side("keys", keys, own[1])
    b, h = size(_WHO, "b", b), size(_WHO, "h", h)
    batch, heads = max(b + 1, mask.batch_size()), max(h + 1, mask.head_count())
    full = mask.dense(rows, count, batch=batch, heads=heads)
    allowed = numbers_of(_WHO, "mask", full[b, h, ...], "(L, S)")
    cell = min(0.3, max(2.4, min(7.0, 0.15 * max(rows, count))) / max(rows, count))
    extra = 0.0 if tile is None else 0.75
    wide, high = max(2.4 if tile is None else 3.4, cell * count), max(1.0, cell * rows)
    with drawing(_WHO, (wide + 0.6 + inches(down), high + 0.7 + extra + inches(across))) as figure:
        from matplotlib.colors import ListedColormap

        axes = figure.subplots()
        shades = ListedColormap(["none", TILE])
        axes.imshow(
            allowed, cmap=shades, vmin=0, vmax=1, interpolation="nearest", alpha=1.0 if tile is None else 0.55
        )
        axes.set(xlabel="key", ylabel="query")
        axes.set_title(spoken(str(mask), 60), parse_math=False, fontsize=10)
        frame(axes, "top", "bottom", "left", "right")
        label_axis(axes.xaxis, across, count)
        label_axis(axes.yaxis, down, rows)
        if max(rows, count) <= 40:
            lines: dict[str, Any] = {"color": INK, "alpha": 0.3, "linewidth": 0.5}
            axes.vlines(np.arange(count - 1) + 0.5, -0.5, rows - 0.5, **lines)
            axes.hlines(np.arange(rows - 1) + 0.5, -0.5, count - 0.5, **lines)
        if tile is not None:
            _tiles(figure, axes, mask, (rows, count), tile, b, h, cell)
    return figure


def _of_array(given: Array) -> Mask:
    found = numbers_of(_WHO, "mask", given, "(L, S)", "(H, L, S)", "(B, H, L, S)")
    if found.dtype != bool:
        raise TypeError(
            f"{_WHO}: expected a bool array, True = may attend, got {given.dtype}; write mask == 0 for a bias of 0 and "
            "-inf, or mask != 0 for ones and zeros"
        )
    return from_array(found if found.ndim != 3 else found[None])


def _side(name: str, given: Any, own: int | None) -> tuple[int, list[str] | None]:
    """How many there are, and their tokens."""
    if given is None:
        if own is None:
            raise ValueError(
                f"{_WHO}: expected {name} too, as this mask is of any size, got None; say how many there are, or their tokens"
            )
        return own, None
    if isinstance(given, Sequence):
        tokens = tokens_of(_WHO, name, given)
        if not tokens:
            raise ValueError(f"{_WHO}: expected a token in {name}, got none; say how many there are")
        return len(tokens), tokens
    return size(_WHO, name, given, 1), None


def _tiles(
    figure: Any,
    axes: Any,
    mask: Mask,
    shape: tuple[int, int],
    tile: tuple[int, int],
    b: int,
    h: int,
    cell: float,
) -> None:
    from matplotlib.patches import Patch, Rectangle

    kinds = mask.tiles(*shape, tile, b=b, h=h)
    points = 72 * cell * min(min(tile), min(shape))  # of the side of a tile
    for i, line in enumerate(kinds):
        for j, kind in enumerate(line):
            colour, hatch, letter, _ = KINDS[kind]
            top, left = i * tile[0], j * tile[1]
            height, width = min(tile[0], shape[0] - top), min(tile[1], shape[1] - left)
            place = (left - 0.5, top - 0.5)
            if kind is PARTIAL:
                axes.add_patch(
                    Rectangle(
                        place, width, height, facecolor="none", edgecolor=colour, hatch=hatch, linewidth=0
                    )
                )
            axes.add_patch(Rectangle(place, width, height, facecolor="none", edgecolor=INK, linewidth=1.6))
            if points >= 7:
                axes.text(
                    left + (width - 1) / 2, top + (height - 1) / 2, letter, ha="center", va="center",
                    fontsize=min(14, max(6, 0.5 * points)), fontweight="bold",
                    bbox={"boxstyle": "circle,pad=0.15", "facecolor": "#ffffff", "edgecolor": INK, "linewidth": 0.8},
                    color="#333333",
                )  # fmt: skip
    counts = {kind: sum(line.count(kind) for line in kinds) for kind in KINDS}
    handles = [
        Patch(
            facecolor=TILE if kind is FULL else "none", alpha=0.55 if kind is FULL else 1.0,
            edgecolor=colour if kind is PARTIAL else INK, hatch=hatch, label=f"{counts[kind]} {letter} = {meaning}",
        )
        for kind, (colour, hatch, letter, meaning) in KINDS.items()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", fontsize=8, frameon=False)
