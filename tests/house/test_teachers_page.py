"""What the page of teachers asks for exists: rules of the grader, commands, chapters, problems of the sheet."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polyattn.cli import app
from polyattn.parity.grading.grader import RULES, grade

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "teachers" / "index.md").read_text(encoding="utf-8")
ASKED = sorted(set(re.findall(r'polyattn grade solution\.py --rules ("[^"]+"|all)', PAGE)))
#: In the order in which they are read.
CHAPTERS = "scores softmax masks heads grouped-heads cross additive positions gradients online-softmax blockwise kernels caches ring linear mechanisms whole-model"  # fmt: skip


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> np.ndarray:
    """What a student has at the end of the week."""
    if query.ndim == 3:
        group = len(query) // len(key)
        key, value = (np.repeat(x, group, axis=0) for x in (key, value))
    seen = np.ones((query.shape[-2], key.shape[-2]), bool) if mask is None else mask
    if is_causal:
        seen = seen & np.tril(np.ones(seen.shape, bool))
    key = np.where(seen.any(0)[:, None], key, 0)
    value = np.where(seen.any(0)[:, None], value, 0)
    root = np.float32(query.shape[-1] ** -0.5 if scale is None else scale)
    scores = np.where(seen, query @ key.swapaxes(-1, -2) * root, -np.inf)
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ value


@pytest.mark.parametrize("asked", ASKED)
def test_the_rules_of_a_week_exist_and_can_be_kept(asked: str) -> None:
    rules = asked.strip('"').split(",")
    assert set(rules) <= {*RULES, "all"}
    found = grade(attention, rules=rules)
    assert [verdict.name for verdict in found.verdicts if verdict.state != "kept"] == []
    assert len(found.verdicts) == (len(RULES) if rules == ["all"] else len(rules))


def test_the_week_and_the_course_ask_for_every_rule() -> None:
    for part in PAGE.split("\n## ")[2:4]:
        named = {rule for rules in re.findall(r'--rules "([^"]+)"', part) for rule in rules.split(",")}
        assert set(RULES) - {"hidden", "dtype"} <= named
        assert "--rules all" in part


def test_every_chapter_has_its_place_in_the_course() -> None:
    files = [f"{i:02}-{name}.md" for i, name in enumerate(CHAPTERS.split(), 1)]
    lecture, _, course = PAGE.split("\n## ")[1:4]
    assert re.findall(r"\.\./learn/([\w-]+\.md)", course) == files
    assert re.findall(r"\.\./learn/([\w-]+\.md)", lecture) == files[:5]
    written = sorted(path.name for path in (DOCS / "learn").glob("[0-9][0-9]-*.md"))
    assert not written or written == files


def test_every_problem_of_the_sheet_has_its_place() -> None:
    _, week, course = PAGE.split("\n## ")[1:4]
    in_week = [
        int(n) for said in re.findall(r"problems? ([\d, and]+)", week) for n in re.findall(r"\d+", said)
    ]
    in_course = [
        int(n) for said in re.findall(r"sheet ([\d, again]+)", course) for n in re.findall(r"\d+", said)
    ]
    assert set(in_course) == set(range(1, 12))
    assert set(in_week) == set(range(1, 12)) - {8, 10}  # gradients and states have no session in a week


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`polyattn ((?:mask|info) [^`]+)`", PAGE))))
def test_a_command_to_show_runs(command: str) -> None:
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def test_the_settings_of_the_notebooks_in_a_browser_can_be_read() -> None:
    for name in ("jupyter_lite_config.json", "jupyter-lite.json"):
        text = (DOCS / "lite" / name).read_text(encoding="utf-8")
        settings = json.loads(text)
        assert settings
    kernel = settings["jupyter-config-data"]["litePluginSettings"][
        "@jupyterlite/pyodide-kernel-extension:kernel"
    ]
    assert kernel["pyodideUrl"].endswith("/pyodide.js")
    page = (DOCS / "lite.md").read_text(encoding="utf-8")
    assert kernel["pyodideUrl"] in page
    assert "unproven" in page
