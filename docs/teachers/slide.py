"""A page of 16 x 9 for a projector: large words, and the same drawing on white paper and on black."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

__all__ = ["DARK", "LIGHT", "Slide", "Theme", "save"]

STYLE: dict[str, Any] = {"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "polyattn"}
BODY, SMALL = 20, 16


@dataclass(frozen=True)
class Theme:
    """Colours: of words, of the paper, of lines, of what is more than 0 and of a second thing."""

    name: str
    ink: str
    paper: str
    line: str
    blue: str
    orange: str
    soft: str


LIGHT = Theme("light", "#14171a", "#ffffff", "#8a939c", "#2563eb", "#b45309", "#e8ecf1")
DARK = Theme("dark", "#f1f3f5", "#101316", "#7d8791", "#6ea8ff", "#f6ad55", "#262c33")


class Slide:
    """A drawing of 16 by 9, from the upper left corner."""

    def __init__(self, theme: Theme, title: str) -> None:
        self.theme = theme
        self.figure = Figure(figsize=(13.333, 7.5), facecolor=theme.paper)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 16), ylim=(9, 0))
        self.axes.axis("off")
        self.words(0.7, 1.0, title, size=30, weight="bold", ha="left")

    def words(self, x: float, y: float, text: str, *, size: float = BODY, **style: Any) -> None:
        """One line, its middle at (x, y) unless ha says otherwise."""
        style = {"ha": "center", "va": "center", "color": self.theme.ink} | style
        self.axes.text(x, y, text, fontsize=size, **style)

    def box(
        self, x: float, y: float, wide: float, high: float, *, strength: float = 0.0, **style: Any
    ) -> None:
        """A rectangle, the more blue the stronger."""
        color = mixed(self.theme.soft, style.pop("color", self.theme.blue), strength)
        style = {"edgecolor": self.theme.paper, "linewidth": 1.5} | style
        self.axes.add_patch(Rectangle((x, y), wide, high, facecolor=color, **style))

    def line(self, xs: Sequence[float], ys: Sequence[float], **style: Any) -> None:
        """A line through points."""
        self.axes.plot(xs, ys, **({"color": self.theme.line, "linewidth": 2} | style))

    def grid(
        self,
        x: float,
        y: float,
        values: Any,
        cell: float,
        *,
        numbers: bool = False,
        most: float | None = None,
        high: float | None = None,
    ) -> None:
        """A matrix, rows downwards, the stronger the larger; with numbers of two digits, if they are asked for."""
        values = np.asarray(values, float)
        high, most = cell if high is None else high, float(values.max()) if most is None else most
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                strength = value / most
                self.box(x + j * cell, y + i * high, cell, high, strength=strength)
                if numbers:
                    color = plainer(mixed(self.theme.soft, self.theme.blue, strength))
                    self.words(
                        x + (j + 0.5) * cell, y + (i + 0.5) * high, f"{value:.2f}", size=14, color=color
                    )

    def plot(self, place: tuple[float, float, float, float], **settings: Any) -> Axes:
        """Axes for curves, at (left, bottom, width, height) of the page."""
        axes = self.figure.add_axes(place, facecolor="none")
        axes.set(**settings)
        axes.tick_params(colors=self.theme.ink, labelsize=SMALL, which="both", pad=9)
        for side in axes.spines.values():
            side.set_color(self.theme.line)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set(color=self.theme.ink, fontsize=BODY)
        axes.grid(color=self.theme.line, alpha=0.3)
        return axes


def mixed(first: str, second: str, share: float) -> str:
    """A colour between two."""
    channels = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (first, second)]
    share = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*channels, strict=True))


def plainer(ground: str) -> str:
    """Black or white, whichever is in sight better on a ground by the contrast of WCAG 2.2: 4.58 or more on any."""

    def light(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05

    return max(
        ("#000000", "#ffffff"),
        key=lambda ink: max(light(ink), light(ground)) / min(light(ink), light(ground)),
    )


def save(draw: Callable[[Theme], Slide], name: str, folder: Path) -> list[Path]:
    """NAME-light.svg, NAME-light.png, NAME-dark.svg and NAME-dark.png, 1920 x 1080."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for theme in (LIGHT, DARK):
        with rc_context(STYLE):
            slide = draw(theme)
            for kind in ("svg", "png"):
                path = folder / f"{name}-{theme.name}.{kind}"
                metadata = {"Title": (draw.__doc__ or "").strip()} | ({"Date": None} if kind == "svg" else {})
                slide.figure.savefig(path, dpi=144.004, metadata=metadata, facecolor=theme.paper)
                made.append(path)
    return made
