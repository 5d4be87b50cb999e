"""Tables on a terminal: whole at any width, in as many parts as that takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyattn.parity.report import visible
from polyattn.parity.verify import SHORT, Verification

__all__ = ["Column", "Grid", "mark", "print_grid", "print_whole", "result_grid"]


class Column(NamedTuple):
    """A column of verdicts; those of one group stay together where there is room."""

    head: str
    group: str
    cells: Sequence[str]  # "0.85 ✓", or "-"


class Grid(NamedTuple):
    """Rows with a name, and a verdict of each column."""

    title: str
    heads: Sequence[str]  # of what names a row
    names: Sequence[Sequence[str]]
    columns: Sequence[Column]


def result_grid(work: Verification) -> Grid:
    """Rows are cases, columns backends and dtypes, cells eta: the error in units of rounding."""

    def cell(case: str, bench: str, dtype: str) -> str:
        outcome = work.outcomes.get((case, bench, dtype))
        return "" if outcome is None else f"{outcome.word} {mark(outcome.agrees)}"

    return Grid(
        "eta: error over what rounding explains (accepted up to 4)",
        ["case"],
        [[c.name] for c in work.cases],
        [
            Column(f"{bench}\n{SHORT[dtype]}", bench, [cell(c.name, bench, dtype) for c in work.cases])
            for bench, dtype in work.columns
        ],
    )


def mark(agrees: bool) -> str:
    """A verdict that does not need colours."""
    return "✓" if agrees else "✗"


def print_grid(grid: Grid) -> Console:
    """Prints a grid; where a terminal is too narrow, some columns below others, each with its verdicts whole."""
    console = _console()
    if not _can_print(mark(True) + mark(False)):
        grid = grid._replace(columns=[c._replace(cells=[_spelt(x) for x in c.cells]) for c in grid.columns])
    console.print(grid.title, style="italic", soft_wrap=True, markup=False)
    for i, table in enumerate(_parts(grid, console.width if console.is_terminal else 10_000)):
        if i:
            console.print()
        needed = Console(width=10_000).measure(table).maximum
        _console(max(console.width, needed)).print(table)  # what is wider still, the terminal wraps
    return console


def _parts(grid: Grid, width: int) -> Iterator[Table]:
    names = ([head, *(row[i] for row in grid.names)] for i, head in enumerate(grid.heads))
    room = width - sum(map(_width, names))
    part: list[Column] = []
    for _, group in groupby(grid.columns, lambda column: column.group):
        together = list(group)
        if part and _needs([*part, *together]) > room:
            yield _table(grid, part)
            part = []
        for column in together:
            if part and _needs([*part, column]) > room:
                yield _table(grid, part)
                part = []
            part.append(column)
    yield _table(grid, part)


def _needs(columns: Sequence[Column]) -> int:
    return sum(_width([column.head, *column.cells]) for column in columns)


def _width(texts: Sequence[str]) -> int:
    """Of a column, with the space behind it."""
    return 1 + max(len(line) for text in texts for line in text.split("\n"))


def _table(grid: Grid, columns: Sequence[Column]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in grid.heads:
        table.add_column(_plain(head), no_wrap=True)
    for column in columns:
        table.add_column(_plain(column.head), justify="right", no_wrap=True)
    for i, names in enumerate(grid.names):
        table.add_row(*map(_plain, names), *(_coloured(column.cells[i]) for column in columns))
    return table


def _plain(text: str) -> Text:
    return Text(visible(text))


def _coloured(cell: str) -> Text:
    good, bad = ((mark(verdict), _spelt(mark(verdict))) for verdict in (True, False))
    return Text(visible(cell), "green" if cell.endswith(good) else "red" if cell.endswith(bad) else "")


def _spelt(cell: str) -> str:
    """In letters that every terminal has."""
    return cell.replace(mark(True), "ok").replace(mark(False), "WRONG")


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_whole(table: Table) -> Console:
    """Prints a table whose texts may be wrapped; a file or a pipe has no width, and no number is ever cut."""
    console = _console()
    if not console.is_terminal:
        console = _console(width=Console(width=10_000).measure(table).maximum)
    console.print(table)
    return console


def _console(width: int | None = None) -> Console:
    return Console(width=width, highlight=False)
