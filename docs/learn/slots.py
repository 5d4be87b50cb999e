"""Which token stands in which slot of a cache, as tokens come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.pictures.canvas import INK, TILE, drawing, lone

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def slots(caches: Mapping[str, Any], tokens: int, reads: Mapping[str, int]) -> Figure:
    """A line for every token that comes, a column for every slot; filled: what that token reads.

    caches: name -> a cache without tokens, of one item; reads: name -> how many of the latest tokens a query sees.
    """
    with drawing(
        "slots", (1.2 + 0.34 * sum(cache.capacity + 1 for cache in caches.values()), 0.34 * tokens + 0.9)
    ) as figure:
        from matplotlib.patches import Rectangle

        widths = [cache.capacity for cache in caches.values()]
        for axes, (name, cache) in zip(
            figure.subplots(1, len(caches), width_ratios=widths), caches.items(), strict=True
        ):
            new = np.zeros((*cache.key.shape[:-2], 1, cache.key.shape[-1]), cache.key.dtype)
            for t in range(tokens):
                cache = cache.append(new, new)
                for slot, p in enumerate(np.ravel(cache.positions)):
                    seen = 0 <= p <= t and p > t - reads[name]
                    colour = {"facecolor": TILE, "alpha": 0.45} if seen else {"facecolor": "none"}
                    axes.add_patch(Rectangle((slot, t), 1, 1, edgecolor="none", **colour))
                    axes.add_patch(Rectangle((slot, t), 1, 1, fill=False, edgecolor=INK, linewidth=0.8))
                    axes.text(
                        slot + 0.5, t + 0.5, str(p) if p >= 0 else "", ha="center", va="center", fontsize=8
                    )
            lone(axes)
            axes.set(xlim=(0, cache.capacity), ylim=(tokens, 0), aspect="equal")
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("slot 0, 1, 2, ...", fontsize=8)
        figure.axes[0].set_ylabel("token that comes", fontsize=8)
        figure.axes[0].set_yticks(np.arange(tokens) + 0.5, [str(t) for t in range(tokens)], fontsize=8)
        figure.axes[0].tick_params(length=0)
    return figure
