"""Benches lie with the adapters and are found there; one that was asked for and is missing is an error."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from polyattn import testing
from polyattn.parity import bench as benches
from polyattn.parity.cases import cases

ROOT = Path(__file__).parents[2]


def test_every_adapter_of_ours_has_a_bench_and_packaging_says_so() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    adapters = {entry.partition(":")[0] for entry in project["entry-points"]["polyattn.backends"].values()}
    entries = project["entry-points"]["polyattn.benches"]
    assert set(entries.values()) == {f"{adapter}.bench:bench" for adapter in adapters}
    assert set(testing.BENCHES) == {*entries, "strict"}
    for name in testing.BENCHES:
        made = testing.load_bench(name)
        assert made.name == name
        assert getattr(testing, type(made).__name__) is type(made) is testing.BENCHES[name]


def test_benches_are_found_without_an_installed_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "entry_points", lambda group: [])
    benches._loaders.cache_clear()
    try:
        assert list(testing.BENCHES) == ["numpy", "autograd", "jax", "onnx", "strict", "torch"]
    finally:
        benches._loaders.cache_clear()


def test_an_adapter_whose_library_is_missing_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "polyattn_toy").mkdir()
    (tmp_path / "polyattn_toy/__init__.py").write_text("")
    (tmp_path / "polyattn_toy/bench.py").write_text("import toy_library.arrays")
    monkeypatch.syspath_prepend(tmp_path)
    benches._loaders.cache_clear()
    try:
        assert "toy" in testing.BENCHES
        with pytest.raises(testing.MissingBench) as missing:
            testing.load_bench("toy")
    finally:
        benches._loaders.cache_clear()
        sys.modules.pop("polyattn_toy", None)
    assert str(missing.value) == (
        "polyattn.testing.load_bench: expected the library of the bench 'toy', which was asked for, got No module named "
        "'toy_library'; pip install toy-library"
    )


@pytest.mark.parametrize("name", ["NoBench", "numpy"])
def test_what_is_no_bench_is_no_attribute(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'polyattn.testing' has no attribute '{name}'"):
        getattr(testing, name)


def test_an_unknown_bench_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected a bench among numpy, autograd, jax, onnx, strict, torch, got 'mxnet'"
    ):
        testing.load_bench("mxnet")


def test_cases_name_rules_by_their_anchors() -> None:
    anchors = {f"rule-{number}" for number in range(1, 29)}
    named: set[Any] = {rule for case in cases() for rule in case.rules}
    assert named <= anchors
    assert all(case.rules for case in cases())
