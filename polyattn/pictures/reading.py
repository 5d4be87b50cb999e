"""Where a model looks: over the patches of an image, over the text that is translated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.arrays import Array
from polyattn.calls import answers, shown, size
from polyattn.pictures.canvas import HEAT, INK, TILE, bar, drawing, frame, lone, numbers_of, weights_of
from polyattn.pictures.words import inches, label_axis, tokens_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["alignment", "over_image"]


@answers("polyattn.pictures.over_image", "settings")
def over_image(image: Array, weights: Array, *, grid: tuple[int, int] | None = None) -> Figure:
    """An image, and beside it the weights of one query over its patches: the image in grey below them.

    image (H, W), (H, W, 3) or (H, W, 4): numbers from 0 to 1, or integers from 0 to 255. weights (rows, cols), one a
    patch, or (rows * cols,) with grid=(rows, cols). Leave out the weights of tokens that are no patch, as a class token.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> figure = pictures.over_image(np.eye(8), np.array([0.1, 0.2, 0.3, 0.4]), grid=(2, 2))
    >>> figure.axes[1].get_images()[1].get_array().tolist()
    [[0.1, 0.2], [0.3, 0.4]]
    """
    who = "polyattn.pictures.over_image"
    pixels = _pixels(who, image)
    found = weights_of(who, weights, "(rows, cols)", "(rows * cols,)")
    if grid is not None:
        if not isinstance(grid, tuple) or len(grid) != 2:
            raise TypeError(
                f"{who}: expected grid to be (rows, cols), got {shown(grid)}; write grid=(14, 14)"
            )
        rows, columns = (size(who, "a side of grid", n, 1) for n in grid)
        if found.shape not in ((rows, columns), (rows * columns,)):
            raise ValueError(
                f"{who}: expected {rows * columns} weights for a grid of {rows} x {columns} patches, got shape "
                f"{found.shape}; leave out those of tokens that are no patch, as weights[1:] behind a class token"
            )
        found = found.reshape(rows, columns)
    if found.ndim == 1:
        raise ValueError(
            f"{who}: expected grid too, as weights have one axis, got {found.shape}; write grid=(rows, cols)"
        )
    height, width = pixels.shape[:2]
    rows, columns = found.shape
    wide = min(4.0, max(1.6, 3.4 * width / height))
    with drawing(who, (2 * wide + 1.3, wide * height / width + 0.5)) as figure:
        plain, covered = figure.subplots(1, 2)
        extent = (0, columns, rows, 0)
        look: dict[str, Any] = {
            "extent": extent,
            "aspect": height / width * columns / rows,
            "vmin": 0,
            "vmax": 1,
        }
        plain.imshow(pixels, cmap="gray", **look)
        grey = pixels if pixels.ndim == 2 else pixels[..., :3] @ np.array([0.2126, 0.7152, 0.0722])
        covered.imshow(grey, cmap="gray", **look)
        most = float(np.nanmax(found)) if np.isfinite(found).any() else 1.0
        low = min(0.0, float(np.nanmin(found))) if np.isfinite(found).any() else 0.0
        heat = covered.imshow(
            found, cmap=HEAT, vmin=low, vmax=most if most > low else low + 1.0, alpha=0.62,
            **{key: look[key] for key in ("extent", "aspect")}, interpolation="nearest",
        )  # fmt: skip
        for axes, title in ((plain, "image"), (covered, "weights over its patches")):
            axes.set_title(title, fontsize=10)
            lone(axes)
        if max(rows, columns) <= 32:
            for line in (plain.hlines, covered.hlines):
                line(range(1, rows), 0, columns, color="#ffffff", alpha=0.35, linewidth=0.5)
            for line in (plain.vlines, covered.vlines):
                line(range(1, columns), 0, rows, color="#ffffff", alpha=0.35, linewidth=0.5)
        bar(figure, heat, covered)
    return figure


def _pixels(who: str, image: Any) -> NDArray[np.float64]:
    found = numbers_of(who, "image", image, "(H, W)", "(H, W, C)").astype(np.float64)
    if found.ndim == 3 and found.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{who}: expected image of shape (H, W) or (H, W, 3), got {found.shape}; colours are the last axis, "
            "numpy.moveaxis(image, 0, -1) brings them there"
        )
    if found.ndim == 3 and found.shape[-1] == 1:
        found = found[..., 0]
    whole = not np.asarray(image.dtype == bool).any() and "int" in str(image.dtype)
    found = found / 255 if whole else found
    if not np.isfinite(found).all() or found.min() < 0 or found.max() > 1:
        span = "0 to 255" if whole else "0 to 1"
        raise ValueError(
            f"{who}: expected numbers of image from {span}, got {found.min() * (255 if whole else 1):.3g} to "
            f"{found.max() * (255 if whole else 1):.3g}; undo the normalisation of the model, image * std + mean"
        )
    return found


@answers("polyattn.pictures.alignment", "settings")
def alignment(weights: Array, source: Sequence[str], target: Sequence[str]) -> Figure:
    """What a decoder read (source, to the right) for each token that it wrote (target, downwards): areas as the weights.

    weights (T, S), rows that sum to 1. A full cell is a weight of 1, or the largest if there is a larger one; the
    largest of a row says its number where that fits into it.

    >>> import numpy as np
    >>> from polyattn import pictures
    >>> figure = pictures.alignment(np.array([[0.25, 0.75]]), ["2", "May"], ["May"])
    >>> [square.get_width() for square in figure.axes[0].patches]  # of a cell of side 0.94
    [0.47, 0.8140638795573723]
    """
    who = "polyattn.pictures.alignment"
    found = weights_of(who, weights, "(T, S)")
    rows, columns = found.shape
    if np.isnan(found).any() or found.min() < 0:
        what = "NaN" if np.isnan(found).any() else f"{found.min():.3g}"
        raise ValueError(
            f"{who}: expected weights of at least 0, which areas can show, got {what} among them; "
            "polyattn.pictures.weights draws others"
        )
    down, across = (
        tokens_of(who, "target", target, rows, "rows"),
        tokens_of(who, "source", source, columns, "keys"),
    )
    if down is None or across is None:
        raise TypeError(f"{who}: expected source and target, got None; pass the tokens of both texts")
    cell = min(0.34, 9.0 / max(rows, columns))
    size = (max(1.6, cell * columns) + 0.7 + inches(down), max(0.8, cell * rows) + 0.6 + inches(across))
    with drawing(who, size) as figure:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
        axes.hlines(np.arange(rows), -0.5, columns - 0.5, color=INK, alpha=0.3, linewidth=0.6)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        frame(axes)
        label_axis(axes.xaxis, across, columns)
        label_axis(axes.yaxis, down, rows)
        axes.set(xlabel="source", ylabel="target")
        sides = 0.94 * np.sqrt(found / max(1.0, found.max()))
        for (row, key), side in np.ndenumerate(sides):
            if side > 0.01:
                axes.add_patch(
                    Rectangle((key - side / 2, row - side / 2), side, side, color=TILE, linewidth=0)
                )
        if cell >= 0.25:
            for row, key in enumerate(found.argmax(axis=1)):
                if sides[row, key] >= 0.55:
                    text = f"{found[row, key]:.2f}".removeprefix("0")
                    axes.text(
                        key,
                        row,
                        text,
                        fontsize=7,
                        ha="center",
                        va="center",
                        color="#ffffff",
                        fontweight="bold",
                    )
    return figure
