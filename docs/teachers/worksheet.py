"""Attention by hand: a sheet of problems to print, and its solutions, which the library computes as the sheet is made.

python docs/teachers/worksheet.py docs/_build        # writes worksheet.pdf and solutions.pdf; or: make worksheet
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import by_eye
import by_hand
from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from paper import BOTTOM, DIM, LEFT, SOLVED, STYLE, TOP, WIDTH, Paper

__all__ = ["PROBLEMS", "Problem", "sheet", "write"]


@dataclass(frozen=True)
class Problem:
    """A problem: its name, the minutes it takes, the chapter before it, and what writes it on paper."""

    name: str
    minutes: int
    chapter: str
    write: Callable[[Paper], None]


#: A tuple for each page.
PROBLEMS = (
    (
        Problem("Scores, weights and their sum", 10, "01-scores", by_hand.scores),
        Problem("Six masks to shade", 10, "03-masks", by_eye.masks_to_shade),
    ),
    (
        Problem("Two queries beside four keys", 8, "03-masks", by_eye.places),
        Problem("Which head reads which", 5, "05-grouped-heads", by_eye.heads),
        Problem("A softmax in three tiles", 12, "10-online-softmax", by_hand.fold),
    ),
    (
        Problem("Positions by quarter turns", 12, "08-positions", by_hand.turns),
        Problem("What decoding keeps", 10, "13-caches", by_eye.caches),
    ),
    (
        Problem("The gradient of two weights", 12, "09-gradients", by_hand.gradients),
        Problem("Tiles that need no work", 6, "11-blockwise", by_eye.tiles),
    ),
    (
        Problem("A state instead of a softmax", 6, "15-linear", by_hand.states),
        Problem("Find the mistake", 15, "02-softmax", by_eye.mistakes),
    ),
)


def sheet(*, solved: bool) -> tuple[Paper, list[list[str]]]:
    """All pages, and the answers to each problem, printed or not."""
    paper, found, number = Paper(solved=solved), list[list[str]](), 0
    with rc_context(STYLE):
        for page in PROBLEMS:
            paper.new_page()
            _frame(paper, first=not found)
            for problem in page:
                number, before = number + 1, len(paper.answers)
                chapter = int(problem.chapter.partition("-")[0])
                paper.title(number, problem.name, f"chapter {chapter} \u00b7 {problem.minutes} min")
                problem.write(paper)
                found.append(paper.answers[before:])
        paper.check_room()
    return paper, found


def _frame(paper: Paper, *, first: bool) -> None:
    """What stands above and below a page."""
    foot = "solutions, computed by polyattn" if paper.solved else "without a calculator"
    paper.words(LEFT, BOTTOM + 5, f"Attention by hand \u00b7 {foot}", size=9, color=DIM)
    paper.words(
        LEFT + WIDTH, BOTTOM + 5, f"{len(paper.pages)} / {len(PROBLEMS)}", size=9, color=DIM, ha="right"
    )
    if not first:
        paper.y = TOP - 4
        return
    paper.words(LEFT, TOP + 6, "Attention by hand", size=24, weight="bold")
    if paper.solved:
        paper.words(LEFT + WIDTH, TOP + 6, "Solutions", size=24, color=SOLVED, ha="right")
    else:
        paper.words(LEFT + 100, TOP + 6, "name", size=10, color=DIM)
        paper.pages[-1].axes[0].plot((LEFT + 112, LEFT + WIDTH), (TOP + 6.5,) * 2, color=DIM, linewidth=0.6)
    paper.y = TOP + 9


def write(folder: Path) -> list[Path]:
    """worksheet.pdf and solutions.pdf in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, solved in (("worksheet", False), ("solutions", True)):
        path = folder / f"{name}.pdf"
        about = {
            "Title": f"Attention by hand: {name}",
            "Author": "polyattn",
            "CreationDate": None,
            "ModDate": None,
        }
        paper, _ = sheet(solved=solved)
        with rc_context(STYLE), PdfPages(path, metadata=about) as pdf:
            for page in paper.pages:
                pdf.savefig(page)
        made.append(path)
    return made


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])), sep="\n")
