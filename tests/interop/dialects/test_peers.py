"""The libraries as columns: what they make of the cases of the contract."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from shared.foreign import PAGE
from typer.testing import CliRunner

from polyattn.cli import app
from polyattn.dialects.libraries import PEERS, library_of
from polyattn.dialects.markdown import cell, peers_markdown
from polyattn.dialects.peers import PeerOutcome, judge
from polyattn.parity.cases import cases


@pytest.mark.parametrize(
    "name", [n for n in PEERS if n not in ("flax.nnx", "keras torch", "equinox", "torch.flex")]
)
def test_the_verdicts_in_the_documentation_are_those_of_the_libraries(name: str) -> None:
    asked = library_of(name)
    table = PAGE.read_text().split("<!-- peers -->\n")[1].split("\n<!-- end -->")[0]
    header, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    if isinstance(asked, str):
        assert name not in header
        return
    some = ("mask polarity", "rows that see nothing", "poison in hidden keys", "values of another width")
    for case in cases():
        if case.name in some:
            said = next(row[header.index(name)] for row in rows if row[0] == case.name)
            assert cell(judge(PEERS[name], asked, case))[-1] == said[-1], case.name


def test_outcomes_become_a_table() -> None:
    outcomes = [
        PeerOutcome("one", "1", "torch.sdpa", 0.5),
        PeerOutcome("one", "1", "jax.nn", np.inf),
        PeerOutcome("two", "2", "torch.sdpa", None, "no"),
    ]
    assert peers_markdown(outcomes).splitlines()[2:] == ["| one | 1 | 0.50 ✓ | inf ✗ |", "| two | 2 | – |  |"]


def test_verify_has_the_libraries_as_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = {name: PEERS[name] for name in ("torch.sdpa", "sdpa cudnn", "onnx.23")}
    monkeypatch.setattr("polyattn.dialects.libraries.PEERS", few)
    result = CliRunner().invoke(
        app,
        [
            "verify",
            "--peers",
            "--case",
            "no keys",
            "--case",
            "causal first",
            "--json",
            str(tmp_path / "rows.json"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"^causal first rows +4 +\S+ ✓ +\S+ ✓", result.output, re.MULTILINE)
    assert re.search(r"^no keys +14 +0.00 ✓ +-", result.output, re.MULTILINE)
    assert "onnx.23 'no keys': " in result.output
    assert "note: sdpa cudnn was not asked: " in result.output
    assert '"peer": "torch.sdpa"' in (tmp_path / "rows.json").read_text()
