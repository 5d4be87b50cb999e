"""The dialect table and the table of the libraries as text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from polyattn.dialects.libraries import PEERS
from polyattn.dialects.peers import PeerOutcome, by_case
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.table import FAMILIES

__all__ = ["cell", "peers_markdown", "table_markdown", "update"]


def table_markdown() -> str:
    """Every question and every dialect's answer, as Markdown. † marks what was read and not tested."""
    parts = []
    for family, dialects in FAMILIES.items():
        names = [d.name for d in dialects]
        lines = [f"### {family}", ""]
        lines += [f"- `{d.name}`: {d.what}{f' ({d.version})' if d.version else ''}" for d in dialects]
        lines += ["", _row("", *(f"`{name}`" for name in names)), _row(*["---"] * (len(names) + 1))]
        for key, question in QUESTIONS.items():
            cells = [d.choice(key).says + ("" if d.answers[key].tested else " †") for d in dialects]
            lines.append(_row(question.asks, *cells))
        notes: dict[str, list[str]] = {}
        for d in dialects:
            for key, claim in d.answers.items():
                if claim.note:
                    notes.setdefault(f"{QUESTIONS[key].asks}: {claim.note}.", []).append(f"`{d.name}`")
            for note in d.notes:
                notes.setdefault(note, []).append(f"`{d.name}`")
        lines += ["", *(f"- {', '.join(who)}: {note}" for note, who in notes.items()), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def update(page: str, outcomes: Iterable[PeerOutcome] | None = None) -> str:
    """The text of docs/dialects.md with its table made anew; with outcomes also that of the libraries."""
    page = _replaced(page, "dialects", table_markdown())
    return page if outcomes is None else _replaced(page, "peers", peers_markdown(outcomes))


def _replaced(page: str, name: str, text: str) -> str:
    section = re.compile(rf"(<!-- {name} -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)
    return section.sub(lambda found: f"{found[1]}{text.strip()}{found[3]}", page)


def peers_markdown(outcomes: Iterable[PeerOutcome]) -> str:
    """What every library made of every case: agrees with the contract (eta), does not, or cannot say it (–)."""
    table = by_case(outcomes)
    names = [name for name in PEERS if any(name in row for row in table.values())]
    lines = [_row("case", "rules", *names), _row(*["---"] * (len(names) + 2))]
    for case, row in table.items():
        rules = next(iter(row.values())).rules
        lines.append(_row(case, rules, *(cell(row[name]) if name in row else "" for name in names)))
    return "\n".join(lines) + "\n"


def cell(outcome: PeerOutcome) -> str:
    """One outcome in a table."""
    if outcome.eta is None:
        return "–"
    number = outcome.word or (f"{outcome.eta:.2f}" if outcome.eta < 100 else f"{outcome.eta:.0e}")
    return f"{number} {'✓' if outcome.agrees else '✗'}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
