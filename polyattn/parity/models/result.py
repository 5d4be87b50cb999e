"""What `compare_models` found: the verdict, a row for each tap, the components that are wrong, and their causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from polyattn.draw import html_table
from polyattn.parity.framing import framed
from polyattn.parity.models.blaming import WrongComponent
from polyattn.parity.report import finite, number
from polyattn.truth.measure import ACCEPTANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ModelComparison", "TapResult"]

MOST = 48  # rows that a terminal shows whole


@dataclass(frozen=True)
class TapResult:
    """One compared tap."""

    name: str
    port_name: str
    kind: str
    noise: float  # the unit over the size of the values
    free: float  # eta in the whole run
    forced: float | None  # eta with the reference's own inputs, the worst of its probes; None: not called
    cause: str
    between: bool  # forced between its neighbours' taps, not called alone
    excused: bool = False  # matched by order and shape, and not the same part after all

    @property
    def agrees(self) -> bool:
        """In the whole run and by itself, or not to be compared."""
        return self.excused or max(self.free, self.forced or 0.0) <= ACCEPTANCE


@dataclass(frozen=True)
class ModelComparison:
    """A port beside its reference. It prints as a verdict and a table.

    rows has a `TapResult` for each compared tap, in order. wrong: the components that are wrong by themselves, each with .name,
    .port_name, .kind, .eta and .cause. first: the first tap above the noise in the whole run, or None. weights: the
    parameters that differ. error: what the port raised, or None. notes: sentences on what else was noticed.
    """

    rows: Sequence[TapResult]
    wrong: Sequence[WrongComponent]
    weights: Sequence[Any]
    measured: str
    deterministic: bool
    error: str | None
    ran: int  # components of the port that finished
    notes: Sequence[str]
    environment: Mapping[str, str]

    @property
    def agrees(self) -> bool:
        """Whether every compared tap is right in the whole run, and every component by itself."""
        whole = any(row.name == "output" for row in self.rows)
        right = all(row.agrees for row in self.rows) and not self.wrong
        return self.error is None and self.deterministic and whole and right

    @property
    def first(self) -> str | None:
        """The first tap that differs in the whole run."""
        return next((row.name for row in self.rows if row.free > ACCEPTANCE and not row.excused), None)

    @property
    def verdict(self) -> str:
        """One sentence."""
        rows = self.rows
        if self.error is not None:
            before = f"the first {len(rows)} taps" if rows else "no tap"
            named = f"; wrong by themselves: {self._names()}" if self.wrong else ""
            return f"DISAGREE: the port stopped with {self.error}; {before} could be compared{named}"
        if not self.deterministic:
            return (
                "NOT JUDGED: two runs of one model differ, so the other cannot agree with both; see the notes"
            )
        if self.wrong:
            n = len(self.wrong)
            what = "component is wrong by itself" if n == 1 else "components are wrong by themselves"
            what = f"{n} of {len(rows)} " + (what if n > 1 else what.replace("component", "components"))
            return f"DISAGREE: {what}: {self._names()}"
        if self.agrees:
            rows = [row for row in rows if not row.excused]
            worst = max(rows, key=lambda row: max(row.free, row.forced or 0.0))
            eta = max(worst.free, worst.forced or 0.0)
            return (
                f"AGREE: all {len(rows)} taps are those of the reference (worst eta {eta:.2g}, {worst.name})"
            )
        if self.first is None:
            return "DISAGREE: the port has no counterpart of the reference's output"
        return f"DISAGREE: the first tap that differs is {self.first}, and every compared component is right by itself"

    def _names(self) -> str:
        names = [w.name for w in self.wrong]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def table(self) -> list[tuple[str, ...]]:
        """Tap, component kind, noise, eta of the whole run, eta with the reference's inputs, cause."""
        return [
            (
                row.name if row.name == row.port_name else f"{row.name} = {row.port_name}",
                row.kind,
                f"{row.noise:.1e}",
                number(row.free),
                "-" if row.forced is None else number(row.forced),
                row.cause,
            )
            for row in self.rows
        ]

    def findings(self) -> list[str]:
        """What is wrong, in sentences."""
        return [*map(str, self.wrong), *(f"weights: {difference.sentence}" for difference in self.weights)]

    def __str__(self) -> str:
        shown = list(self.table())
        left_out = ""
        if len(shown) > MOST:
            bad = [line for line, row in zip(shown, self.rows, strict=True) if not row.agrees][:MOST]
            left_out = f"({len(shown) - len(bad)} of {len(shown)} taps are not shown)"
            shown = bad
        table = [("tap", "kind", "noise", "error/noise", "by itself", "cause"), *shown]
        widths = [max(len(line[i]) for line in table) for i in range(5)]
        lines = [self.verdict]
        if self.rows:
            lines += [
                "  ".join([*(x.ljust(n) for x, n in zip(line, widths, strict=False)), line[5]]).rstrip()
                for line in table
            ]
        lines += [left_out] if left_out else []
        if self.first is not None:
            lines.append(f"first tap that differs: {self.first}")
        lines += self.findings()
        lines += [f"note: {note}" for note in (self.measured, *self.notes)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, the table, and what explains a difference."""
        table = html_table(("tap", "kind", "noise", "error/noise", "by itself", "cause"), self.table())
        said = [*self.findings(), self.measured, *self.notes]
        return framed(self.verdict, self.agrees, table + "".join(f"<p>{escape(text)}</p>" for text in said))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; what is not finite is null."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "acceptance": ACCEPTANCE,
            "first": self.first,
            "error": self.error,
            "deterministic": self.deterministic,
            "taps": [
                {
                    "name": row.name,
                    "port_name": row.port_name,
                    "kind": row.kind,
                    "noise": finite(row.noise),
                    "free": finite(row.free),
                    "forced": None if row.forced is None else finite(row.forced),
                    "agrees": row.agrees,
                    "cause": row.cause,
                }
                for row in self.rows
            ],
            "wrong": [
                {
                    "name": w.name,
                    "port_name": w.port_name,
                    "kind": w.kind,
                    "eta": finite(w.eta),
                    "probe": w.probe,
                    "cause": w.cause,
                }
                for w in self.wrong
            ],
            "weights": [
                {"name": d.name, "port_name": d.port_name, "sentence": d.sentence} for d in self.weights
            ],
            "notes": [self.measured, *self.notes],
            "environment": dict(self.environment),
        }

    def to_junit(self) -> str:
        """A JUnit test suite: a test case for every tap."""
        from polyattn.parity.models.showing import junit_of

        return junit_of(self)

    def to_html(self, path: Any = None, *, force: bool = False) -> str:
        """One self-contained page; written to `path` if given, over an existing file only with force=True."""
        from polyattn.parity.models.showing import page_of

        return page_of(self, path, force)

    def figure(self) -> Figure:
        """The taps from top to bottom: eta of the whole run, and of each component by itself; the line is what is accepted."""
        from polyattn.parity.models.showing import figure_of

        return figure_of(self)
