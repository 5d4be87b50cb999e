"""What a comparison of models looks like: in a terminal, as a page, as JSON and JUnit, as a figure."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from shared.libraries import torch
from shared.ports import BATCH, small

from polyattn.parity import ModelComparison, compare_models, record, tap
from polyattn.parity.models.measuring import eta_of, unit_of


@pytest.fixture
def found() -> ModelComparison:
    model = small()
    port = copy.deepcopy(model)
    port.blocks[0].norm_1.eps = 1e-3
    with torch.no_grad():
        port.blocks[1].mlp[0].weight[0, 0] = torch.nan
    return compare_models(model, port, (BATCH,))


def test_it_prints_a_verdict_a_table_and_the_causes(found: ModelComparison) -> None:
    lines = str(found).splitlines()
    assert lines[0] == "DISAGREE: 2 of 32 components are wrong by themselves: blocks.0.norm_1, blocks.1.mlp.0"
    assert lines[1].split() == ["tap", "kind", "noise", "error/noise", "by", "itself", "cause"]
    assert lines[2].startswith("blocks.0.norm_1  ")
    assert "first tap that differs: blocks.0.norm_1" in lines
    assert any(line.startswith("blocks.1.mlp.0: ") and line.endswith("eta inf") for line in lines)
    assert lines[-1].startswith("note: noise was measured against the reference in float64")


def test_a_long_table_shows_what_is_wrong() -> None:
    def many(x: Any, at: int = -1) -> Any:
        for i in range(60):
            x = tap(f"step{i}", x + 1 + (0.1 if i == at else 0))
        return x

    found = compare_models(many, lambda x: many(x, 58), (BATCH,))
    lines = str(found).splitlines()
    assert "(58 of 61 taps are not shown)" in lines
    assert [wrong.name for wrong in found.wrong] == ["step58"]
    assert sum(line.startswith("step") for line in lines) == 3  # two rows, and the cause


def test_the_page_is_whole_and_what_it_is_given_stays_text(found: ModelComparison, tmp_path: Path) -> None:
    page = found.to_html(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<h2>Layers</h2>" in page
    assert page.count('<th scope="row">blocks.1') >= 11
    with pytest.raises(FileExistsError):
        found.to_html(tmp_path / "r.html")
    found.to_html(tmp_path / "r.html", force=True)

    def evil(x: Any) -> Any:
        return tap("<img src=x onerror=alert(1)>\x1b[2J", x)

    other = compare_models(evil, evil, (BATCH,))
    assert "<img" not in other.to_html()
    assert "<img" not in other._repr_html_()
    assert "\x1b" not in other.to_html()
    assert "\x1b" not in other.to_junit()


def test_json_and_junit_have_every_tap(found: ModelComparison) -> None:
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [tap["name"] for tap in told["taps"]] == [row.name for row in found.rows]
    assert told["first"] == "blocks.0.norm_1"
    assert [wrong["name"] for wrong in told["wrong"]] == ["blocks.0.norm_1", "blocks.1.mlp.0"]
    assert told["wrong"][1]["eta"] is None
    suite = ElementTree.fromstring(found.to_junit())
    assert (suite.attrib["tests"], suite.attrib["errors"]) == ("32", "0")
    assert int(suite.attrib["failures"]) == sum(not row.agrees for row in found.rows)


def test_a_port_that_raised_is_an_error_in_junit() -> None:
    def broken(x: Any) -> Any:
        tap("a", x + 1)
        raise KeyError("b")

    found = compare_models(lambda x: tap("a", x + 1) * 2, broken, (BATCH,))
    assert (
        found.verdict == "DISAGREE: the port stopped with KeyError: 'b'; the first 1 taps could be compared"
    )
    assert ElementTree.fromstring(found.to_junit()).attrib["errors"] == "1"
    nothing = compare_models(lambda x: x, lambda x: broken(x[0]["a"]), (BATCH,))
    assert "no tap could be compared" in nothing.verdict
    assert "no tap could be compared" in str(nothing)


def test_the_figure_has_a_mark_for_every_tap(found: ModelComparison) -> None:
    pytest.importorskip("matplotlib")
    (axes,) = found.figure().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.name for row in found.rows]
    assert len(axes.lines[0].get_xdata()) == len(found.rows)
    assert all(math.isfinite(x) for x in axes.lines[0].get_xdata())


def test_a_record_is_a_mapping_that_says_what_it_holds() -> None:
    found = record(small(), (BATCH,), names=["blocks.*.norm_1"])
    assert list(found) == ["blocks.0.norm_1", "blocks.1.norm_1", "blocks.2.norm_1", "output"]
    assert np.array_equal(found.inputs("blocks.0.norm_1")[0], BATCH)
    assert "blocks.1.norm_1" in repr(found)
    assert [trial.label for trial in found.taps["blocks.0.norm_1"].trials] == [
        "",
        "small",
        "large",
        "one-hot",
    ]
    with pytest.raises(KeyError, match=r"expected a tap among blocks\.0\.norm_1"):
        found["nothing"]
    with pytest.raises(TypeError, match=r"expected names to be a list of globs, got 'norm'"):
        record(small(), (BATCH,), names="norm")


def test_the_unit_is_never_less_than_a_rounding_and_a_row_of_luck_counts_with_the_others() -> None:
    value = np.ones((4, 8))
    assert np.array_equal(unit_of(value, [], 2.0**-24), np.full((4, 1), 2.0**-24))
    off = np.zeros((4, 8))
    off[0] = 1.0
    assert np.allclose(unit_of(value, [off], 0.0).ravel() ** 2, [1.25, 0.25, 0.25, 0.25])
    assert eta_of(np.full(3, np.nan), np.ones(3), np.ones(1)) == math.inf
    assert eta_of(np.zeros((0, 3)), np.zeros((0, 3)), np.ones((0, 1))) == 0
    assert eta_of(np.ones(2), np.ones(3), np.ones(1)) == math.inf
