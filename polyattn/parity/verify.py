"""Runs cases x backends x dtypes and tells who agrees: the work behind `polyattn verify`."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyattn.parity.bench import BENCHES, Bench, load_bench
from polyattn.parity.case import Case
from polyattn.parity.cases import cases
from polyattn.parity.environment import environment
from polyattn.parity.judging import Outcome, run_cases
from polyattn.parity.report import Cell, Matrix, Page, Row, bars, finite, junit, number, render
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["SHORT", "Trial", "Verification", "plan"]

SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class Trial(Protocol):
    """What is verified beside cases of attention: a whole model."""

    @property
    def name(self) -> str: ...

    def applies(self, bench: Bench, dtype: str) -> bool:
        """Whether it runs there."""

    def judge(self, bench: Bench, dtype: str) -> Outcome:
        """What it gives there."""


@dataclass
class Verification:
    """The outcomes of one run, and what they were run on."""

    seed: int
    cases: tuple[Case | Trial, ...]
    benches: list[Bench]
    columns: list[tuple[str, str]]  # (bench, dtype)
    notes: list[str] = field(default_factory=list)
    outcomes: dict[tuple[str, str, str], Outcome] = field(default_factory=dict)  # by case, bench, dtype

    @property
    def disagreements(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes.values() if not outcome.agrees]

    @property
    def agrees(self) -> bool:
        return bool(self.outcomes) and not self.disagreements

    @property
    def verdict(self) -> str:
        worst = max(self.outcomes.values(), key=lambda outcome: outcome.eta)
        libraries = ", ".join(f"{bench.name} {bench.version}" for bench in self.benches)
        if self.agrees:
            return (
                f"AGREE: {len(self.outcomes)} results of {libraries} are the definition of attention; "
                f"worst eta {worst.eta:.2f} of {ACCEPTANCE:g} allowed ({worst.case}, {worst.bench} {worst.dtype})"
            )
        return (
            f"DISAGREE: {len(self.disagreements)} of {len(self.outcomes)} results of {libraries} "
            f"exceed eta = {ACCEPTANCE:g}"
        )

    def places(self) -> Iterator[tuple[Case | Trial, Bench, str]]:
        """What is run where: not every model runs everywhere."""
        for bench in self.benches:
            for dtype in (dtype for name, dtype in self.columns if name == bench.name):
                for case in self.cases:
                    if isinstance(case, Case) or case.applies(bench, dtype):
                        yield case, bench, dtype

    def run(self) -> Iterator[Outcome]:
        """Runs what is planned, a result at a time."""
        for case, bench, dtype in self.places():
            if isinstance(case, Case):
                (outcome,) = run_cases(bench, dtypes=[dtype], only=[case], seed=self.seed)
            else:
                outcome = case.judge(bench, dtype)
            self.outcomes[outcome.case, outcome.bench, outcome.dtype] = outcome
            yield outcome

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; an infinite eta is null."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "acceptance": ACCEPTANCE,
            "seed": self.seed,
            "python": platform.python_version(),
            "versions": {bench.name: bench.version for bench in self.benches},
            "notes": self.notes,
            "outcomes": [
                {
                    "case": o.case,
                    "backend": o.bench,
                    "dtype": o.dtype,
                    "agrees": o.agrees,
                    "eta": {name: finite(value) for name, value in o.etas.items()},
                    "floor_ratio": o.floor if o.floor is None else finite(o.floor),
                    "error": o.error,
                }
                for o in self.outcomes.values()
            ],
        }

    def to_junit(self) -> str:
        """A JUnit test suite, a test case for every result."""
        return junit(
            "polyattn verify",
            [
                (f"{o.bench}.{o.dtype}", o.case, None if o.agrees else str(o), o.error is not None)
                for o in self.outcomes.values()
            ],
        )

    def to_html(self) -> str:
        """One self-contained page."""
        columns = [f"{bench} {dtype}" for bench, dtype in self.columns]
        rows = []
        for case in self.cases:
            outcomes = [self.outcomes.get((case.name, bench, dtype)) for bench, dtype in self.columns]
            rows.append(Row(case.name, [_outcome_cell(outcome) for outcome in outcomes]))
        largest = [
            (name, max(o.eta for o in self.outcomes.values() if (o.bench, o.dtype) == column))
            for name, column in zip(columns, self.columns, strict=True)
        ]
        return render(
            Page(
                title="polyattn verify",
                verdict=self.verdict,
                agrees=self.agrees,
                matrices=[Matrix("eta of every case", "case", columns, rows)],
                environment={**environment(), "seed": str(self.seed)},
                bars=bars(largest),
                findings=[str(outcome) for outcome in self.disagreements],
                notes=self.notes,
            )
        )


def plan(
    backends: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int = 0,
    *,
    more: Sequence[Case | Trial] = (),
    notes: Sequence[str] = (),
) -> Verification:
    """What to run: empty sequences mean everything that is installed. more: beside the cases of the contract.

    ValueError for an unknown backend, dtype or case; MissingBench for a backend that cannot be loaded.
    """
    if wrong := [dtype for dtype in dtypes if dtype not in SHORT]:
        raise ValueError(
            f"polyattn verify: expected a dtype among {', '.join(SHORT)}, got {wrong[0]!r}; choose one"
        )
    available, said = (*cases(), *more), list(notes)
    for word in only:
        if not any(word.lower() in c.name.lower() for c in available):
            raise ValueError(
                f"polyattn verify: expected a part of the name of a case, got {word!r}; there are "
                f"{', '.join(c.name for c in available)}" + "".join(f"; {note}" for note in said)
            )
    chosen = tuple(c for c in available if not only or any(word.lower() in c.name.lower() for word in only))
    loaded = [load_bench(name, who="polyattn verify") for name in backends]
    for name in () if backends else BENCHES:
        try:
            loaded.append(BENCHES[name]())
        except ImportError as error:
            said.append(f"{name} was not run: {error}")
    columns = [
        (b.name, dtype)
        for b in loaded
        for dtype in SHORT
        if dtype in b.dtypes and (not dtypes or dtype in dtypes)
    ]
    work = Verification(seed, chosen, loaded, columns, said)
    if not any(True for _ in work.places()):
        raise ValueError(
            f"polyattn verify: expected a case that runs on {', '.join(b.name for b in loaded)} in "
            f"{' or '.join(dtypes or SHORT)}, got none among {', '.join(c.name for c in chosen)}; choose others"
        )
    return work


def _outcome_cell(outcome: Outcome | None) -> Cell:
    if outcome is None:
        return Cell("")
    return Cell("error" if outcome.error else number(outcome.eta), outcome.agrees, str(outcome))
