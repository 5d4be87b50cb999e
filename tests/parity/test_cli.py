"""The command line: exit statuses, files, and text that cannot break out."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from polyattn import testing
from polyattn.cli import app
from polyattn.implementations import TRANSFORMS
from polyattn.masks.grammar import parse_mask


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_verify_of_one_backend_agrees_and_writes_reports(tmp_path: Path) -> None:
    report, junit = tmp_path / "report.json", tmp_path / "report.xml"
    result = run(
        "verify", "--backend", "numpy", "--dtype", "float32", "--json", str(report), "--junit", str(junit)
    )
    assert result.exit_code == 0, result.output
    assert "golden six tokens" in result.output
    assert "MiniLM layer 6" in result.output
    assert "AGREE:" in result.output
    data = json.loads(report.read_text())
    assert data["agrees"] is True
    assert data["versions"].keys() == {"numpy"}
    assert all(0 <= eta <= 4 for o in data["outcomes"] for eta in o["eta"].values())
    suite = ElementTree.fromstring(junit.read_text())
    assert suite.get("tests") == str(len(data["outcomes"]))
    assert suite.get("failures") == "0"


class Wrong(testing.NumpyBench):
    """A library whose numbers are a little off, and whose name is hostile."""

    name = "numpy"

    def numpy(self, x: object) -> object:
        return super().numpy(x) * 1.0001  # type: ignore[arg-type]


def test_verify_of_wrong_numbers_disagrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("polyattn.parity.bench._loaders", lambda: {"numpy": lambda: Wrong})
    result = run("verify", "--dtype", "float32", "--case", "plain", "--junit", str(tmp_path / "r.xml"))
    assert result.exit_code == 1
    assert "DISAGREE: 1 of 1 results" in result.output
    assert "✗" in result.output
    assert ElementTree.fromstring((tmp_path / "r.xml").read_text()).get("failures") == "1"


def test_a_missing_backend_that_was_asked_for_is_status_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> object:
        raise ImportError("No module named 'jax'", name="jax")

    bench = testing.BENCHES["numpy"]
    known = {"numpy": lambda: bench, "jax": missing}
    monkeypatch.setattr("polyattn.parity.bench._loaders", lambda: known)
    result = run("verify", "--backend", "jax")
    assert result.exit_code == 3
    assert result.output == (
        "polyattn verify: expected the library of the bench 'jax', which was asked for, got No module named 'jax'; "
        "pip install jax\n"
    )
    unasked = run("verify", "--dtype", "float32", "--case", "plain")
    assert unasked.exit_code == 0
    assert "note: jax was not run: No module named 'jax'" in unasked.output


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["--backend", "nump"],
            "polyattn verify: expected a bench among numpy, jax, onnx, strict, torch, got 'nump'; choose one of them",
        ),
        (
            ["--dtype", "int8"],
            "polyattn verify: expected a dtype among float64, float32, float16, bfloat16, got 'int8'; choose one",
        ),
        (
            ["--case", "nothing of the kind"],
            "polyattn verify: expected a part of the name of a case, got 'nothing of the kind'; there are golden",
        ),
        (
            ["--backend", "strict", "--dtype", "float16", "--case", "plain"],
            "polyattn verify: expected a case that runs on strict in float16, got none among plain; choose others",
        ),
        (
            ["--peers", "--case", "MiniLM"],
            "expected cases of the contract with --peers, got MiniLM, real input alone",
        ),
        (["--json", "/nowhere/at/all.json"], "expected an existing folder for /nowhere/at/all.json"),
        (["--seed", "-1"], "Input should be greater than or equal to 0"),
    ],
)
def test_wrong_usage_is_status_2_and_a_sentence(args: list[str], sentence: str) -> None:
    result = run("verify", *args)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def test_info_names_versions_and_precision() -> None:
    result = run("info")
    assert result.exit_code == 0
    for word in ("numpy", "strict", "jax", "torch", "JAX x64: off", "float32 matmul precision"):
        assert word in result.output


def test_info_says_what_each_implementation_takes() -> None:
    lines = run("info").output.splitlines()
    assert "torch: the definition takes everything; goes through " + ", ".join(TRANSFORMS) in lines
    flash = [line for line in lines if line.startswith("torch: the flash kernel of the CPU takes all but ")]
    assert len(flash) == 1
    assert "a sink" not in flash[0]
    assert "a score_mod" in flash[0]


def test_a_mask_is_drawn() -> None:
    result = run("mask", "causal & window(2, 0)", "--size", "4")
    assert result.exit_code == 0
    assert result.output == "# . . .\n# # . .\n# # # .\n. # # #\n"
    assert run("mask", "causal", "--size", "1", "--keys", "3", "--offset", "1").output == "# # .\n"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "causal()()",
        "causal.box",
        "window(2)",
        "window(left=1, right=2)",
        "causal & 3",
        "causal + causal",
        "window(1.5, 0)",
        "lambda: causal",
        "(" * 300,
        "causal & " * 150 + "causal",
        "",
        "causal\x00",
        "[31m",
    ],
)
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^mask: expected "):
        parse_mask(text)
    assert run("mask", text).exit_code == 2


def test_mask_arguments_are_checked_by_the_masks() -> None:
    result = run("mask", "window(-2, 0)")
    assert result.exit_code == 2
    assert "expected both sides >= 0, got -2" in result.output


def test_a_plan_says_what_auto_would_run_and_why() -> None:
    result = run("info", "--plan", "L=4096,H=8,causal=1")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "numpy: blockwise, because the scores take more than 1 MiB",
        "jax: blockwise, because not native: there is no GPU, and on other devices jax.nn.dot_product_attention is no "
        "fused kernel",
        "onnx: native, because the operator Attention is one node where it computes the contract",
        "strict: blockwise, because the scores take more than 1 MiB",
        "torch: native, because the library's own kernel is the fastest where it is exact",
    ]
    small = run("info", "--plan", "L=64,H=2,softcap=30,sinks=1,window=4,dtype=float16").output
    assert "numpy: reference, because not blockwise: the scores take at most 1 MiB" in small
    assert "strict: has no float16" in small
    decode = run("info", "--plan", "B=8,L=1,S=4096,H=32,Hkv=8").output
    assert (
        "numpy: reference, because not blockwise: a few query rows: one product per kv head, K and V"
        in decode
    )


@pytest.mark.parametrize(
    "text", ["L", "L=x", "Q=3", "L=-1", "dtype=int8", "", "L=99999999", "L=16777216,H=8"]
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    result = run("info", "--plan", text)
    assert result.exit_code == 2
    assert "polyattn info: expected " in result.output
