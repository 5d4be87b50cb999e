"""Pictures: of masks, and of the stages of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyattn.arrays import backend_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_stages", "mask_figure", "mask_text"]


def mask_text(rows: list[list[bool]]) -> str:
    """A line per query, ``#`` where it may attend."""
    return "\n".join(" ".join("#" if allowed else "." for allowed in row) for row in rows)


def mask_figure(rows: list[list[bool]], title: str) -> Figure:
    """The mask as an image: queries downwards, keys to the right, dark where a query may attend."""
    figure = _figure("polyattn.masks.Mask.figure")
    axes = figure.subplots()
    axes.imshow(rows, cmap="Greys", vmin=0, vmax=1.25, interpolation="nearest")
    axes.set(title=title, xlabel="key", ylabel="query")
    return figure


def draw_stages(trace: Any, batch: int, head: int) -> Figure:
    """The stages with a column for each key, side by side; hidden scores are left white."""
    stages = [stage for stage in trace if stage.axes == "BHLS"]
    figure = _figure("polyattn.Trace.figure", (3.2 * len(stages), 3.4))
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        values = backend_of(stage.value).to_numpy(stage.value)[batch, head]
        shown = [[x if abs(x) != float("inf") else float("nan") for x in row] for row in values.tolist()]
        image = axes.imshow(
            shown, cmap="magma" if "weights" in stage.name else "coolwarm", interpolation="nearest"
        )
        axes.set(title=stage.name, xlabel="key", ylabel="query")
        figure.colorbar(image, ax=axes, shrink=0.7)
    return figure


def _figure(who: str, size: tuple[float, float] | None = None) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{who}: expected the package matplotlib, which draws, got: {error}; pip install matplotlib"
        ) from None
    return Figure(figsize=size, layout="constrained")
