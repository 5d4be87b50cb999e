"""Runs cases x backends x dtypes and tells who agrees: the work behind `polyattn verify`."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from polyattn.parity.bench import BENCHES, Bench, load_bench
from polyattn.parity.case import Case
from polyattn.parity.cases import cases
from polyattn.parity.environment import environment
from polyattn.parity.judging import Outcome, run_cases
from polyattn.parity.report import Cell, JUnitCase, Matrix, Page, Row, bars, finite, junit, render
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["QUICK", "SHORT", "Trial", "Verification", "plan"]

SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}

#: The cases of a quick look, in float32: a plain one, and one of each kind that libraries have differed in.
QUICK = ("plain", "causal last rows", "rows that see nothing", "poison in hidden keys", "one kv head", "sinks", "MiniLM layer 1")  # fmt: skip

PACE = 0.06  # seconds for a result where a bench does not say (2026-11)
WHOLE = 20  # results that take as long as a whole model does


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
    quick: bool = False  # a part, and said to be one
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
        part = "; a quick look, leave out --quick for all" if self.quick else ""
        if self.agrees:
            return (
                f"AGREE: {len(self.outcomes)} results of {libraries} are the definition of attention; "
                f"worst eta {worst.eta:.2f} of {ACCEPTANCE:g} allowed ({worst.case}, {worst.bench} {worst.dtype}){part}"
            )
        return (
            f"DISAGREE: {len(self.disagreements)} of {len(self.outcomes)} results of {libraries} "
            f"exceed eta = {ACCEPTANCE:g}{part}"
        )

    @property
    def announcement(self) -> str:
        """What will be run, and for about how long."""
        where = [
            f"{bench.name} ({' '.join(SHORT[dtype] for name, dtype in self.columns if name == bench.name)})"
            for bench in self.benches
        ]
        named = ", ".join(case.name for case in self.cases)
        which = f"{len(self.cases)} cases" if len(self.cases) > 9 else named
        count = sum(1 for _ in self.places())
        results = "1 result" if count == 1 else f"{count} results"
        return f"{results} of {', '.join(where)}, on {which}; {about(self.seconds)}"

    @property
    def seconds(self) -> float:
        """About how long it will take on two idle cores."""
        return sum(
            getattr(bench, "pace", PACE) * (1 if isinstance(case, Case) else WHOLE)
            for case, bench, _ in self.places()
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
            started = time.perf_counter()
            if isinstance(case, Case):
                (outcome,) = run_cases(bench, dtypes=[dtype], only=[case], seed=self.seed)
            else:
                outcome = case.judge(bench, dtype)
            outcome = replace(outcome, seconds=time.perf_counter() - started)
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
            "quick": self.quick,
            "outcomes": [
                {
                    "case": o.case,
                    "backend": o.bench,
                    "dtype": o.dtype,
                    "agrees": o.agrees,
                    "eta": {name: finite(value) for name, value in o.etas.items()},
                    "floor_ratio": o.floor if o.floor is None else finite(o.floor),
                    "reasons": {name: reason.sentence for name, reason in o.reasons.items()},
                    "error": o.error,
                    "seconds": o.seconds,
                }
                for o in self.outcomes.values()
            ],
        }

    def to_junit(self) -> str:
        """A JUnit test suite, a test case for every result with its time and its etas."""
        return junit(
            "polyattn verify",
            [
                JUnitCase(
                    f"{o.bench}.{o.dtype}",
                    o.case,
                    None if o.agrees else str(o),
                    o.error is not None,
                    o.seconds,
                    {f"eta {name}": f"{value:.3g}" for name, value in o.etas.items()}
                    | ({} if o.floor is None else {"floor ratio": f"{o.floor:.3g}"}),
                )
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
    quick: bool = False,
) -> Verification:
    """What to run: empty sequences mean everything that is installed. more: beside the cases of the contract.

    quick: of the cases those in QUICK, and where no dtype is named those in float32.

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
    chosen = tuple(
        c
        for c in available
        if (not only or any(word.lower() in c.name.lower() for word in only))
        and (not quick or only or c.name in QUICK)
    )
    dtypes = ("float32",) if quick and not dtypes else dtypes
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
    work = Verification(seed, chosen, loaded, columns, said, quick)
    if not any(True for _ in work.places()):
        raise ValueError(
            f"polyattn verify: expected a case that runs on {', '.join(b.name for b in loaded)} in "
            f"{' or '.join(dtypes or SHORT)}, got none among {', '.join(c.name for c in chosen)}; choose others"
        )
    return work


def _outcome_cell(outcome: Outcome | None) -> Cell:
    if outcome is None:
        return Cell("")
    return Cell(outcome.word, outcome.agrees, str(outcome))


def about(seconds: float) -> str:
    """A length of time as people say it.

    >>> about(4), about(33), about(150)
    ('about 5 seconds on two cores', 'about 40 seconds on two cores', 'about 3 minutes on two cores')
    """
    if seconds <= 90:
        step = 5 if seconds <= 20 else 10
        return f"about {max(step * math.ceil(seconds / step), step)} seconds on two cores"
    return f"about {math.ceil(seconds / 60)} minutes on two cores"
