"""The cards of these pages, and what their cells answer: read by tests/house/test_mistakes_pages.py.

python docs/mistakes/cards.py    # writes the table of index.md

A card is a heading, its numbers, and cells: the wrong code, a law asked about it, `diagnose` where it can be asked, and
the right code with the same law. The first cell of a page is for all.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
INDEX = HERE / "index.md"
PAGES = ("axes", "softmax", "masks", "heads", "layers", "python", "words")
MARKS = ("<!-- cards -->\n\n", "\n<!-- end of cards -->")
CELL = re.compile(r"^```\{code-cell\}\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Card(NamedTuple):
    """One mistake."""

    page: str
    title: str
    numbers: tuple[int, ...]
    often: str  # "twice", where it was counted more than once
    cells: tuple[str, ...]

    @property
    def link(self) -> str:
        slug = re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")
        return f"[{self.title}]({self.page}.md#{slug})"


class Answers(NamedTuple):
    """What the cells of a card gave."""

    card: Card
    law: str
    wrong: Any  # the verdict on the wrong code
    right: Any
    diagnosis: Any  # or None, where there is no result to diagnose

    @property
    def row(self) -> str:
        """Its line in the table."""
        named = ""
        if self.diagnosis is not None:
            found = self.diagnosis.findings
            named = " and ".join(found[0].sentences) if found else "nothing known explains it"
        numbers = ", ".join(map(str, self.card.numbers))
        return f"| {numbers} | {self.card.link} | `{self.law}` | {named} |"


def text_of(page: str) -> str:
    return (HERE / f"{page}.md").read_text(encoding="utf-8")


def cards(page: str) -> list[Card]:
    """The cards of a page, in order."""
    found = []
    for part in re.split(r"^## ", text_of(page), flags=re.MULTILINE)[1:]:
        title, numbers, often = re.match(r"(.*)\n\nNo\. ([\d, ]+)(?:: counted (.*))?\n\n", part).groups()  # type: ignore[union-attr]
        found.append(
            Card(page, title, tuple(map(int, numbers.split(", "))), often or "", tuple(CELL.findall(part)))
        )
    return found


def answers(page: str) -> Iterator[Answers]:
    """Runs the cells of a page in order, in one namespace, as a build does."""
    names: dict[str, Any] = {}
    shown(CELL.findall(text_of(page).partition("\n## ")[0])[0], names)
    for card in cards(page):
        given = [value for cell in card.cells if (value := shown(cell, names)) is not None]
        wrong, *diagnosis, right = given
        asked = ast.parse(card.cells[1]).body[-1]
        law = asked.value.func.id  # type: ignore[attr-defined]
        yield Answers(card, law, wrong, right, diagnosis[0] if diagnosis else None)


def shown(cell: str, names: dict[str, Any]) -> Any:
    """What a notebook shows below a cell: the value of its last expression, None if there is none."""
    *body, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


def table() -> str:
    """A line for each card, by their first numbers."""
    found = sorted((found for page in PAGES for found in answers(page)), key=lambda x: x.card.numbers)
    head = ["| No. | mistake | the law that finds it | what `diagnose` says |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(answered.row for answered in found)]) + "\n"


def main() -> None:
    page = INDEX.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    INDEX.write_text(f"{before}{MARKS[0]}{table()}{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
