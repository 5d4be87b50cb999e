"""What the author of an adapter needs: the conformance suite `check_backend(bench)` and the benches.

`NumpyBench`, `JaxBench`, ... are the classes of the benches that lie with the adapters, loaded when they are asked
for; `load_bench("jax")` makes one by name. A `Bench` of your own is three methods (see `backends/README.md`).
"""

from __future__ import annotations

from typing import Any

from polyattn.parity.bench import BENCHES, Bench, MissingBench, StrictBench, load_bench
from polyattn.parity.judging import Disagreement, Outcome, check_backend, judge, run_cases

__all__ = [
    "BENCHES",
    "Bench",
    "Disagreement",
    "MissingBench",
    "Outcome",
    "StrictBench",
    "check_backend",
    "judge",
    "load_bench",
    "run_cases",
]


def __getattr__(name: str) -> Any:
    library = name.removesuffix("Bench").lower()
    if name.endswith("Bench") and library in BENCHES:
        return BENCHES[library]
    raise AttributeError(f"module 'polyattn.testing' has no attribute {name!r}")
