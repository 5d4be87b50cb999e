"""What is right, and how far off is far: definition and oracle in extended precision, conditions, eta."""

from polyattn.truth.definition import Judged, truth
from polyattn.truth.loops import OracleResult, oracle
from polyattn.truth.measure import ACCEPTANCE, FLOOR_ACCEPTANCE, UNIT_ROUNDOFF, eta, floor_ratio, round_to
from polyattn.truth.spec import Spec

__all__ = [
    "ACCEPTANCE",
    "FLOOR_ACCEPTANCE",
    "UNIT_ROUNDOFF",
    "Judged",
    "OracleResult",
    "Spec",
    "eta",
    "floor_ratio",
    "oracle",
    "round_to",
    "truth",
]
