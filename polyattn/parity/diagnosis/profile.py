"""Where an output is wrong, as it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from polyattn.draw import INK, TILE, drawing
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Profile"]

SHADES = " .:-=+*#%@"  # from right to the most wrong
WIDE, TALL = 64, 16  # characters of the picture, at most
DECADES = 1e3  # from the lightest shade to the darkest, at most
CELL = 14  # of the picture in a notebook, in its units


@dataclass(frozen=True)
class Profile:
    """Where an output is wrong, in words and as a picture: a line for each head of each batch item, rows to the right, from
    right (blank) to the most wrong (@), on a logarithmic scale. `etas` has the worst eta of every row, (B, Hq, rows)."""

    sentence: str
    etas: Floats
    rows: Floats  # which query rows the last axis counts

    def __str__(self) -> str:
        return f"{self.sentence}\n{self.picture()}"

    def picture(self) -> str:
        """The picture in characters."""
        lines = self._lines()
        names = [f"{i},{j}" if self.etas.shape[0] > 1 else f"{j}" for i, j in lines]
        wide = max(map(len, names), default=0)
        shown = [
            f"{name:>{wide}} |{''.join(SHADES[level] for level in self._levels(i, j))}|"
            for name, (i, j) in zip(names, lines, strict=True)
        ]
        left = self.etas.shape[0] * self.etas.shape[1] - len(lines)
        return "\n".join([*shown, f"and {left} more"] if left else shown)

    def _lines(self) -> list[tuple[int, int]]:
        """(item, head): all, or the most wrong of them."""
        flat = np.argsort(-self.etas.max(-1, initial=0.0).ravel(), kind="stable")[:TALL]
        return [(int(i) // self.etas.shape[1], int(i) % self.etas.shape[1]) for i in np.sort(flat)]

    def _levels(self, item: int, head: int) -> list[int]:
        """Of each row, or of the worst of several rows that share a character, how wrong from 0 to 9."""
        parts = np.array_split(self.etas[item, head], min(WIDE, max(self.etas.shape[2], 1)))
        worst = np.array([part.max(initial=0.0) for part in parts])
        most = self.etas[np.isfinite(self.etas)].max(initial=2 * ACCEPTANCE)
        least = max(ACCEPTANCE, most / DECADES)
        with np.errstate(divide="ignore"):
            level = 1 + np.log(np.minimum(worst, most) / least) / np.log(most / least) * (len(SHADES) - 2)
        level = np.where(worst > ACCEPTANCE, np.clip(level, 1, len(SHADES) - 1), 0)
        return [int(x) for x in np.round(level)]

    def figure(self) -> Figure:
        """A figure of matplotlib: eta by head and row, for each batch item."""
        items = self.etas.shape[0]
        with drawing("polyattn.parity.Diagnosis.figure", (6.4, 0.8 + 1.6 * items)) as figure:
            for item, axes in enumerate(figure.subplots(items, 1, squeeze=False)[:, 0]):
                shades = [self._levels(item, head) for head in range(self.etas.shape[1])]
                axes.imshow(shades, vmin=0, vmax=len(SHADES) - 1, cmap="magma_r", aspect="auto", interpolation="nearest",
                            extent=(-0.5, self.etas.shape[2] - 0.5, self.etas.shape[1] - 0.5, -0.5))  # fmt: skip
                axes.set(xlabel="row", ylabel="head", title=f"batch {item}" if items > 1 else "")
                for axis in (axes.xaxis, axes.yaxis):
                    axis.get_major_locator().set_params(integer=True)
            figure.suptitle(self.sentence, fontsize=9, parse_math=False, wrap=True)
        return figure

    def _repr_html_(self) -> str:
        """In a notebook: heads downwards, rows to the right, the darker the more wrong."""
        lines = self._lines()
        if not lines or not self.etas.shape[2]:
            return f"<p>{escape(self.sentence)}</p>"
        levels = [self._levels(i, j) for i, j in lines]
        wide, tall = 48 + CELL * len(levels[0]), CELL * len(lines)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}" '
            f'role="img" font-family="sans-serif" font-size="10" fill="{INK}">'
            f"<title>how wrong: heads downwards, rows to the right</title>"
        ]
        for y, ((item, head), line) in enumerate(zip(lines, levels, strict=True)):
            name = f"{item}, {head}" if self.etas.shape[0] > 1 else f"{head}"
            parts.append(f'<text x="0" y="{CELL * y + 11}">{name}</text>')
            parts += [
                f'<path d="M{48 + CELL * x} {CELL * y}h{CELL}v{CELL}h-{CELL}z" fill="{TILE}" fill-opacity="{level / 9:.2f}"/>'
                for x, level in enumerate(line)
                if level
            ]
        return f"<p>{escape(self.sentence)}</p>{''.join(parts)}</svg>"
