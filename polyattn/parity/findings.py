"""What `diagnose` found, in words."""

from __future__ import annotations

from dataclasses import dataclass

from polyattn.conventions.settings import Settings
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
