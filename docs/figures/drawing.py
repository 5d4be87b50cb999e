"""What the pictures of pages are made of: heat maps, curves, numbered cells, as SVG text without a package that draws.

Ink is grey, the ground transparent: both are in sight on white paper and on black. Blue is more than 0, orange less, and a
cell is the more opaque the larger its number; curves differ in dashes too, and their names stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

INK, BLUE, ORANGE = "#767676", "#3b82f6", "#d97706"
#: the colour and the dashes of each curve; no two that only hue tells apart
STROKES = (
    (BLUE, ""),
    (ORANGE, "7 3"),
    ("#0d9488", "2 3"),
    ("#a855a8", "9 3 2 3"),
    (INK, "4 4"),
    ("#b45309", "1 4"),
    ("#64748b", "12 4"),
)


class Picture:
    """A drawing that grows by what is put on it; str() is the SVG."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'role="img" font-family="sans-serif" font-size="13" fill="{INK}"><title>{escape(title)}</title>'
        ]

    def __str__(self) -> str:
        return "".join(self._parts) + "</svg>\n"

    def put(self, *parts: str) -> None:
        self._parts += parts

    def heading(self, x: float, y: float, words: str) -> None:
        self.text(x, y, words, style='font-weight="600"')

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> None:
        """Words whose line begins, or has its middle or end, at (x, y); style: further attributes."""
        where = f'x="{x:g}" y="{y:g}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        self.put(f"<text {where}{' ' * bool(style)}{style}>{escape(words)}</text>")

    def heat(
        self,
        x: float,
        y: float,
        values: Any,
        cell: float,
        *,
        title: str = "",
        most: float | None = None,
        axes: tuple[str, str] = ("key", "query"),
    ) -> None:
        """A matrix, rows downwards; `most` is full colour, by default the largest absolute entry; NaN is left out."""
        values = np.asarray(values, float)
        rows, columns = values.shape
        most = float(np.nanmax(np.abs(values))) if most is None else most
        if title:
            self.text(x, y - 7, title)
        self.put(f'<g transform="translate({x:g} {y:g}) scale({cell:g})" shape-rendering="crispEdges">')
        for colour, sign in ((BLUE, 1), (ORANGE, -1)):
            tiles = [
                f'<path d="M{j} {i}h1v1h-1z" fill-opacity="{min(sign * w / most, 1):.2f}"/>'
                for i, row in enumerate(values)
                for j, w in enumerate(row)
                if sign * w / most >= 0.015
            ]
            if tiles:
                self.put(f'<g fill="{colour}">', *tiles, "</g>")
        self.put("</g>")
        edge = f'width="{columns * cell:g}" height="{rows * cell:g}" fill="none" stroke="{INK}"'
        self.put(f'<rect x="{x:g}" y="{y:g}" {edge}/>')
        across, down = axes
        if across:
            self.text(x + columns * cell / 2, y + rows * cell + 16, across, anchor="middle")
        if down:
            middle = (
                f'transform="translate({x - 8:g} {y + rows * cell / 2:g}) rotate(-90)" text-anchor="middle"'
            )
            self.put(f"<text {middle}>{escape(down)}</text>")

    def bar(self, x: float, y: float, width: float, height: float) -> None:
        self.put(f'<rect x="{x:g}" y="{y:g}" width="{max(width, 1):.1f}" height="{height:g}" fill="{BLUE}"/>')

    def cells(
        self,
        x: float,
        y: float,
        rows: Sequence[Sequence[tuple[str, float, str]]],
        size: tuple[float, float],
        names: Sequence[str],
    ) -> None:
        """Rows of boxes, each with a word, an opacity and a colour, and the name of each row before it."""
        wide, high = size
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            top = y + i * high
            if name:
                self.text(x - 8, top + high / 2 + 4, name, anchor="end")
            for j, (word, opacity, colour) in enumerate(row):
                box = f'x="{x + j * wide:g}" y="{top:g}" width="{wide - 2:g}" height="{high - 2:g}" rx="2"'
                self.put(
                    f'<rect {box} fill="{colour}" fill-opacity="{opacity:.2f}" stroke="{INK}" stroke-opacity="0.5"/>'
                )
                if word:
                    self.text(x + j * wide + wide / 2 - 1, top + high / 2 + 4, word, anchor="middle")

    def curves(
        self,
        box: tuple[float, float, float, float],
        xs: Sequence[float],
        curves: Mapping[str, Sequence[float]],
        *,
        title: str = "",
        labels: tuple[str, str],
        ticks: tuple[Mapping[float, str], Mapping[float, str]],
        log: tuple[bool, bool] = (False, False),
        steps: bool = False,
        legend: tuple[float, float],
    ) -> None:
        """Curves over xs in a box (x, y, width, height), which ends at the outermost ticks; legend: where the names begin."""
        x, y, width, height = box
        across = _scale(list(ticks[0]), x, x + width, log[0])
        up = _scale(list(ticks[1]), y + height, y, log[1])
        self.text(x, y - 10, title)
        grid = [f"M{across(at):.1f} {y:g}v{height:g}" for at in ticks[0]]
        grid += [f"M{x:g} {up(at):.1f}h{width:g}" for at in ticks[1]]
        self.put(f'<path d="{"".join(grid)}" fill="none" stroke="{INK}" stroke-opacity="0.3"/>')
        for at, word in ticks[0].items():
            self.text(round(across(at), 1), y + height + 16, word, anchor="middle")
        for at, word in ticks[1].items():
            self.text(x - 6, round(up(at) + 4, 1), word, anchor="end")
        self.text(x + width / 2, y + height + 34, labels[0], anchor="middle")
        middle = f'transform="translate({x - 48:g} {y + height / 2:g}) rotate(-90)" text-anchor="middle"'
        self.put(f"<text {middle}>{escape(labels[1])}</text>")
        for i, (name, values) in enumerate(curves.items()):
            colour, dashes = STROKES[i]
            stroke = f'fill="none" stroke="{colour}" stroke-width="2"' + (
                f' stroke-dasharray="{dashes}"' if dashes else ""
            )
            points = [(across(at), up(value)) for at, value in zip(xs, values, strict=True)]
            self.put(f'<path d="{_line(points, steps)}" {stroke}/>')
            line = legend[1] + 18 * i
            self.put(f'<path d="M{legend[0]:g} {line - 4:g}h28" {stroke}/>')
            self.text(legend[0] + 34, line, name)


def _scale(ticks: Sequence[float], start: float, stop: float, log: bool) -> Callable[[float], float]:
    def raw(value: float) -> float:
        return math.log(value) if log else float(value)

    low, high = raw(min(ticks)), raw(max(ticks))
    return lambda value: start + (stop - start) * (raw(value) - low) / (high - low)


def _line(points: Sequence[tuple[float, float]], steps: bool) -> str:
    (x, y), *rest = points
    drawn = f"M{x:.1f} {y:.1f}"
    for x, y in rest:
        drawn += f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}"
    return drawn
