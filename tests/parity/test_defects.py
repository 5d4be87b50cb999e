"""The trial of `diagnose` in small: planted defects are named, right outputs and unknown errors are not accused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from polyattn import trace
from polyattn.conventions.causes import CAUSES
from polyattn.parity import compare

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def suite() -> Iterator[Any]:
    """benchmarks/diagnosis.py, on one thread."""
    spec = spec_from_file_location("diagnosis", Path(__file__).parents[2] / "benchmarks/diagnosis.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["diagnosis"] = module  # where its dataclasses look their annotations up
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        torch.set_num_threads(threads)
        del sys.modules["diagnosis"]


def share(trials: list[Any], *right: str) -> float:
    return 100 * sum(t.verdict in right for t in trials) / len(trials)


# the suite of planted defects, in small


def test_every_known_cause_is_planted(suite: Any) -> None:
    planted = {defect.planted for defect in suite.DEFECTS}
    assert {(cause.field, cause.choice) for cause in CAUSES} <= planted
    assert len(planted) >= 40


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_defects_are_named_first_95_times_of_100(suite: Any, dtype: str) -> None:
    trials = list(suite.singles(dtype, 1))
    shown = {t.name for t in trials}
    assert shown == {defect.name for defect in suite.DEFECTS} if dtype == "float32" else len(shown) >= 40
    assert share(trials, "first", "alike") >= 95, [t for t in trials if t.verdict not in ("first", "alike")]
    assert share(trials, "first") >= 90


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_of_defects_are_named_85_times_of_100(suite: Any, dtype: str) -> None:
    trials = list(suite.pairs(dtype, 10))
    assert len({t.name for t in trials}) == 10
    assert share(trials, "first", "alike") >= 85, [t for t in trials if t.verdict not in ("first", "alike")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_outputs_are_never_accused(suite: Any, dtype: str) -> None:
    trials = list(suite.correct(dtype, 1, every=12))
    assert {t.name for t in trials} == {"plain", "torch SDPA", "jax.nn", "polyattn"}
    assert {t.verdict for t in trials} == {"agrees"}


@pytest.mark.parametrize(("dtype", "every"), [("float32", 3), ("bfloat16", 4)])
def test_what_nobody_knows_is_not_called_by_a_name(suite: Any, dtype: str, every: int) -> None:
    trials = list(suite.perturbed(dtype, 1, every=every))
    assert len(trials) >= 4
    assert {t.verdict for t in trials} == {"none"}, [t for t in trials if t.verdict != "none"]


def test_the_command_prints_the_figures(
    suite: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three = ("mask inverted", "padding mask inverted", "mask ignored")
    monkeypatch.setattr(suite, "DEFECTS", tuple(d for d in suite.DEFECTS if d.name in three))
    monkeypatch.setattr(suite, "CORRECT", {"plain": suite.CORRECT["plain"]})
    monkeypatch.setattr(suite, "PERTURBATIONS", {"noise 1e-1": suite.PERTURBATIONS["noise 1e-1"]})
    monkeypatch.setattr(suite, "pairs", lambda dtype, count, first: suite.singles(dtype, 1, first))
    assert suite.main(["--seeds", "1", "--dtype", "float32"]) == 0
    printed = re.sub(r"\d+\.\d\d s", "_ s", capsys.readouterr().out)
    assert printed.splitlines()[-4:] == [
        "all singles: 3 named first, 0 alike on these inputs, of 3: 100.0 % (target 95 %: reached); "
        "_ s per diagnosis, at most _ s",
        "all pairs: 3 named first, 0 alike on these inputs, of 3: 100.0 % (target 85 %: reached); "
        "_ s per diagnosis, at most _ s",
        "right outputs: 0 accused of 2 (target 0: reached); _ s per diagnosis",
        "unknown perturbations: 0 accused of 1 (target 0: reached); _ s per diagnosis",
    ]
    assert "mask inverted                                                               1 of 1" in printed


# `compare` on them


def test_compare_finds_the_first_stage_that_diverges_for_each_planted_defect(suite: Any) -> None:
    found_in: dict[str, int] = {}
    for defect in suite.DEFECTS:
        if "rotary" in defect.needs + " ".join(defect.stages):
            continue  # q and k come to attention turned
        p = suite.draw(set(defect.needs.split()), set(defect.without.split()), 0, "float32")
        if p.rotary is not None:
            continue
        context = p.context()
        plain: dict[str, Any] = {}
        suite.attend(p, record=plain)
        planted: dict[str, Any] = {}
        out = suite.attend(p, defect.stages, record=planted).out
        if out.shape != (*p.q.shape[:3], p.v.shape[3]) or not out.isfinite().all():
            continue
        seen = suite.visible(p, suite.PLAIN)
        known = {stage.name for stage in trace(p.q, p.k, p.v, **context)}
        first = next(
            (n for n in plain if n in known and n in planted and _differs(plain[n], planted[n], n, seen)),
            "output",
        )

        def port(q: Any, k: Any, v: Any, out: Any = out, planted: Any = planted) -> Any:
            return out, {name: x.expand(*x.shape) for name, x in {**planted, "output": out}.items()}

        def ours(q: Any, k: Any, v: Any, context: Any = context) -> Any:
            return trace(q, k, v, **context)

        inputs = {"query": p.q, "key": p.k, "value": p.v}
        result = compare(
            port, ours, inputs, on=("torch", "torch"), meant=context, names=("port", "ours"), gradients=False
        )
        assert result.first_divergence == first, (
            f"{defect.name}: {result.first_divergence} instead of {first}"
        )
        found_in[first] = found_in.get(first, 0) + 1
    assert sum(found_in.values()) >= 40
    assert {"scores", "masked", "weights"} <= set(found_in)


def _differs(a: Any, b: Any, name: str, seen: Any) -> bool:
    """By more than rounding; of scores those count that are seen, and after the mask also what is hidden."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    if name == "masked" and not torch.equal(a == -torch.inf, b == -torch.inf):
        return True
    if name not in ("weights", "output"):
        a, b = (torch.where(seen & x.isfinite(), x, 0.0) for x in (a, b))
    return bool(((a - b).abs().max() > 64 * 2.0**-24 * a.abs().max()).item())
