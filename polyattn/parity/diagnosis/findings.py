"""What `diagnose` found, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.draw import html_table
from polyattn.parity.diagnosis.profile import Profile
from polyattn.parity.framing import framed
from polyattn.truth.measure import ACCEPTANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis", "Finding"]


@dataclass(frozen=True)
class Finding:
    """An explanation in words, and how well it fits: the call that an implementation with these settings answered."""

    settings: Settings
    sentences: tuple[str, ...]
    eta: float
    call: Call | None = field(default=None, repr=False, compare=False)  # None: no call answers so
    part: str = ""  # which rows it explains, where it leaves some out

    def __str__(self) -> str:
        return f"{' and '.join(self.sentences)}: {self._fit()}"

    def _fit(self) -> str:
        return f"eta {self.eta:.2g}" + (f"; {self.part}" if self.part else "")


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. `findings` explain the output, the best first; those that cannot be told apart on
    these inputs stand side by side in `alike`. `rounded` is what a right program in half precision rounds, where that
    makes the output right. Where it is wrong, and how much, is its `profile`."""

    stated: float  # eta of the output against the contract
    findings: tuple[Finding, ...]
    alike: tuple[Finding, ...]
    tried: int
    note: str = ""
    rounded: Finding | None = None
    profile: Profile | None = None  # None where the output agrees

    @property
    def agrees(self) -> bool:
        """Whether the output is what was asked for."""
        return self.stated <= ACCEPTANCE or self.rounded is not None

    def __str__(self) -> str:
        stated = f"as stated: eta {self.stated:.2g}"
        if self.rounded is not None:
            words = " and ".join(self.rounded.sentences)
            return f"agrees; {words} (eta {self.rounded.eta:.2g}; {stated}){self.note}"
        if self.agrees:
            return f"matches the contract ({stated}, accepted up to {ACCEPTANCE:g}){self.note}"
        if not self.findings:
            where = "" if self.profile is None else f"\n  {self.profile.sentence}"
            return f"no known convention explains this ({stated}; {self.tried} explanations tried){self.note}{where}"
        best = self.findings[0]
        lines = [f"matches {best}; {stated}"]
        lines += [f"  or, the same on these inputs: {' and '.join(other.sentences)}" for other in self.alike]
        lines += [f"  also possible: {other}" for other in self.findings[1:3]]
        return "\n".join(lines) + self.note

    def figure(self) -> Figure:
        """A figure of matplotlib, which a notebook shows by itself: eta by head and row, for each batch item. ValueError
        where the output agrees."""
        if self.profile is None:
            raise ValueError(
                "polyattn.parity.Diagnosis.figure: expected an output that is wrong somewhere, got one that agrees; "
                "there is nothing to draw"
            )
        return self.profile.figure()

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, every explanation with how well it fits, and where the output is wrong."""
        if self.agrees:
            verdict = "This is what was meant."
        elif not self.findings:
            verdict = f"No known convention explains this; {self.tried} explanations were tried."
        else:
            verdict = f"This is not what was meant. It matches {' and '.join(self.findings[0].sentences)}."
        table = html_table(("", "what", "eta"), self._rows())
        note = f"<p>{escape(self.note.removeprefix('; '))}</p>" if self.note else ""
        where = "" if self.profile is None or self.findings else self.profile._repr_html_()
        return framed(verdict, self.agrees, table + note + where)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        yield "as stated", f"accepted up to {ACCEPTANCE:g}", f"{self.stated:.2g}"
        rounded = () if self.rounded is None else (self.rounded,)
        for kind, found in (
            ("rounded, as may be", rounded),
            ("explains it", self.findings[:1]),
            ("the same on these inputs", self.alike),
            ("also possible", self.findings[1:3]),
        ):
            for finding in found:
                what = " and ".join(finding.sentences)
                yield kind, f"{what}; {finding.part}" if finding.part else what, f"{finding.eta:.2g}"
