"""What `compare` found: who is right, by how much the other is wrong, where first, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from polyattn.draw import html_table
from polyattn.parity.framing import framed
from polyattn.parity.reasons import Reason
from polyattn.parity.repeat import Repeat
from polyattn.parity.report import (
    Cell,
    JUnitCase,
    Matrix,
    Page,
    Row,
    bars,
    eta_cell,
    finite,
    junit,
    render,
    write,
)
from polyattn.parity.sides import STAGES, Side, Worst
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Comparison", "Side", "Worst"]

_Eta = tuple[float | None, Reason | None]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`. Printed it is a verdict, a table, and what explains a difference."""

    sides: tuple[Side, Side]
    between: Mapping[str, float]  # quantity -> difference of the two in units of rounding
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    worst: Worst | None
    inputs: Mapping[str, Floats]
    environment: Mapping[str, str]
    repeat: Repeat
    instead: tuple[
        str, ...
    ] = ()  # what would have to be meant for both to be right, where they agree with each other

    @property
    def agrees(self) -> bool:
        """Whether both are the truth, forward and backward, to rounding."""
        return all(side.agrees for side in self.sides)

    @property
    def first_divergence(self) -> str | None:
        """The first stage, in the order of the definition, in which a side that recorded it is not the truth to rounding."""
        wrong = (name for name, *etas in self._stages() if max(x for x in etas if x is not None) > ACCEPTANCE)
        return next(wrong, None)

    @property
    def divergence(self) -> str:
        """A sentence on `first_divergence`; '' without one."""
        name = self.first_divergence
        if name is None:
            return ""
        told = [side for side in self.sides if name in side.stage_etas]
        if len(told) == 2:
            return f"first stage that differs: {name}"
        (side,) = told
        found = f"first stage of {side.name} that differs from the truth's: {name} (eta {side.stage_etas[name]:.3g})"
        before = [other for other in side.stage_etas if other in STAGES[: STAGES.index(name)]]
        return f"{found}; {', '.join(before)} agree{'s' * (len(before) == 1)}" if before else found

    def _stages(self) -> list[tuple[str, float | None, float | None]]:
        """Every stage that a side recorded, in the order of the definition."""
        f, g = (side.stage_etas for side in self.sides)
        return [(name, f.get(name), g.get(name)) for name in STAGES if name in f or name in g]

    @property
    def verdict(self) -> str:
        """One sentence."""
        f, g = self.sides
        failed = [side for side in self.sides if side.error]
        if failed:
            return "; ".join(f"{side.name} could not be judged: {side.error}" for side in failed)
        if self.agrees:
            worst = max((value, q) for side in self.sides for q, value in side.etas.items())
            rounding = "".join(
                f"; {side.name} with {' and '.join(side.allowed)}" for side in self.sides if side.allowed
            )
            return (
                f"AGREE: {f.name} and {g.name} are the definition of attention (worst eta {worst[0]:.2f}, {worst[1]})"
                f"{rounding}"
            )
        if not f.agrees and not g.agrees:
            # Each may be wrong by itself, or both follow another convention.
            both = max(self.between.values(), default=math.inf) <= 2 * ACCEPTANCE
            alike = "agree with each other" if both else "differ from each other too"
            asked = f"; did you mean {' or '.join(self.instead)}?" if self.instead else ""
            return f"DISAGREE: neither {f.name} nor {g.name} computes what was meant; they {alike}{asked}"
        wrong, right = (f, g) if g.agrees else (g, f)
        return f"DISAGREE: {right.name} computes what was meant, {wrong.name} does not"

    def rows(self) -> list[tuple[str, ...]]:
        """The table: quantity, eta of f, eta of g, and of their difference; a word where that is no number."""
        return [
            (q, *("-" if x is None else why.word if why else f"{x:.3g}" for x, why in etas))
            for q, *etas in self._etas()
        ]

    def _etas(self) -> list[tuple[str, _Eta, _Eta, _Eta]]:
        f, g = self.sides
        rows = []
        for q in {**f.etas, **g.etas}:
            why = [side.reasons.get(q) for side in self.sides]
            apart = self.between.get(q)
            both = next(filter(None, why), None) if apart is not None and math.isinf(apart) else None
            rows.append((q, (f.etas.get(q), why[0]), (g.etas.get(q), why[1]), (apart, both)))
        return rows

    def stage_rows(self) -> list[tuple[str, str, str]]:
        """Stage, eta of f, eta of g, for the stages that a side recorded."""
        return [
            (name, *("-" if x is None else f"{x:.3g}" for x in (f, g)))  # type: ignore[misc]
            for name, f, g in self._stages()
        ]

    def reasons(self) -> list[str]:
        """Why an eta is no number."""
        return [f"{side.name}: {q}: {why.sentence}" for side in self.sides for q, why in side.reasons.items()]

    def findings(self) -> list[str]:
        """What explains the sides that are wrong, and their gradients."""
        found = [f"{side.name} {side.diagnosis}" for side in self.sides if side.diagnosis is not None]
        return found + [
            f"{side.name}: {q} {cause}" for side in self.sides for q, cause in side.gradient_causes.items()
        ]

    def __str__(self) -> str:
        f, g = self.sides
        table = [("eta", f.name, g.name, "between"), *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [self.verdict]
        lines += ["  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in table]
        if self.worst is not None and not self.agrees:
            w = self.worst
            lines.append(
                f"worst: {w.quantity}{list(w.index)}: {f.name} {w.f:.9g}, {g.name} {w.g:.9g}, truth {w.truth:.9g}"
            )
        if self.divergence:
            lines.append(self.divergence)
        lines += self.reasons()
        lines += self.findings()
        lines += [f"{side.name}: {note}" for side in self.sides for note in side.notes]
        return "\n".join(lines)

    def save(self, path: Any) -> None:
        """Writes what `script` reads: the inputs, the arrays of what was meant, and what cannot be computed again."""
        arrays = {name: x.astype(np.float32) if x.dtype.kind == "V" else x for name, x in self.inputs.items()}
        arrays |= self.repeat.kept
        for letter, side, origin in zip("fg", self.sides, self.repeat.origins, strict=True):
            if origin is None and "out" in side.values:
                arrays[f"{letter}.out"] = side.values["out"]
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def script(self, path: str = "inputs.npz") -> str:
        """A program that makes this comparison again, with the arrays that `save(path)` keeps.

        It runs as it stands. A function that no program can import, as a lambda, returns there what it returned here.
        """
        sides = [(side.name, side.library, side.error) for side in self.sides]
        return self.repeat.script(str(path), list(self.inputs), sides, self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays as JSON values; what is not finite is null."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "acceptance": ACCEPTANCE,
            "dtype": self.dtype,
            "seed": self.repeat.seed,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "environment": dict(self.environment),
            "sides": [
                {
                    "name": side.name,
                    "library": side.library,
                    "agrees": side.agrees,
                    "eta": {q: finite(x) for q, x in side.etas.items()},
                    "stages": {q: finite(x) for q, x in side.stage_etas.items()},
                    "reasons": {q: why.sentence for q, why in side.reasons.items()},
                    "error": side.error,
                    "allowed": list(side.allowed),
                    "gradient_causes": side.gradient_causes,
                    "diagnosis": None if side.diagnosis is None else str(side.diagnosis),
                }
                for side in self.sides
            ],
            "instead": list(self.instead),
            "between": {q: finite(x) for q, x in self.between.items()},
            "first_divergence": self.first_divergence,
            "worst": None
            if self.worst is None
            else {
                "quantity": self.worst.quantity,
                "index": list(self.worst.index),
                "values": [finite(x) for x in (self.worst.f, self.worst.g, self.worst.truth)],
            },
        }

    def to_junit(self) -> str:
        """A JUnit test suite: a test case for every quantity of each side."""
        return junit(
            "polyattn compare",
            [
                JUnitCase(
                    side.name,
                    q,
                    None if value <= ACCEPTANCE else f"eta {value:.3g} of {ACCEPTANCE:g}",
                    False,
                    properties={"eta": f"{value:.3g}"},
                )
                for side in self.sides
                for q, value in side.etas.items()
            ]
            + [
                JUnitCase(side.name, "call", side.error, True)
                for side in self.sides
                if side.error is not None
            ],
        )

    def to_html(self, path: Any = None, *, force: bool = False) -> str:
        """One self-contained page; written to `path` if given, over an existing file only with force=True.

        Where the two disagree the page ends with the `script` that shows it again, and what that reads is written beside
        it, to report.npz for report.html.
        """
        if path is None:
            return self._page("inputs.npz")
        path = Path(path)
        beside = path.with_suffix(".npz") if path.suffix != ".npz" else path.with_suffix(".inputs.npz")
        if not (self.agrees or force or path.exists()) and beside.exists():
            raise FileExistsError(
                f"polyattn.parity.Comparison.to_html: expected a new file for what the script reads, got {str(beside)!r}, "
                "which is there; force it, or name another page"
            )
        write(page := self._page(beside.name), path, force=force)
        if not self.agrees:
            self.save(beside)
        return page

    def _page(self, inputs: str) -> str:
        f, g = self.sides
        names = (f"{f.name} ({f.library})", f"{g.name} ({g.library})", "between")
        rows = [
            Row(q, [eta_cell(*a), eta_cell(*b), eta_cell(*c, 2 * ACCEPTANCE)]) for q, a, b, c in self._etas()
        ]
        matrices = [Matrix(f"eta in {self.dtype}", "quantity", names, rows)]
        if self._stages():
            note = f"The {self.divergence or 'stages do not differ'}."
            lines = [
                Row(name, [Cell("-") if x is None else eta_cell(x) for x in etas])
                for name, *etas in self._stages()
            ]
            matrices.append(Matrix("Stages", "stage", names[:2], lines, note))
        w = self.worst
        return render(
            Page(
                title=f"{f.name} and {g.name}",
                verdict=self.verdict,
                agrees=self.agrees,
                matrices=matrices,
                environment={**self.environment, "seed": str(self.repeat.seed)},
                bars=bars((side.name, max(side.etas.values(), default=math.inf)) for side in self.sides),
                findings=[*self.reasons(), *self.findings()],
                worst=""
                if w is None or self.agrees
                else f"{w.quantity}{list(w.index)}\n{f.name}: {w.f!r}\n{g.name}: {w.g!r}\ntruth: {w.truth!r}",
                script="" if self.agrees else self.script(inputs),
                notes=[f"{side.name}: {note}" for side in self.sides for note in side.notes],
            )
        )

    def _repr_html_(self) -> str:
        """In a notebook: the verdict, the table, and what explains a difference."""
        f, g = self.sides
        tables = [html_table(("eta", f.name, g.name, "between"), self.rows())]
        if stages := self.stage_rows():
            tables.append(
                html_table(
                    (f"stage (first that differs: {self.first_divergence or 'none'})", f.name, g.name), stages
                )
            )
        said = [*self.findings(), *(f"{side.name}: {note}" for side in self.sides for note in side.notes)]
        return framed(
            self.verdict, self.agrees, "".join([*tables, *(f"<p>{escape(text)}</p>" for text in said)])
        )
