"""The chat answers what its README says, a piece at a time."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "examples/chat"


@pytest.fixture(scope="module")
def chat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chat", FOLDER / "chat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_answer_is_that_of_the_readme(
    chat: ModuleType, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()
    app.command()(chat.main)
    said, noted = io.StringIO(), io.StringIO()
    monkeypatch.setattr(chat, "said", chat.Console(file=said, highlight=False, soft_wrap=True))
    monkeypatch.setattr(chat, "noted", chat.Console(file=noted))
    result = CliRunner().invoke(app, ["What is the capital of France?", "--backend", backend])
    assert result.exit_code == 0, result.output
    assert said.getvalue() == "The capital of France is Paris.\n"
    assert said.getvalue() in (FOLDER / "README.md").read_text()
    assert "s to the first token, then" in noted.getvalue()
