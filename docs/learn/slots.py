"""Which token stands in which slot of a cache, as tokens come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.pictures.canvas import INK, TILE, drawing, lone

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def slots(caches: Mapping[str, Any], tokens: int) -> Figure:
    """A line for every token that comes, a column for every slot; filled: what that token reads.

    caches: name -> a cache without tokens, of one item. A cache that has a window is read as far as that goes.
    """
    widths = [cache.capacity for cache in caches.values()]
    with drawing("slots", (0.36 * (sum(widths) + 2 * len(widths)), 0.36 * tokens + 0.7)) as figure:
        panels = figure.subplots(1, len(caches), width_ratios=widths)
        for axes, (name, cache) in zip(panels, caches.items(), strict=True):
            new = np.zeros((*cache.key.shape[:-2], 1, cache.key.shape[-1]), cache.key.dtype)
            for t in range(tokens):
                cache = cache.append(new, new)
                for slot, p in enumerate(np.ravel(cache.positions)):
                    _cell(axes, slot, t, int(p), read=p > max(-1, t - getattr(cache, "window", tokens)))
            lone(axes)
            axes.set(xlim=(0, cache.capacity), ylim=(tokens, 0), aspect="equal")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("slot 0, 1, 2, ...", fontsize=8)
        panels[0].set_ylabel("token that comes", fontsize=8)
        panels[0].set_yticks(np.arange(tokens) + 0.5, [str(t) for t in range(tokens)], fontsize=8)
        panels[0].tick_params(length=0)
    return figure


def _cell(axes: Any, slot: int, line: int, position: int, *, read: bool) -> None:
    from matplotlib.patches import Rectangle

    if read:
        axes.add_patch(Rectangle((slot, line), 1, 1, facecolor=TILE, alpha=0.45, edgecolor="none"))
    axes.add_patch(Rectangle((slot, line), 1, 1, fill=False, edgecolor=INK, linewidth=0.8))
    if position >= 0:
        axes.text(slot + 0.5, line + 0.5, str(position), ha="center", va="center", fontsize=8)
