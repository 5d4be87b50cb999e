"""The command line among hostile arguments, files and terminals: a sentence and a status of its own, never a traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from polyattn.cli import app
from polyattn.cli.program import AGREE, DEFECT, DISAGREE, INTERRUPTED, MISSING, NO_READER, STATUSES, USAGE
from polyattn.parity import Judged
from polyattn.parity.judging import Outcome
from polyattn.parity.reasons import why_infinite
from polyattn.parity.terminal import Column, Grid, print_grid

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = ("verify", "info", "tune", "mask", "dialects", "diagnose", "check-model", "grade", "explain-text")
WORDS = (
    "",
    " ",
    "-",
    "--",
    "x" * 5000,
    "\x00",
    "\x1b[31m",
    "é",
    "1e999",
    "[]",
    "{}",
    "(",
    "%s",
    "..",
    "\ud800",
    "9" * 400,
)
PLANS = ("L=0", "S=0", "H=0", "H=3,Hkv=2", "Hkv=8,H=4", "D=0", "E=0", "B=0", "B=16777216", "L=5,window=999999",
         "L=1,S=5,causal=1", "L=7,S=3,causal=1", "H=0,sinks=1", "softcap=16777216", "L=٣", "L=²", "L=4,", ",")  # fmt: skip
SMALL = ("verify", "--backend", "numpy", "--dtype", "float64", "--case", "golden")


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def polyattn(*args: str, **more: Any) -> Any:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120} | more
    return subprocess.run([sys.executable, "-m", "polyattn", *args], check=False, **given)


def is_refused_or_done(result: Result) -> None:
    assert result.exit_code in (AGREE, DISAGREE, USAGE, MISSING), result.output
    assert "Traceback" not in result.output
    if result.exit_code == USAGE:
        assert result.output.startswith(("polyattn", "Usage:"))
        assert result.output.count("\n") <= 5


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "args",
    [
        ("{}",),
        ("mask", "{}"),
        ("mask", "causal", "--offset", "{}"),
        ("mask", "causal", "--size", "{}"),
        ("mask", "causal", "--svg", "{}"),
        ("info", "--plan", "{}"),
        ("info", "--plan", "L={}"),
        ("info", "--plan", "L={}", "--platform", "h100"),
        ("info", "--plan", "L=9", "--platform", "{}"),
        ("tune", "{}"),
        ("tune", "--width", "{}"),
        ("tune", "--length", "{}"),
        ("tune", "--interpret", "--dtype", "?{}"),
        ("tune", "--output", "{}"),
        ("dialects", "{}"),
        ("dialects", "torch.sdpa", "{}"),
        ("dialects", "torch.sdpa", "jax.nn", "--call", "{}"),
        ("diagnose", "--npz", "{}"),
        ("diagnose", "{}"),
        ("explain-text", "a cat", "--html", "{}", "--model", "none"),
        ("explain-text", "a cat", "--html", "page.html", "--model", "?{}"),
        ("explain-text", "a cat", "--html", "page.html", "--layer", "9{}"),
        ("grade", "{}"),
        ("grade", "nowhere.py", "--function", "{}"),
        ("grade", "nowhere.py", "--rules", "{}"),
        ("grade", "nowhere.py", "--library", "{}"),
        ("grade", "nowhere.py", "--seconds", "{}"),
        ("grade", "nowhere.py", "--json", "{}"),
        ("verify", "--backend", "{}"),
        ("verify", "--dtype", "{}"),
        ("verify", "--case", "?{}"),
        (*SMALL, "--seed", "{}"),
        (*SMALL, "--json", "{}"),
    ],
    ids=" ".join,
)
def test_no_word_is_a_traceback(
    args: tuple[str, ...], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    is_refused_or_done(run(*(arg.format(word) for arg in args)))


@pytest.mark.parametrize("plan", PLANS)
def test_no_plan_is_a_traceback(plan: str) -> None:
    is_refused_or_done(run("info", "--plan", plan))
    is_refused_or_done(run("info", "--plan", plan, "--platform", "v5e"))
    for pair in (("torch.sdpa", "jax.nn"), ("transformers", "keras"), ("torch.flex", "onnx.23")):
        is_refused_or_done(run("dialects", *pair, "--call", plan))


@pytest.mark.parametrize("option", ["--json", "--junit", "--html"])
def test_a_report_that_cannot_be_written_is_a_sentence(option: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "r", tmp_path / "circle" / "r"):
        before = run(*SMALL, option, str(path))  # before the work
        assert before.exit_code == USAGE
        assert before.output.startswith("polyattn verify: expected ")
        assert before.output.count("\n") == 1
    full = run(*SMALL, option, "/dev/full", "--force")
    assert full.exit_code == USAGE
    assert "AGREE: " in full.output
    assert full.output.splitlines()[-1] == (
        "polyattn verify: expected to write /dev/full, of which the system says: [Errno 28] No space left on device; "
        "name another file"
    )
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "r", tmp_path / "circle" / "r"):
        tiles = run("tune", "--output", str(path))
        assert (tiles.exit_code, tiles.output.count("\n")) == (USAGE, 1)
        assert tiles.output.startswith("polyattn tune: expected ")
        shown = run("explain-text", "a cat", "--html", str(path))
        assert (shown.exit_code, shown.output.count("\n")) == (USAGE, 1)
        assert shown.output.startswith("polyattn explain-text: expected ")
    twice = run(*SMALL, "--json", str(tmp_path / "r"), "--junit", str(tmp_path / "r"))
    assert (
        twice.output
        == f"polyattn verify: expected a file for each report, got {tmp_path / 'r'} twice; name another\n"
    )


def test_every_status_is_told_by_help_and_by_the_page() -> None:
    shown = " ".join(run("--help").output.split())
    page = (DOCS / "command-line.md").read_text()
    for status, says in STATUSES.items():
        assert f"{status} {says}" in shown
        assert f"| {status} | {says} |" in page
    for command in COMMANDS:
        assert f"polyattn {command}" in page
        assert "Exit status: 0 " in " ".join(run(command, "--help").output.split())


@pytest.mark.parametrize("width", ["80", "60"])
def test_help_cuts_no_word(width: str) -> None:
    shown = polyattn("--help", env=os.environ | {"COLUMNS": width}).stdout
    assert "..." not in shown.split("Commands:")[1]
    assert 50 < max(map(len, shown.splitlines())) <= int(width)


def test_the_version_is_told() -> None:
    import polyattn as library

    assert run("--version").output == f"polyattn {library.__version__}\n"


def test_what_is_missing_is_status_3_and_no_disagreement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without = "import sys; sys.modules['typer'] = None; import polyattn.cli"
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert done.returncode == MISSING
    assert done.stderr == "polyattn: the command line needs typer and rich; pip install 'polyattn[cli]'\n"
    there = util.find_spec
    monkeypatch.setattr(
        "polyattn.cli.program.find_spec", lambda name: None if name == "jinja2" else there(name)
    )
    report = run(*SMALL, "--html", str(tmp_path / "r.html"))
    assert report.exit_code == MISSING
    assert report.output.startswith("polyattn: expected jinja2, which makes reports, got ")


def test_interruption_and_a_defect_of_our_own_have_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> Any:
        def plan(*_: Any, **__: Any) -> None:
            raise error

        return plan

    monkeypatch.setattr("polyattn.cli.verifying.plan", raising(KeyboardInterrupt()))
    assert (run(*SMALL).exit_code, run(*SMALL).output) == (INTERRUPTED, "polyattn: interrupted\n")
    monkeypatch.setattr("polyattn.cli.verifying.plan", raising(ZeroDivisionError("of ours")))
    broken = run(*SMALL)
    assert broken.exit_code == DEFECT
    assert "Traceback" in broken.output
    assert broken.output.endswith("this is a defect of polyattn; please report it with the lines above\n")


def test_a_reader_that_left_and_a_full_disk_end_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        left = polyattn("mask", "causal", "--size", "500", stdout=pipe)
    assert (left.returncode, left.stderr) == (NO_READER, "")
    with open("/dev/full", "w") as full:
        for args in (("mask", "causal"), ("info",)):
            found = polyattn(*args, stdout=full)
            assert found.returncode == USAGE
            assert re.fullmatch(r"polyattn: expected .* No space left on device.*\n", found.stderr)


def test_a_terminal_without_the_marks_gets_words() -> None:
    found = polyattn(*SMALL, env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert found.returncode == AGREE, found.stderr
    assert re.search(r"^golden six tokens +\d\.\d\d ok *$", found.stdout, re.MULTILINE)
    assert "\\u" not in found.stdout


@pytest.mark.parametrize("width", [200, 80, 60, 30])
def test_every_verdict_survives_at_every_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    cases = ["values of another width", "sinks"]
    columns = [
        Column(
            f"bench{bench}\n{dtype}", f"bench{bench}", [f"{bench}.{dtype[1:]} ✓", f"{bench}.{dtype[1:]} ✗"]
        )
        for bench in range(6)
        for dtype in ("f64", "f32", "f16")
    ]
    print_grid(Grid("eta", ["case"], [[case] for case in cases], columns))
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    found = re.findall(r"\d\.\d\d [✓✗]", shown)
    assert sorted(found) == sorted(cell for column in columns for cell in column.cells)
    assert "…" not in shown
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= max(width, len(cases[0]) + 8)
    if width == 80:  # the dtypes of a library stand side by side
        assert all(len(re.findall(r"\d\.\d\d", line)) in (0, 6) for line in lines)


def test_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    names = [f"bench{i}" for i in range(40)]
    print_grid(Grid("eta", ["case"], [["sinks"]], [Column(name, name, ["0.50 ✓"]) for name in names]))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.splitlines()[-1].count("0.50 ✓") == 40


def test_hostile_names_cannot_write_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_grid(Grid("[red]t", ["case"], [["\x1b[31m[bold]"]], [Column("[link]\x07", "g", ["\x1b]0;x ✓"])]))
    shown = capsys.readouterr().out
    assert not re.search(r"[\x1b\x07]", shown)
    assert "[bold]" in shown


def test_what_is_no_number_has_a_reason() -> None:
    truth = Judged(np.zeros((1, 1, 2, 2), np.longdouble), np.array([[[[1.0, 1.0], [0.0, 0.0]]]]))
    blind = np.array([[[False, True]]])
    found = {
        "shape": why_infinite(np.zeros(3), truth),
        "NaN": why_infinite(np.array([[[[0.0, 0.0], [np.nan, 0.0]]]]), truth, blind),
        "not 0": why_infinite(np.array([[[[0.0, 0.0], [0.0, 0.5]]]]), truth, blind),
        "inf": why_infinite(np.array([[[[0.0, np.inf], [0.0, 0.0]]]]), truth, blind),
    }
    assert {reason.word: reason.sentence for reason in found.values()} == {
        "shape": "shape (3,), where the truth has (1, 1, 2, 2)",
        "NaN": "NaN at 1 of 4 places, first at (0, 0, 1, 0), where the truth is 0 (a row that sees no key)",
        "not 0": "0.5 at (0, 0, 1, 1), where the truth is 0, exactly (a row that sees no key)",
        "inf": "inf at (0, 0, 0, 1), where the truth is 0",
    }
    outcome = Outcome("one", "mine", "float32", {"out": 0.5, "lse": np.inf}, reasons={"lse": found["not 0"]})
    assert outcome.word == "not 0"
    assert str(outcome) == f"mine float32 'one': out 0.5, lse: {found['not 0'].sentence}"
    floor = Outcome("one", "mine", "float16", {"out": 0.5}, 1.75)
    assert not floor.agrees
    assert str(floor).endswith("rms error of out 1.75 times that of the rounded truth (of 1.5)")
