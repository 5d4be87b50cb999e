"""Dialects as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from polyattn.dialects.explain import Explanation, Trap
from polyattn.dialects.page import cell
from polyattn.dialects.peers import PeerOutcome
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Dialect
from polyattn.dialects.table import DIALECTS


def dialect_list() -> Table:
    """All dialects."""
    table = _table("dialect", "what it is", "version", "answers tested")
    for d in DIALECTS.values():
        tested = sum(claim.tested for claim in d.answers.values())
        table.add_row(d.name, escape(d.what), d.version, f"{tested} of {len(d.answers)}")
    return table


def answer_list(d: Dialect) -> Table:
    """What one dialect answers."""
    table = _table("question", d.name, "note")
    for name, claim in d.answers.items():
        says = d.choice(name).says + ("" if claim.tested else " (read, not tested)")
        table.add_row(QUESTIONS[name].asks, escape(says), escape(claim.note))
    return table


def explanation(found: Explanation) -> Table:
    """The traps between two dialects, those that bite first."""
    table = _table("", "question", *found.names, "as meant", "eta")
    for traps, word, colour in (
        (found.bites, "bites", "red"),
        (found.shared, "both", "yellow"),
        (found.lurks, "lurks", ""),
    ):
        for trap in traps:
            table.add_row(
                f"[{colour}]{word}" if colour else word,
                QUESTIONS[trap.question].asks,
                *_said(trap),
                *_sizes(trap),
            )
    return table


def _said(trap: Trap) -> list[str]:
    values = trap.values or (None, None)
    return [
        escape(says + (" -> raises" if refuses else "" if value is None else f" -> {value:.6g}"))
        for says, refuses, value in zip(trap.answers, trap.refuses, values, strict=True)
    ]


def _sizes(trap: Trap) -> tuple[str, str]:
    return ("", "") if trap.meant is None else (f"{trap.meant:.6g}", f"{trap.eta:.2g}")


def peers(outcomes: Iterable[PeerOutcome]) -> Table:
    """Rows are cases, columns libraries, cells eta in float32; a dash where the case cannot be said."""
    rows: dict[str, dict[str, PeerOutcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.case, {})[outcome.peer] = outcome
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = _table("case", "rules", *(name.replace(" ", "\n") for name in names))
    table.title = "eta of every library, asked in its own words (accepted up to 4; - cannot be said)"
    table.title_justify = "left"
    for case, row in rows.items():
        table.add_row(case, next(iter(row.values())).rules, *(_coloured(row.get(name)) for name in names))
    return table


def _coloured(outcome: PeerOutcome | None) -> str:
    if outcome is None or outcome.eta is None:
        return "-"
    return f"[{'green' if outcome.agrees else 'red'}]{cell(outcome)}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    return table
