"""The page of performance shows the kept runs, all of them, and says which targets are missed."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MADE = runpy.run_path(str(ROOT / "docs" / "performance.py"))
PAGE = MADE["PAGE"].read_text(encoding="utf-8")


def test_the_page_is_what_the_kept_runs_make() -> None:
    assert MADE["made"](PAGE) == PAGE  # else: python docs/performance.py
    assert [name for name, _, _ in MADE["parts"](PAGE)] == list(MADE["PARTS"])


def test_every_missed_target_is_on_the_page_before_those_that_are_reached() -> None:
    shown = [line for line in MADE["targets"]().splitlines() if line.startswith(("| missed", "| reached"))]
    kept = (ROOT / "benchmarks" / "results" / "cpu-2-cores.txt").read_text(encoding="utf-8")
    verdicts = [line.split(None, 1) for line in kept.split("\ntargets\n")[1].splitlines()]
    assert sorted(line for line in shown) == sorted(
        f"| {word.lower()} | {said.strip()} |" for word, said in verdicts
    )
    assert [line.split()[1] for line in shown] == sorted(line.split()[1] for line in shown)  # missed, reached
    assert f"{sum(word == 'MISSED' for word, _ in verdicts)} of {len(shown)} targets are missed." in PAGE


def test_a_ratio_below_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def times() -> dict[tuple[str, str], float]:
        return {("a", "polyattn numpy"): 2.0, ("a", "jax.nn"): 1.0, ("a", "torch sdpa"): 5.0}

    beside: Any = MADE["beside"]
    monkeypatch.setitem(beside.__globals__, "times", times)
    assert "| a | 2e+03 | **0.50** | 2.50 |" in beside()
