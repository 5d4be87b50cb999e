"""The README is true: its programs run, and its table has the cases and the verdict of today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polyattn.models.trial import real_input
from polyattn.parity.verify import plan

README = (Path(__file__).parents[2] / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=["numpy", "jax", "torch", "pullback", "layers", "diagnose"])
def test_the_programs_run(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_parity_table_has_every_case_and_agrees() -> None:
    table = README.split("## Parity")[1].split("```")[1]
    for case in plan(["numpy"], more=real_input()[0]).cases:
        assert re.search(rf"^{re.escape(case.name)} .*✓$", table, re.MULTILINE), case.name
    assert "AGREE:" in table
    assert "✗" not in table
