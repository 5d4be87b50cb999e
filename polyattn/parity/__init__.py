"""Agreement, measured: cases that cover the contract, benches that run them, and why others give something else."""

from __future__ import annotations

from importlib import import_module
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
    from polyattn.parity.models import (
        Bisection,
        ModelComparison,
        Record,
        assert_model,
        bisect,
        check_model,
        compare_models,
        record,
        tap,
    )

__all__ = [
    "ACCEPTANCE",
    "FLOOR_ACCEPTANCE",
    "UNIT_ROUNDOFF",
    "Bisection",
    "Comparison",
    "Diagnosis",
    "Grade",
    "Judged",
    "ModelComparison",
    "OracleResult",
    "Record",
    "Spec",
    "Verdict",
    "assert_model",
    "bisect",
    "check_model",
    "compare",
    "compare_models",
    "diagnose",
    "eta",
    "floor_ratio",
    "grade",
    "grade_file",
    "oracle",
    "record",
    "round_to",
    "tap",
    "truth",
]


_GRADING = ("Grade", "Verdict", "grade", "grade_file")
_MODELS = (
    "Bisection",
    "ModelComparison",
    "Record",
    "assert_model",
    "bisect",
    "check_model",
    "compare_models",
    "record",
    "tap",
)
#: name -> where it is; every command comes by here, and one of them grades, another compares models
_LATER = dict.fromkeys(_GRADING, "polyattn.parity.grading.grader") | dict.fromkeys(
    _MODELS, "polyattn.parity.models"
)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'polyattn.parity' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
