"""What `diagnose` found, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from polyattn.conventions.settings import Settings
from polyattn.draw import BAD, GOOD, html_table
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["Diagnosis", "Finding"]


@dataclass(frozen=True)
class Finding:
    """An explanation: the settings, in words, and how well they fit."""

    settings: Settings
    sentences: tuple[str, ...]
    eta: float

    def __str__(self) -> str:
        return f"{' and '.join(self.sentences)}: eta {self.eta:.2g}"


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. `findings` explain the output, the best first; those that cannot be told apart on
    these inputs stand side by side in `alike`. `nearest` is the best of the failed ones."""

    stated: float  # eta of the output against the contract
    findings: tuple[Finding, ...]
    alike: tuple[Finding, ...]
    nearest: Finding | None
    tried: int
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the output is what was asked for."""
        return self.stated <= ACCEPTANCE

    def __str__(self) -> str:
        stated = f"as stated: eta {self.stated:.2g}"
        if self.agrees:
            return f"matches the contract ({stated}, accepted up to {ACCEPTANCE:g}){self.note}"
        if not self.findings:
            near = "" if self.nearest is None else f"; the nearest is {self.nearest}"
            return f"no known convention explains this ({stated}; {self.tried} explanations tried{near}){self.note}"
        best = self.findings[0]
        lines = [f"matches {best}; {stated}"]
        lines += [f"  or, the same on these inputs: {' and '.join(other.sentences)}" for other in self.alike]
        lines += [f"  also possible: {other}" for other in self.findings[1:3]]
        return "\n".join(lines) + self.note

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, and every explanation with how well it fits."""
        if self.agrees:
            verdict = "This is what was meant."
        elif not self.findings:
            verdict = f"No known convention explains this; {self.tried} explanations were tried."
        else:
            verdict = f"This is not what was meant. It matches {' and '.join(self.findings[0].sentences)}."
        table = html_table(("", "what", "eta"), self._rows())
        note = f"<p>{escape(self.note.removeprefix('; '))}</p>" if self.note else ""
        return framed(verdict, self.agrees, table + note)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        yield "as stated", f"accepted up to {ACCEPTANCE:g}", f"{self.stated:.2g}"
        for kind, found in (
            ("explains it", self.findings[:1]),
            ("the same on these inputs", self.alike),
            ("also possible", self.findings[1:3]),
            ("the nearest", () if self.nearest is None or self.findings else (self.nearest,)),
        ):
            for finding in found:
                yield kind, " and ".join(finding.sentences), f"{finding.eta:.2g}"


def framed(verdict: str, good: bool, below: str) -> str:
    """A verdict as a notebook shows it, on whatever paper."""
    return (
        f'<div style="border-left: 4px solid {GOOD if good else BAD}; padding: 0.1em 1em">'
        f"<p><strong>{escape(verdict)}</strong></p>{below}</div>"
    )
