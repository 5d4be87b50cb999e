"""Pictures: of masks, of weights, of the stages of a trace; in sight on white paper and on black."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from polyattn.arrays import Array, backend_of, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BAD",
    "GOOD",
    "INK",
    "TILE",
    "draw_stages",
    "drawing",
    "heat_maps",
    "html_table",
    "mask_figure",
    "mask_text",
    "range_of",
]

INK, TILE = "#767676", "#3b82f6"  # nobody knows the page: a notebook's may be light or dark
PASSES = 2  # of the layout: the second changes nothing that is as wide as a letter
#: What stands in a column of numbers: 1.5, 2^126, 1e-7, -, inf, nothing.
_NUMBER = re.compile(r"-?[\d.,^+e-]*|-?inf|nan")
GOOD, BAD = "#2f855a", "#d1453b"


def mask_text(rows: list[list[bool]]) -> str:
    """A line per query, ``#`` where it may attend."""
    return "\n".join(" ".join("#" if allowed else "." for allowed in row) for row in rows)


def mask_figure(rows: list[list[bool]], title: str) -> Figure:
    """The mask as an image: queries downwards, keys to the right, a tile where a query may attend."""
    with drawing("polyattn.masks.Mask.figure") as figure:
        from matplotlib.colors import ListedColormap

        axes = figure.subplots()
        axes.imshow(rows, cmap=ListedColormap(["none", TILE]), vmin=0, vmax=1, interpolation="nearest")
        _name_axes(axes, title)
    return figure


def draw_stages(trace: Any, batch: int, head: int) -> Figure:
    """The stages with a column for each key, side by side; hidden scores are left out."""
    stages = [stage for stage in trace if stage.axes == "BHLS"]
    with drawing("polyattn.Trace.figure", (3.2 * len(stages), 3.4)) as figure:
        for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
            values = backend_of(stage.value).to_numpy(stage.value)[batch, head]
            shown = [[x if abs(x) != float("inf") else float("nan") for x in row] for row in values.tolist()]
            image = axes.imshow(
                shown, cmap="magma" if "weights" in stage.name else "coolwarm", interpolation="nearest"
            )
            _name_axes(axes, stage.name)
            figure.colorbar(image, ax=axes, shrink=0.7)
    return figure


def _name_axes(axes: Any, title: str) -> None:
    axes.set(title=title, xlabel="key", ylabel="query")
    for axis in (axes.xaxis, axes.yaxis):  # there is no key 2.5
        axis.get_major_locator().set_params(integer=True)


@contextmanager
def drawing(who: str, size: tuple[float, float] | None = None) -> Iterator[Figure]:
    """A figure on transparent paper that a notebook shows by itself, without pyplot or %matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            f"{who}: expected the package matplotlib, which draws, got: {error}; pip install 'polyattn[plot]'"
        ) from None
    from io import StringIO

    class Drawing(Figure):
        """A figure that shows itself."""

        def _repr_svg_(self) -> str:
            file = StringIO()
            self.savefig(file, format="svg", metadata={"Date": None})
            return file.getvalue()

    class Settled(ConstrainedLayoutEngine):
        """Room for the words that are drawn: the first pass may change how long an axis is, and that which numbers stand at it."""

        def execute(self, fig: Figure) -> None:
            for _ in range(PASSES):
                super().execute(fig)

    coloured = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    plain = {"savefig.transparent": True, "text.usetex": False}
    with rc_context(dict.fromkeys(coloured, INK) | plain):
        figure = Drawing(figsize=size, layout=Settled(), facecolor="none")
        yield figure
        for axes in figure.axes:
            axes.set_facecolor("none")


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in HTML, its cells escaped; columns of numbers end at one edge, others begin at one."""
    rows = [list(row) for row in rows]
    sides = [
        "right" if all(_NUMBER.fullmatch(row[i]) for row in rows) else "left" for i in range(len(headings))
    ]

    def line(cells: Sequence[str], tag: str) -> str:
        return (
            "<tr>"
            + "".join(
                f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            + "</tr>"
        )

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(headings, 'th')}</thead><tbody>{body}</tbody></table>"


def range_of(value: Array) -> tuple[float, float] | None:
    """Smallest and largest finite entry, None if there is none, or none that can be read."""
    backend = backend_of(value)
    xp = backend.xp
    if not readable(value):
        return None
    finite = xp.isfinite(value)
    if not backend.to_list(xp.any(finite)):
        return None
    low, high = xp.where(finite, value, xp.inf), xp.where(finite, value, -xp.inf)
    return float(backend.to_list(xp.min(low))), float(backend.to_list(xp.max(high)))


def heat_maps(weights: Array, *, most: int = 8, side: int = 32) -> str:
    """Weights (..., H, L, S) of the first item as SVG, a square a head, opaque where a weight is large.

    Empty where there are more than `side` queries or keys, or nothing to read: cells would be too small to see.
    """
    rows, keys = weights.shape[-2:]
    if not readable(weights) or not 0 < rows <= side or not 0 < keys <= side or 0 in weights.shape:
        return ""
    backend = backend_of(weights)
    heads = backend.to_list(backend.xp.reshape(weights, (-1, rows, keys))[:most, ...])
    count = weights.shape[-3] if weights.ndim > 2 else 1
    heads, cell = heads[:count], min(18, 160 / max(rows, keys))
    wide, high = cell * keys + 12, cell * rows + 24
    abreast = max(1, min(len(heads), int(720 // wide)))
    size = (abreast * wide, -(-len(heads) // abreast) * high)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]:g}" height="{size[1]:g}" '
        f'viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" font-family="sans-serif" font-size="11" fill="{INK}">'
        f"<title>weights of item 0: {rows} queries downwards, {keys} keys to the right</title>"
    ]
    for i, head in enumerate(heads):
        place = f"{i % abreast * wide:g} {i // abreast * high + 16:g}"
        parts.append(f'<g transform="translate({place})"><text y="-4">head {i}</text>')
        parts.append(f'<g transform="scale({cell:g})" shape-rendering="crispEdges" fill="{TILE}">')
        parts += [
            f'<path d="M{kv} {q}h1v1h-1z" fill-opacity="{min(w, 1.0):.2f}"/>'
            for q, row in enumerate(head)
            for kv, w in enumerate(row)
            if w >= 0.005
        ]
        parts.append(
            f'<path d="M0 0h{keys}v{rows}h-{keys}z" fill="none" stroke="{INK}" vector-effect="non-scaling-stroke"/></g></g>'
        )
    return "".join([*parts, "</svg>"])
