"""The lists that `polyattn dialects` and `polyattn verify --peers` print: dialects, answers, verdicts."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from polyattn.dialects.markdown import cell
from polyattn.dialects.peers import PeerOutcome, by_case
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Record
from polyattn.dialects.table import DIALECTS
from polyattn.parity.terminal import Column, Grid

__all__ = ["answer_list", "dialect_list", "peers"]


def dialect_list() -> Table:
    """All dialects."""
    table = _table("dialect", "what it is", "version", "answers tested")
    for d in DIALECTS.values():
        tested = sum(claim.tested for claim in d.answers.values())
        table.add_row(d.name, escape(d.what), d.version, f"{tested} of {len(d.answers)}")
    return table


def answer_list(d: Record) -> Table:
    """What one dialect answers."""
    table = _table("question", d.name, "note")
    for name, claim in d.answers.items():
        says = d.choice(name).says + ("" if claim.tested else " (read, not tested)")
        table.add_row(QUESTIONS[name].asks, escape(says), escape(claim.note))
    return table


def peers(outcomes: Iterable[PeerOutcome]) -> Grid:
    """Rows are cases, columns libraries, cells eta in float32; a dash where the case cannot be said."""
    rows = by_case(outcomes)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return Grid(
        "eta of every library, asked in its own words (accepted up to 4; - cannot be said)",
        ["case", "rules"],
        [[case, next(iter(row.values())).rules] for case, row in rows.items()],
        [
            Column(
                name.replace(" ", "\n"),
                name,
                [
                    cell(row[name]) if name in row and row[name].eta is not None else "-"
                    for row in rows.values()
                ],
            )
            for name in names
        ],
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column == "dialect", overflow="fold")
    return table
