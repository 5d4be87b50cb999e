"""Pictures of the chapters on additive attention and on positions that no function of the library draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn.draw import INK, drawing


def over_the_plane(scores: dict[str, Any], query: Any, reach: float) -> Any:
    """The scores of one query with keys all over a square, a panel for each function keys (n, 2) -> scores (n,).

    Lines join keys of equal score; the cross is the query.
    """
    side = np.linspace(-reach, reach, 61)
    across, down = np.meshgrid(side, side)
    keys = np.stack([across.ravel(), down.ravel()], axis=-1)
    with drawing("surfaces.over_the_plane", (3.5 * len(scores), 3.5)) as figure:
        for axes, (title, of) in zip(
            figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True
        ):
            level = np.asarray(of(keys)).reshape(across.shape)
            axes.contourf(across, down, level, levels=9, cmap="viridis")
            lines = axes.contour(across, down, level, levels=9, colors="white", linewidths=0.6)
            axes.clabel(lines, fontsize=7, fmt="%.3g")
            axes.plot(*query, marker="x", color="#D55E00", markersize=9, markeredgewidth=2)
            axes.set(title=title, xlabel="first entry of the key", ylabel="second entry", aspect="equal")
            axes.tick_params(colors=INK)
    return figure
