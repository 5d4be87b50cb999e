"""The picture of the chapter on a network for a score: what no function of the library draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.draw import INK, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def over_the_plane(scores: Mapping[str, Callable[[Any], Any]], query: Any, reach: float) -> Figure:
    """The scores of one query with keys all over a square, a panel for each function keys (n, 2) -> scores (n,).

    Lines join keys of equal score; the cross is the query. The square goes from -reach to reach.
    """
    side = np.linspace(-reach, reach, 61)
    across, up = np.meshgrid(side, side)
    keys = np.stack([across.ravel(), up.ravel()], axis=-1)
    with drawing("surfaces.over_the_plane", (3.5 * len(scores), 3.5)) as figure:
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for axes, (title, of) in zip(panels, scores.items(), strict=True):
            level = np.asarray(of(keys)).reshape(across.shape)
            axes.contourf(across, up, level, levels=9, cmap="viridis")
            lines = axes.contour(across, up, level, levels=9, colors="white", linewidths=0.6)
            axes.clabel(lines, fontsize=7, fmt="%.3g")
            axes.plot(*query, marker="x", color="#D55E00", markersize=9, markeredgewidth=2)
            axes.set(title=title, xlabel="first entry of the key", ylabel="second entry", aspect="equal")
            axes.tick_params(colors=INK)
    return figure
