"""Forward and backward at L = 32768 in memory O(L)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/memory.py"


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_extra_memory_is_below_five_percent_of_a_score_matrix(library: str) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), library, "32768"], capture_output=True, text=True, check=True
    )
    extra = int(run.stdout)
    assert 0 < extra < 0.05 * 4 * 32768**2
