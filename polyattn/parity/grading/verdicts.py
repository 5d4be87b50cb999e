"""What grading found: a verdict for each rule, as text, as JSON, and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from polyattn.draw import html_table
from polyattn.parity.framing import framed
from polyattn.parity.grading.trial import Example
from polyattn.truth.spec import Floats

__all__ = ["Grade", "Verdict"]

KEPT, BROKEN, NOT = "kept", "broken", "not attempted"
FEW = 16  # numbers that are shown whole


@dataclass(frozen=True)
class Verdict:
    """One rule: `state` is "kept", "broken" or "not attempted". `mistake` is what explains the numbers of a broken one
    to rounding, by `polyattn.parity.diagnose`; where nothing known does it is "", and `usual` the mistake that is
    usually made there, if there is one."""

    name: str
    says: str
    rule: str  # its anchor in docs/contract.md
    state: str
    why: str = ""  # what the function did instead of answering, or why the rule was not attempted
    example: Example | None = None
    mistake: str = ""
    usual: str = ""

    @property
    def link(self) -> str:
        return f"docs/contract.md#{self.rule}"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The rule, the smallest example that breaks it, and the mistake."""
        yield f"{self.name}: {self.says} ({self.link})"
        if self.example is not None:
            for part in _as_text(self.example):
                yield f"  {part}"
        if self.why:
            yield f"  {self.why}"
        if self.mistake or self.usual:
            yield f"  mistake: {self.mistake}" if self.mistake else f"  usually: {self.usual}"
        elif self.state == BROKEN and not self.why:
            yield "  mistake: none that is known explains it"


@dataclass(frozen=True)
class Grade:
    """What `polyattn.parity.grade` found, rule by rule in the order in which they are taught."""

    function: str
    library: str
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether no rule is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """The verdicts of the rules that it breaks."""
        return tuple(verdict for verdict in self.verdicts if verdict.state == BROKEN)

    @property
    def verdict(self) -> str:
        """All in one line."""
        count = {state: sum(v.state == state for v in self.verdicts) for state in (BROKEN, KEPT, NOT)}
        told = ", ".join(f"{n} {state}" for state, n in count.items())
        return f"{self.function} on {self.library}: {told}"

    def __str__(self) -> str:
        return "\n".join(line for line, _ in self.lines())

    def lines(self) -> Iterator[tuple[str, str]]:
        """Every line with the state of the rule that it is about, "" for none."""
        yield self.verdict, BROKEN if self.broken else KEPT
        width = max((len(verdict.name) for verdict in self.verdicts), default=0)
        for v in self.verdicts:
            why = f" ({v.why})" if v.state == NOT else ""
            state = v.state.upper() if v.state == BROKEN else v.state
            yield f"  {state:<{len(NOT)}}  {v.name:<{width}}  {v.says}{why}", v.state
        for v in self.broken:
            yield "", ""
            for line in v.lines():
                yield line, ""

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, every rule, and the examples of those that are broken."""
        rows = [(v.state, v.name, v.says, v.mistake or v.usual or v.why) for v in self.verdicts]
        shown = "".join(f"<pre>{escape(str(verdict))}</pre>" for verdict in self.broken)
        return framed(
            self.verdict, self.passed, html_table(("", "rule", "what it says", "why"), rows) + shown
        )

    def to_json(self) -> dict[str, Any]:
        """The same as plain values; numbers that are not finite are words."""
        return {
            "function": self.function,
            "library": self.library,
            "passed": self.passed,
            "rules": [
                {"name": v.name, "says": v.says, "link": v.link, "state": v.state, "why": v.why or None,
                 "example": None if v.example is None else _as_json(v.example), "mistake": v.mistake or None, "usual": v.usual or None}
                for v in self.verdicts
            ],
        }  # fmt: skip


def _as_text(example: Example) -> Iterator[str]:
    yield "  ".join(f"{name} {_numbers(x)}" for name, x in example.given.items())
    expected, got, note = example.expected, example.got, example.note
    if got is None:
        return
    if expected is None:
        yield f"expected {note}"
        yield f"got      {_numbers(got)}"
        return
    beside = f"  ({note})" if note else ""
    yield f"expected {_numbers(expected)}{beside}"
    yield f"got      {_numbers(got)}"
    if got.size > 4 or _numbers(expected) == _numbers(got):
        with np.errstate(invalid="ignore"):
            place = np.unravel_index(int(np.argmax(np.abs(got - expected))), got.shape)
        yield f"at {tuple(map(int, place))}: {expected[place]:.9g} and {got[place]:.9g}"


def _numbers(x: Any) -> str:
    """[[1 2] [3 4]], or the shape alone where that would be long."""
    if not isinstance(x, np.ndarray):
        return str(x)
    if x.size > FEW:
        return f"of shape {x.shape}"
    return _nested(x.tolist())


def _nested(x: Any) -> str:
    if isinstance(x, list):
        return f"[{' '.join(map(_nested, x))}]"
    return str(x) if isinstance(x, bool) else f"{x:.4g}"


def _as_json(example: Example) -> dict[str, Any]:
    given: Mapping[str, Any] = {name: _plain(x) for name, x in example.given.items()}
    return {"given": given, "expected": _plain(example.expected), "got": _plain(example.got), "note": example.note or None}  # fmt: skip


def _plain(x: Floats | Any) -> Any:
    if isinstance(x, np.ndarray):
        x = x.tolist()
    if isinstance(x, list):
        return [_plain(part) for part in x]
    return str(x) if isinstance(x, float) and not np.isfinite(x) else x
