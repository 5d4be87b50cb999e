"""`polyattn grade` among files that fail in every way: a sentence for each, and the grading goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyattn.cli import app
from polyattn.parity import grade_file
from polyattn.parity.grading.rules import CHECKS

PAGE = Path(__file__).parents[2] / "docs/grade.md"

RIGHT = """
import math
import numpy as np
import beside

def attention(q, k, v, mask=None, is_causal=False):
    scores = q @ k.T / math.sqrt(q.shape[-1])
    allowed = np.ones(scores.shape, bool) if mask is None else mask
    if is_causal:
        allowed = allowed & np.tril(np.ones(scores.shape, bool))
    scores = np.where(allowed, scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v
"""


def _run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["grade", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def _file(folder: Path, text: str) -> Path:
    path = folder / "solution.py"
    path.write_text(text)
    return path


def test_a_right_file_is_graded_with_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import numpy\nassert numpy.exp\nprint('noise ' * 9999)")
    (tmp_path / "numpy.py").write_text("1 / 0")  # which hides no library
    report = tmp_path / "grade.json"
    status, out, err = _run(_file(tmp_path, RIGHT), "--json", report)
    assert (status, err) == (0, ""), out
    assert out.startswith("attention of solution.py on numpy: 0 broken, 13 kept, 3 not attempted\n")
    assert "noise" not in out
    data = json.loads(report.read_text())
    assert data["passed"] is True
    assert [rule["name"] for rule in data["rules"] if rule["state"] != "kept"] == [
        "scale=",
        "leading",
        "heads",
    ]


def test_a_wrong_file_is_status_1_with_the_example_and_the_mistake(tmp_path: Path) -> None:
    wrong = "import numpy as np\ndef mine(q, k, v):\n    e = np.exp(q @ k.T)\n    return e / e.sum(-1, keepdims=True) @ v\n"
    status, out, _ = _run(_file(tmp_path, wrong), "--function", "mine", "--rules", "shapes, scale")
    assert status == 1
    assert out.startswith("mine of solution.py on numpy: 1 broken, 1 kept, 0 not attempted\n")
    assert "  query [[1 1 1 1]]  key [[0 0 0 0] [1 1 0 0]]  value [[0] [1]]\n" in out
    assert out.endswith("  mistake: scale = 1 (scores not divided)\n")


def test_the_page_for_teachers_shows_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text()
    solution, notebook = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    status, out, _ = _run(_file(tmp_path, solution))
    assert (status, out) == (1, shown)
    exec(solution + notebook, {})
    told = capsys.readouterr().out
    assert told.startswith("False ['both', 'empty', 'large']\n")
    assert told.removeprefix("False ['both', 'empty', 'large']\n").rstrip() in shown
    rows = [f"| `{c.name}` | {c.says} | [{c.rule[5:]}](contract.md#{c.rule}) |" for c in CHECKS]
    assert page.partition("| --- | --- | --- |\n")[2].partition("\n\n")[0].splitlines() == rows
    assert [c.demanding for c in CHECKS] == [False] * (len(CHECKS) - 2) + [True] * 2


@pytest.mark.skipif(os.name != "posix", reason="signals and forks")
def test_what_ends_its_process_breaks_a_rule_and_the_grading_goes_on(tmp_path: Path) -> None:
    hostile = """
import os, signal, sys, time
import numpy as np

def attention(q, k, v, mask=None, is_causal=False, scale=None):
    print("x" * 10**6)
    os.write(1, b"x" * 10**5)
    os.write(2, b"x" * 10**5)
    if q.ndim > 2:
        for pipe in range(3, 40):
            try:
                os.write(pipe, b"\\xff" * 64)
            except OSError:
                pass
    if is_causal:  # its child gets away, and holds the pipe
        if os.fork() == 0:
            os.setsid()
            time.sleep(4)
            os._exit(0)
        while True:
            pass
    if mask is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    if scale is not None:
        os._exit(7)
    if q.shape == (2, 2) and k.shape == (1, 2):
        raise RuntimeError("\\x1b[2J" + input())
    e = np.exp(q @ k.T / 1.0)
    return e / e.sum(-1, keepdims=True) @ v
"""
    rules = ["shapes", "one key", "scale", "scale=", "causal", "mask", "leading"]
    started = time.monotonic()
    found = grade_file(_file(tmp_path, hostile), rules=rules, seconds=0.7)
    assert time.monotonic() - started < 20
    assert {v.name: v.why for v in found.verdicts} == {
        "shapes": "",
        "one key": "it raised EOFError: EOF when reading a line",
        "scale": "",
        "scale=": "its process ended with status 7",
        "causal": "nothing came back within 0.7 seconds; does it ever end?",
        "mask": "its process ended by SIGKILL",
        "leading": "it does not take query (2, 3, 4) beside key (2, 5, 4): its process wrote what is no answer",
    }
    assert [v.mistake for v in found.broken if v.name == "scale"] == ["scale = 1 (scores not divided)"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def attention(q, k, v:\n", "got a syntax error at line 1, SyntaxError: "),
        ("x = 0\0", "source code string cannot contain null bytes; try python on it first"),
        (
            "1 / 0",
            "got one that ends when it is loaded, by ZeroDivisionError: division by zero; try python on",
        ),
        ("import sys; sys.exit('\x1b[2J')", "by SystemExit: ?[2J; try python on it first"),
        (
            "import os; os._exit(3)",
            "got a file of which, while it was loaded, its process ended with status 3",
        ),
        ("while True: pass", "while it was loaded, nothing came back within 0.5 seconds; does it ever end?"),
        ("attention = 3", "got that name for something that cannot be called and no function at all; name"),
        (
            "def atention(): pass\nclass B: pass",
            "got no such name and only B, atention; name the function with",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_status_2_and_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:  # fmt: skip
    status, out, err = _run(_file(tmp_path, text), "--seconds", 0.5)
    assert (status, out) == (2, "")
    assert err.startswith("polyattn grade: expected 'attention' in 'solution.py', got ")
    assert sentence in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_what_is_no_file_is_status_2_and_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.py", tmp_path):
        status, out, err = _run(path)
        assert (status, out) == (2, "")
        assert err.startswith(
            ("polyattn grade: expected a file, got ", "polyattn grade: expected a regular file, ")
        )
        assert err.count("\n") == 1
    mine = _file(tmp_path, RIGHT)
    assert _run(mine, "--json", mine)[0] == 2
    assert mine.read_text() == RIGHT
    status, _, err = _run(tmp_path / "nothing.py", "--rules", "sclae")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("polyattn grade: expected rules among shapes, repeat, convex, one key, ")


def test_a_library_that_is_missing_is_status_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError(\"No module named 'torch'\", name='torch')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    status, _, err = _run(_file(tmp_path, RIGHT), "--library", "torch")
    assert status == 3, err
    assert err.startswith(
        "polyattn grade: expected the library of the bench 'torch', which was asked for, got "
    )
    assert err.endswith("pip install torch\n")


def test_no_other_command_loads_the_grader() -> None:
    code = "import sys, polyattn.cli; print([name for name in sys.modules if 'parity.grading' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
