"""The table of `polyattn verify` on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyattn.parity.judging import Outcome
from polyattn.parity.report import number
from polyattn.parity.verify import SHORT, Verification

__all__ = ["print_whole", "result_table"]


def result_table(work: Verification) -> Table:
    """Rows are cases, columns backends and dtypes, cells eta: the error in units of rounding."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        title="eta: error over what rounding explains (accepted up to 4)",
        title_justify="left",
    )
    table.add_column("case", no_wrap=True)
    for bench, dtype in work.columns:
        table.add_column(f"{bench}\n{SHORT[dtype]}", justify="right", no_wrap=True)
    for c in work.cases:
        cells = [_cell(work.outcomes.get((c.name, bench, dtype))) for bench, dtype in work.columns]
        table.add_row(escape(c.name), *cells)
    return table


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if outcome.error:
        return "[red]error ✗"
    return f"[green]{number(outcome.eta)} ✓" if outcome.agrees else f"[red]{number(outcome.eta)} ✗"


def print_whole(table: Table) -> Console:
    """Prints a table; a file or a pipe has no width, and no number is ever cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=Console(width=10_000).measure(table).maximum)
    console.print(table)
    return console
