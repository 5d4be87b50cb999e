"""Runs cases x backends x dtypes and tells who agrees: the work behind `polyattn verify`."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyattn.parity.case import Case
from polyattn.parity.cases import cases
from polyattn.parity.report import junit, verification_page
from polyattn.testing import BENCHES, Bench, Outcome, run_cases
from polyattn.truth.measure import ACCEPTANCE

if TYPE_CHECKING:
    from polyattn.models.trial import Trial

SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def _onnx() -> Bench:
    from polyattn.parity.exported import OnnxBench

    return OnnxBench()


#: What can be verified: the array libraries, and the models that are exported from them.
SYSTEMS: Mapping[str, Callable[[], Bench]] = {**BENCHES, "onnx": _onnx}


class MissingBackend(LookupError):
    """A backend that was asked for cannot be loaded."""


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
                    "eta": {name: _finite(value) for name, value in o.etas.items()},
                    "floor_ratio": o.floor if o.floor is None else _finite(o.floor),
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
        return verification_page(self)


def plan(
    backends: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int = 0,
    benches: dict[str, Callable[[], Bench]] | None = None,
) -> Verification:
    """What to run: empty sequences mean everything that is installed.

    ValueError for an unknown backend, dtype or case; MissingBackend for one that cannot be loaded.
    """
    known = dict(SYSTEMS if benches is None else benches)
    available, notes = _available_cases()
    unknown = [name for name in backends if name not in known]
    if unknown:
        raise ValueError(f"unknown backend {unknown[0]!r}; there are {', '.join(known)}")
    if wrong := [dtype for dtype in dtypes if dtype not in SHORT]:
        raise ValueError(f"unknown dtype {wrong[0]!r}; there are {', '.join(SHORT)}")
    chosen = tuple(c for c in available if not only or any(word.lower() in c.name.lower() for word in only))
    for word in only:
        if not any(word.lower() in c.name.lower() for c in available):
            raise ValueError(
                f"no case has {word!r} in its name; there are: {', '.join([c.name for c in available])}"
                + "".join(f"; {note}" for note in notes)
            )
    loaded: list[Bench] = []
    for name in backends or known:
        try:
            loaded.append(known[name]())
        except ImportError as error:
            if backends:
                raise MissingBackend(
                    f"backend {name!r} was asked for and cannot be loaded: {error}"
                ) from error
            notes.append(f"{name} was not run: {error}")
    columns = [
        (b.name, dtype)
        for b in loaded
        for dtype in SHORT
        if dtype in b.dtypes and (not dtypes or dtype in dtypes)
    ]
    if not columns:
        raise ValueError(f"none of the backends has dtype {' or '.join(dtypes)}; choose another")
    work = Verification(seed, chosen, loaded, columns, notes)
    if not any(True for _ in work.places()):
        raise ValueError(
            f"none of the cases {', '.join(c.name for c in chosen)} runs on {', '.join(map(' '.join, columns))}; "
            "choose others"
        )
    return work


def _available_cases() -> tuple[tuple[Case | Trial, ...], list[str]]:
    try:
        from polyattn.models.real import real_cases
        from polyattn.models.trial import trials

        models, notes = trials()
        return (*cases(), *real_cases(), *models), notes
    except ImportError as error:
        return cases(), [f"real input was not run: {error}"]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
