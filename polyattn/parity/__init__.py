"""Agreement, measured: cases that cover the contract, benches that run them, and why others give something else."""

from polyattn.parity.comparing import compare
from polyattn.parity.comparison import Comparison
from polyattn.parity.diagnosis import diagnose
from polyattn.parity.findings import Diagnosis
from polyattn.truth.definition import Judged, truth
from polyattn.truth.loops import OracleResult, oracle
from polyattn.truth.measure import ACCEPTANCE, FLOOR_ACCEPTANCE, UNIT_ROUNDOFF, eta, floor_ratio, round_to
from polyattn.truth.spec import Spec

__all__ = [
    "ACCEPTANCE",
    "FLOOR_ACCEPTANCE",
    "UNIT_ROUNDOFF",
    "Comparison",
    "Diagnosis",
    "Judged",
    "OracleResult",
    "Spec",
    "compare",
    "diagnose",
    "eta",
    "floor_ratio",
    "oracle",
    "round_to",
    "truth",
]
