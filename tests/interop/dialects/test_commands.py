"""polyattn dialects: the table and its traps in a terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from typer.testing import CliRunner

from polyattn.cli import app
from polyattn.dialects import DIALECTS


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def test_the_command_shows_dialects_answers_and_traps() -> None:
    everything = run("dialects")
    assert everything.exit_code == 0
    assert all(name in everything.output for name in DIALECTS)
    one = run("dialects", "flash_attn.2")
    assert "last query with last key (read, not tested)" in one.output
    two = run("dialects", "torch.sdpa", "flash_attn.2")
    assert two.exit_code == 0
    bites = r"^BITES +causal with L != S\n +torch.sdpa: first query with first key -> "
    assert re.search(bites, two.output, re.MULTILINE)
    assert "flash_attn.2 returns what is meant" in two.output
    assert not re.search(
        r"(?m)^BITES +causal", run("dialects", "jax.nn", "flash_attn.2", "--call", "L=4,causal=1").output
    )


def test_wrong_usage_of_the_commands_is_status_2_and_a_sentence() -> None:
    for args, sentence in (
        (["dialects", "torch.sdpa", "nobody"], "expected one of torch.sdpa,"),
        (["dialects", "torch.sdpa", "jax.nn", "--call", "L=x"], "expected NAME=NUMBER"),
        (["dialects", "torch.sdpa", "jax.nn", "--call", "L=9000"], "explain a smaller call"),
        (
            ["verify", "--peers", "--backend", "jax"],
            "expected --peers with --case, --quick, --seed and --json alone",
        ),
        (["verify", "--peers", "--case", "nobody"], "got 'nobody'; there are golden six tokens"),
    ):
        result = run(*args)
        assert result.exit_code == 2
        assert sentence in " ".join(result.output.split())


@pytest.mark.parametrize("width", ["80", "60"])
def test_a_narrow_terminal_cuts_no_word(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    listed = run("dialects").output
    assert "…" not in listed
    for name in DIALECTS:
        assert re.search(rf"^{re.escape(name)} ", listed, re.MULTILINE)
    assert "…" not in run("dialects", "transformers").output
