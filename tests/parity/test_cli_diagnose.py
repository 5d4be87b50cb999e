"""`polyattn diagnose` and `polyattn verify --html` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polyattn import attention, masks, mods
from polyattn.cli import app

RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(3, 2, 4, 24, 8)).astype(np.float32)


def _run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def _file(folder: Path, output: Any, **more: Any) -> str:
    path = folder / "case.npz"
    np.savez(path, **{"output": output, "query": Q, "key": K, "value": V} | more)
    return str(path)


def test_a_cause_is_named_and_the_status_is_1(tmp_path: Path) -> None:
    status, out, _ = _run("diagnose", "--npz", _file(tmp_path, attention(Q, K, V, scale=1.0)))
    assert status == 1
    assert out.startswith("matches scale = 1 (scores not divided): eta ")


def test_what_was_meant_is_read_from_the_file(tmp_path: Path) -> None:
    mask = RNG.random((2, 1, 24, 24)) > 0.2
    meant = {
        "mask": masks.from_array(mask) & masks.window(5, None),
        "is_causal": True,
        "score_mod": mods.softcap(2.0),
        "scale": 0.5,
        "bias": RNG.normal(size=(4, 24, 24)).astype(np.float32),
        "sinks": np.zeros(4, np.float32),
    }
    stored = {
        "mask": mask, "window": [5, -1], "is_causal": True, "softcap": 2.0, "scale": 0.5, "bias": meant["bias"],
        "sinks": meant["sinks"], "query_offset": "end", "layout": "BHLD", "embed_dim": 32,
    }  # fmt: skip
    status, out, _ = _run("diagnose", "--npz", _file(tmp_path, attention(Q, K, V, **meant), **stored))
    assert (status, out[:21]) == (0, "matches the contract ")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"sclae": 1.0}, "in 'case.npz', got it without none of them and with sclae unknown; rename them"),
        (
            {"window": [1, 2, 3]},
            "expected window to be two numbers, left and right, got 3; write -1 for a side without bound",
        ),
        ({"scale": [1.0, 2.0]}, "expected scale to be one value, got shape (2,)"),
        ({"mask": np.ones((24, 24))}, "expected a bool mask, True = may attend, got float64"),
        ({"output": np.zeros((2, 4, 8, 24))}, "expected output of shape (2, 4, 24, 8)"),
        (
            {"output": np.full(1, None)},
            "a whole .npz file of plain arrays, got 'case.npz', of which the reader says: ",
        ),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path: Path, more: dict[str, Any], sentence: str) -> None:
    output = more.pop("output", np.zeros_like(Q))
    status, _, err = _run("diagnose", "--npz", _file(tmp_path, output, **more))
    assert status == 2
    assert err.startswith(("polyattn diagnose: expected ", "polyattn.parity.diagnose: expected "))
    assert sentence in err


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    assert _run("diagnose", "--npz", str(tmp_path / "no.npz"))[0] == 2
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    status, _, err = _run("diagnose", "--npz", str(tmp_path / "bad.npz"))
    assert (status, "'bad.npz'" in err) == (2, True)


def test_verify_writes_a_report_and_never_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    words = ("verify", "--backend", "numpy", "--dtype", "float32", "--case", "golden", "--html", str(path))
    assert _run(*words)[0] == 0
    assert "golden six tokens" in path.read_text()
    path.write_text("mine")
    status, _, err = _run(*words)
    assert status == 2
    assert (
        err
        == f"polyattn verify: expected a new file for the report, got {path}, which is there; add --force\n"
    )
    assert path.read_text() == "mine"
    assert _run(*words, "--force")[0] == 0
    assert path.read_text() != "mine"
