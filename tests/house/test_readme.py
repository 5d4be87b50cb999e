"""The README is true: its programs print what stands below them, its tables are those of today, its commands exist."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from polyattn.cli import app
from polyattn.models.real import real_input
from polyattn.parity.verify import plan
from polyattn.truth.measure import ACCEPTANCE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARITY = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))


def without_digits(text: str) -> str:
    """An eta depends on the processor."""
    return re.sub(r"eta [\d.e+-]+", "eta ...", text)


def rows(page: str, name: str) -> list[list[list[str]]]:
    """The tables between two marks, as lists of cells."""
    start, stop = TABLES["part"](page, name)
    tables = re.findall(r"(?:^\|.*\|\n?)+", page[start:stop], re.MULTILINE)
    return [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in tables]


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=["torch", "numpy", "start"])
def test_the_programs_print_what_stands_below_them(
    program: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(program, "README.md", "exec"), {})
    assert without_digits(capsys.readouterr().out) == without_digits(output)


def test_no_program_stands_without_its_output() -> None:
    assert README.count("```python") == len(PROGRAMS) == 3


def test_the_answers_of_the_libraries_are_those_of_the_dialects() -> None:
    start, stop = TABLES["part"](README, "features")
    assert README[start:stop] == TABLES["features"]()  # else: python docs/tables.py


def test_the_page_of_accelerators_shows_the_kept_results() -> None:
    page = TABLES["ACCELERATORS"].read_text(encoding="utf-8")
    start, stop = TABLES["part"](page, "compiled")
    assert page[start:stop] == TABLES["compiled"]()  # else: python docs/tables.py


def test_the_page_of_parity_has_every_case_and_all_agree() -> None:
    (head, _, *largest), (columns, _, *cases) = rows(PARITY, "parity")
    names = [case.name for case in plan(["numpy"], more=real_input()[0]).cases]
    assert [name for name in names if name not in [row[0] for row in cases]] == []
    assert set(head[1:]) == {column.split()[0] for column in columns[1:]} >= {"numpy", "jax", "torch"}
    for row in cases:
        found = [re.fullmatch(r"(\d+\.\d\d) ✓", cell) for cell in row[1:] if cell.strip()]
        assert found, row[0]
        assert all(cell is not None and float(cell[1]) <= ACCEPTANCE for cell in found), row[0]
    assert {row[0] for row in largest} == {"float64", "float32", "float16", "bfloat16"}


def test_the_excerpt_is_a_part_of_the_page() -> None:
    ((head, _, *shown),) = rows(README, "parity")
    _, (columns, _, *cases) = rows(PARITY, "parity")
    whole = {row[0]: dict(zip(columns, row, strict=False)) for row in cases}
    assert head[1:] == ["NumPy", "JAX", "PyTorch"]
    assert len(shown) == 5
    for name, *cells in shown:
        assert cells == [whole[name][f"{library} f32"] for library in ("numpy", "jax", "torch")]


def test_a_result_that_is_wrong_is_shown_so() -> None:
    def outcome(eta: float | None, error: str | None = None) -> dict[str, Any]:
        agrees = eta is not None and eta <= ACCEPTANCE and error is None
        return {
            "case": "plain",
            "backend": "numpy",
            "dtype": "float32",
            "eta": {"out": eta},
            "agrees": agrees,
            "error": error,
        }

    def table(*outcomes: dict[str, Any]) -> str:
        page: str = TABLES["whole"]({"versions": {"numpy": "2"}, "python": "3", "outcomes": outcomes})
        return page

    assert "| plain | 0.50 ✓ |" in table(outcome(0.5))
    assert "| plain | 5.00 ✗ |" in table(outcome(5.0))
    assert "| plain | inf ✗ |" in table(outcome(None))  # JSON has no infinity
    assert "| plain | error ✗ |" in table(outcome(0.5, "ValueError"))
    assert "0 of 1 results agree" in table(outcome(5.0))


def test_the_commands_exist() -> None:
    there = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^polyattn (\w+)(.*)$", README, re.MULTILINE)
    assert len(lines) == 6
    for name, rest in lines:
        options = {option for parameter in there[name].params for option in parameter.opts}
        assert set(re.findall(r"--\w+", rest)) <= options, name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README.split("| extra | brings |")[1].split("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    assert named == set(project["optional-dependencies"])


def test_the_picture_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "decoding.py"))
    assert script["FILE"].read_text(encoding="utf-8") == script["picture"]()
    drawn = script["picture"]()
    assert (
        drawn.count('fill="#3b82f6" fill-opacity') == 14 + 15 + 16
    )  # all words up to each of the last three
    assert drawn.count('fill="#d1453b" fill-opacity') == 1 + 2 + 3  # the flag: the first words


def test_every_room_is_on_the_page_of_rooms() -> None:
    order = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    page = (ROOT / "docs" / "design" / "rooms.md").read_text(encoding="utf-8")
    rooms = [name for floor in order["contracts"][0]["layers"] for name in floor.split(" | ")]
    assert len(rooms) > 20
    assert [name for name in rooms if not re.search(rf"`{name}(/|\.py)", page)] == []
