"""Pictures: of masks for now."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mask_text(rows: list[list[bool]]) -> str:
    """A line per query, ``#`` where it may attend."""
    return "\n".join(" ".join("#" if allowed else "." for allowed in row) for row in rows)


def mask_figure(rows: list[list[bool]], title: str) -> Figure:
    """The mask as an image: queries downwards, keys to the right, dark where a query may attend."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "polyattn.masks: figure() draws with matplotlib, which is not here; pip install matplotlib"
        ) from None
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.imshow(rows, cmap="Greys", vmin=0, vmax=1.25, interpolation="nearest")
    axes.set(title=title, xlabel="key", ylabel="query")
    return figure
