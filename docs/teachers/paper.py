"""Sheets of paper: words, tables to fill in and lines to write on, once without answers and once with them.

Everything lies 20 mm or more from the left and right edge of A4 and 18 mm from its top and bottom, so that a printer for letter
paper, which cuts 9 mm above and below, cuts nothing off. Lengths are millimetres, from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

__all__ = ["BOTTOM", "LEFT", "STYLE", "TOP", "WIDTH", "Answer", "Paper"]

WIDE, HIGH = 210.0, 297.0
LEFT, TOP, WIDTH, BOTTOM = 20.0, 20.0, 170.0, 274.0
INK, DIM, LINE, GIVEN, SOLVED = "#1a1a1a", "#5a5a5a", "#8a8a8a", "#f0f1f3", "#1d4ed8"
#: Fonts that matplotlib carries itself, as text that can be searched.
STYLE: dict[str, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "pdf.fonttype": 42,
    "text.hinting": "none",  # as long on a screen as in a file
}
MONO = "DejaVu Sans Mono"
POINT = 25.4 / 72


@dataclass(frozen=True)
class Answer:
    """What a reader shall find: a box to write in, and in the solutions what belongs there."""

    text: str


Cell = str | Answer


@cache
def _wide(word: str, size: float) -> float:
    prop = FontProperties(family=STYLE["font.family"], size=size)
    return float(text_to_path.get_text_width_height_descent(word, prop, "$" in word)[0]) * POINT


class Paper:
    """Pages on which one writes from top to bottom; `y` is where the next line begins.

    solved: whether answers are printed. `answers` are those of the sheet in their order, printed or not.
    """

    def __init__(self, *, solved: bool) -> None:
        self.solved, self.pages, self.answers, self.y = solved, list[Figure](), list[str](), TOP

    def new_page(self) -> None:
        """A blank page; ValueError where the last one is too full."""
        self.check_room()
        figure = Figure(figsize=(WIDE / 25.4, HIGH / 25.4))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDE), ylim=(HIGH, 0))
        axes.axis("off")
        self.pages.append(figure)
        self.y = TOP

    def check_room(self) -> None:
        """A ValueError where more is written than a page has room for."""
        if self.y > BOTTOM:
            raise ValueError(
                f"page {len(self.pages)}: expected to end at {BOTTOM} mm, got {self.y:.1f}; move a problem"
            )

    def put(self, artist: Any) -> None:
        """A patch."""
        self.pages[-1].axes[0].add_patch(artist)

    def words(
        self, x: float, y: float, text: str, *, size: float = 11, color: str = INK, **style: Any
    ) -> None:
        """One line, its baseline at y."""
        self.pages[-1].axes[0].text(x, y, text, fontsize=size, color=color, **({"va": "baseline"} | style))

    def rule(self, y: float, *, color: str = INK, width: float = 0.8, dots: bool = False) -> None:
        """A line across."""
        style = {"linestyle": (0, (0.5, 2.5)), "dash_capstyle": "round"} if dots else {}
        self.pages[-1].axes[0].plot((LEFT, LEFT + WIDTH), (y, y), color=color, linewidth=width, **style)

    def title(self, number: int, text: str, beside: str) -> None:
        """The heading of a problem."""
        self.y += 7
        self.words(LEFT, self.y, f"{number}", size=15, weight="bold", color=SOLVED)
        self.words(LEFT + 9, self.y, text, size=14, weight="bold")
        self.words(LEFT + WIDTH, self.y, beside, size=10, color=DIM, ha="right")
        self.rule(self.y + 2.2, width=0.5, color=LINE)
        self.y += 8

    def paragraph(self, text: str, *, size: float = 11, color: str = INK, **style: Any) -> None:
        """Words, broken into lines; what stands between dollars stays together."""
        for line in _lines(text, WIDTH - 2, size):
            self.words(LEFT, self.y, line, size=size, color=color, **style)
            below = (
                2.0 if "\\sum" in line else 1.2 if "_" in line or "^" in line else 0.0
            )  # what hangs into the next line
            self.y += 1.42 * size * POINT + below
        self.y += 0.6

    def table(
        self,
        rows: Sequence[Sequence[Cell]],
        widths: Sequence[float],
        *,
        high: float = 8.0,
        x: float = LEFT,
        head: int = 1,
    ) -> None:
        """Cells side by side; the first `head` rows are names."""
        for i, row in enumerate(rows):
            left = x
            for cell, wide in zip(row, widths, strict=True):
                self.cell(left, self.y, wide, high, cell, name=i < head)
                left += wide
            self.y += high
        self.y += 6.5

    def cell(self, x: float, y: float, wide: float, high: float, cell: Cell, *, name: bool = False) -> None:
        """A word in a box; an answer is a box to write in."""
        blank = isinstance(cell, Answer)
        ground = "none" if name else "white" if blank else GIVEN
        self.put(
            Rectangle((x, y), wide, high, facecolor=ground, edgecolor="none" if name else LINE, linewidth=0.6)
        )
        if isinstance(cell, Answer):
            self.answers.append(cell.text)
            if not self.solved:
                return
        text = cell.text if isinstance(cell, Answer) else cell
        if not text:
            return
        size = 10 if name else 14 if "frac" in text else 12  # digits of fractions are small
        color = SOLVED if blank else DIM if name else INK
        style: dict[str, Any] = {"color": color, "size": size}
        self.words(x + wide / 2, y + high / 2, text, ha="center", va="center_baseline", **style)

    def squares(self, x: float, y: float, rows: Sequence[Sequence[bool]], side: float) -> None:
        """A grid to shade: in the solutions, where a query may look."""
        for i, row in enumerate(rows):
            for j, seen in enumerate(row):
                ground = "#8db4f7" if seen and self.solved else "white"
                box = ((x + j * side, y + i * side), side, side)
                self.put(Rectangle(*box, facecolor=ground, edgecolor=LINE, linewidth=0.6))
            self.words(x - 1.5, y + (i + 0.5) * side, str(i), size=8, color=DIM, ha="right", va="center")
        for j in range(len(rows[0])):
            self.words(x + (j + 0.5) * side, y - 1.2, str(j), size=8, color=DIM, ha="center")
        self.answers += ["".join("#" if seen else "." for seen in row) for row in rows]

    def room(self, lines: int, answer: str) -> None:
        """Dotted lines to write on; in the solutions the answer stands on them."""
        self.answers.append(answer)
        found = list(_lines(answer, WIDTH - 2, 11))
        if len(found) > lines:
            raise ValueError(f"expected an answer of {lines} lines, got {len(found)}: {answer}")
        for i in range(lines):
            self.y += 7.5
            self.rule(self.y, dots=True, color=DIM, width=0.9)
            if self.solved and i < len(found):
                self.words(LEFT, self.y - 1.2, found[i], color=SOLVED)
        self.y += 5.5

    def code(self, text: str, x: float, wide: float) -> None:
        """Lines of a program."""
        lines = text.strip().splitlines()
        size, step = 8.4, 4.1
        self.put(Rectangle((x, self.y), wide, step * len(lines) + 3, facecolor=GIVEN, edgecolor="none"))
        for i, line in enumerate(lines):
            style = {"family": MONO, "parse_math": False}
            self.words(x + 2.5, self.y + step * (i + 1), line, size=size, **style)
        self.y += step * len(lines) + 5


def _lines(text: str, wide: float, size: float) -> Iterator[str]:
    """A text broken into lines of at most that width."""
    parts = text.split("$")
    glued = "$".join(part.replace(" ", "\0") if i % 2 else part for i, part in enumerate(parts))
    line, length, space = "", 0.0, _wide("a b", size) - _wide("ab", size)
    for word in (word.replace("\0", " ") for word in glued.split()):
        own = _wide(word, size)
        if line and length + space + own > wide:
            yield line
            line, length = word, own
        else:
            line, length = f"{line} {word}".strip(), length + space * bool(line) + own
    yield line
