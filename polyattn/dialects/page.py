"""The dialect table and the table of the libraries as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from polyattn.dialects.peers import PEERS, PeerOutcome
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.table import DIALECTS

_FAMILIES = {
    "PyTorch": ("torch.sdpa", "torch.flex", "torch.mha", "transformers"),
    "JAX and Keras": ("jax.nn", "flax.nnx", "equinox", "keras"),
    "ONNX": ("onnx.23", "onnx.24", "onnx.25"),
    "Kernels and others": ("flash_attn.2", "flash_attn.3", "flash_attn.4", "xformers", "x_transformers"),
}


def table_markdown() -> str:
    """Every question and every dialect's answer, as Markdown. † marks what was read and not tested."""
    assert {name for names in _FAMILIES.values() for name in names} == set(DIALECTS)
    parts = []
    for family, names in _FAMILIES.items():
        dialects = [DIALECTS[name] for name in names]
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
    page = _section("dialects").sub(lambda found: f"{found[1]}{table_markdown().strip()}{found[3]}", page)
    if outcomes is None:
        return page
    peers = peers_markdown(outcomes).strip()
    return _section("peers").sub(lambda found: f"{found[1]}{peers}{found[3]}", page)


def _section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)


def peers_markdown(outcomes: Iterable[PeerOutcome]) -> str:
    """What every library made of every case: agrees with the contract (eta), does not, or cannot say it (–)."""
    table: dict[str, dict[str, PeerOutcome]] = {}
    for outcome in outcomes:
        table.setdefault(outcome.case, {})[outcome.peer] = outcome
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
    number = (
        "inf"
        if math.isinf(outcome.eta)
        else f"{outcome.eta:.2f}"
        if outcome.eta < 100
        else f"{outcome.eta:.0e}"
    )
    return f"{number} {'✓' if outcome.agrees else '✗'}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
