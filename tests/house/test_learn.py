"""The chapters of docs/learn/ hold what they promise: their parts, their laws, and answers that are right and wrong."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LEARN = Path(__file__).parents[2] / "docs" / "learn"
shown = runpy.run_path(str(LEARN.parent / "mistakes" / "cards.py"))["shown"]
CHAPTERS = sorted(path.stem for path in LEARN.glob("[0-9][0-9]-*.md"))
PARTS = ("The question", "The formula", "By hand", "The picture", "The source", "Three libraries", "Break it", "Exercises")  # fmt: skip
CELL = re.compile(r"^```\{code-cell\}\n(?:---\n.*?^---\n)?(.*?)^```", re.DOTALL | re.MULTILINE)


def text_of(chapter: str) -> str:
    return (LEARN / f"{chapter}.md").read_text(encoding="utf-8")


def part(chapter: str, name: str) -> str:
    return re.split(r"^## ", text_of(chapter).partition(f"\n## {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[
        0
    ]


@pytest.fixture
def classroom(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imported by name, as in a build, which runs a page in its folder."""
    monkeypatch.syspath_prepend(LEARN)
    import classroom

    yield classroom
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("classroom", "invariants", "exercises")
    ]:
        del sys.modules[name]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_its_parts_in_order(chapter: str) -> None:
    assert re.match(rf"# {int(chapter[:2])}\. \w", text_of(chapter).partition("---\n\n")[2])
    assert tuple(re.findall(r"^## (.*)$", text_of(chapter), re.MULTILINE)) == PARTS
    assert re.findall(r"^### (.*)$", part(chapter, "Exercises"), re.MULTILINE) == [
        f"Exercise {i}" for i in (1, 2, 3)
    ]
    assert "$$" in part(chapter, "The formula")
    assert "source(" in part(chapter, "The source")
    assert "everywhere(" in part(chapter, "Three libraries")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_cells_of_a_chapter_run_and_say_what_they_should(
    chapter: str, classroom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(LEARN)
    names: dict[str, Any] = {"__name__": "__main__"}
    answers, broken, etas = [], [], []
    for cell in CELL.findall(text_of(chapter)):
        value = shown(cell, names)
        if isinstance(value, classroom.Answer):
            answers.append((re.search(r'check\("(.*?)"', cell)[1], value.law))  # type: ignore[index]
        elif isinstance(value, classroom.Verdict) and cell in part(chapter, "Break it"):
            broken.append(bool(value))
        elif isinstance(value, classroom.Everywhere):
            etas.append(value.worst)
    asked = chapter[3:]
    assert answers == [(f"{asked}.{i}", law) for i in (1, 2, 3) for law in ("unwritten", "")]
    assert False in broken  # a mistake is made, and a law finds it
    assert etas
    assert max(etas) <= 4


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_wrong_answer_is_told_the_law_that_it_breaks(chapter: str, classroom: Any) -> None:
    for number, exercise in classroom.exercises()[chapter[3:]].items():
        assert {law.__name__ for law in exercise.laws} == exercise.wrong.keys()
        for law, wrong in exercise.wrong.items():
            assert classroom.check(f"{chapter[3:]}.{number}", wrong).law == law


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_a_notebook_too(chapter: str) -> None:
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(LEARN / f"{chapter}.md")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    hidden = [cell.source for cell in code if cell.metadata.get("jupyter") == {"source_hidden": True}]
    assert len(hidden) == 3  # the solutions, in JupyterLab too
    cells = [cell.source for cell in code]
    assert cells == [cell.strip() for cell in CELL.findall(text_of(chapter))]
    assert notebook.metadata["kernelspec"] == {"display_name": "Python 3", "name": "python3"}


def test_an_exercise_that_is_not_there_is_a_sentence(classroom: Any) -> None:
    with pytest.raises(
        ValueError, match=r"expected an exercise, as scores\.1, got 'scores\.9'; there are scores\.1"
    ):
        classroom.check("scores.9", print)


def test_what_is_not_written_or_gives_nothing_is_said(classroom: Any) -> None:
    def dots(q: Any, k: Any) -> Any: ...

    def forgotten(q: Any, k: Any) -> Any:
        q @ k.T

    assert str(classroom.check("scores.1", dots)) == "unwritten: write dots, and run this cell again"
    assert classroom.check("scores.1", 3).law == "unwritten"
    assert classroom.check("scores.1", forgotten).sentence == "forgotten gave None; is a return missing?"
    assert classroom.check("scores.3", lambda width, scale: 1.0).law == "the_scale_multiplies"


def test_a_difference_is_told_with_digits_that_differ(classroom: Any) -> None:
    said = classroom.apart([1.0, 1000.4], [1.0, 1000.0], "of two")
    assert said == "of two: the result at (1,) is 1000.4, not 1000"
    assert classroom.apart([0.5 + 1e-9], [0.5], "of one") == ""
