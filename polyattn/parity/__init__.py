"""Agreement, measured: cases that cover the contract, benches that run them, and why others give something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyattn.parity.comparing import compare
from polyattn.parity.comparison import Comparison
from polyattn.parity.diagnosis import Diagnosis, diagnose
from polyattn.truth.definition import Judged, truth
from polyattn.truth.loops import OracleResult, oracle
from polyattn.truth.measure import ACCEPTANCE, FLOOR_ACCEPTANCE, UNIT_ROUNDOFF, eta, floor_ratio, round_to
from polyattn.truth.spec import Spec

if TYPE_CHECKING:
    from polyattn.parity.grading.grader import Grade, Verdict, grade, grade_file

__all__ = [
    "ACCEPTANCE",
    "FLOOR_ACCEPTANCE",
    "UNIT_ROUNDOFF",
    "Comparison",
    "Diagnosis",
    "Grade",
    "Judged",
    "OracleResult",
    "Spec",
    "Verdict",
    "compare",
    "diagnose",
    "eta",
    "floor_ratio",
    "grade",
    "grade_file",
    "oracle",
    "round_to",
    "truth",
]


_LATER = ("Grade", "Verdict", "grade", "grade_file")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'polyattn.parity' has no attribute {name!r}")
    from polyattn.parity.grading import grader  # every command comes by here, and only one of them grades

    return getattr(grader, name)
