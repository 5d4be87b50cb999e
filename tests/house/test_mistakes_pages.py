"""The cards of docs/mistakes/ are true: wrong code breaks its law, right code keeps it, and all fifty-nine are there."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyattn.parity import Diagnosis

MISTAKES = Path(__file__).parents[2] / "docs" / "mistakes"
DOOR = runpy.run_path(str(MISTAKES / "cards.py"))
PAGES: tuple[str, ...] = DOOR["PAGES"]
CARDS = [card for page in PAGES for card in DOOR["cards"](page)]
OFTEN = {1: "", 2: "twice", 3: "three times", 4: "four times"}
INDEX = DOOR["INDEX"].read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \d.*$", INDEX, re.MULTILINE)


@pytest.fixture(autouse=True)
def beside_the_pages() -> Iterator[None]:
    """The laws are imported by name, as in a build, which runs a page in its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(MISTAKES)
        yield
    for name in ("invariants", "programs"):
        sys.modules.pop(name, None)


def test_every_number_has_one_card() -> None:
    found = Counter(number for card in CARDS for number in card.numbers)
    assert found == Counter(range(1, 60))


def test_every_page_of_the_folder_is_read() -> None:
    assert {path.stem for path in MISTAKES.glob("*.md")} == {*PAGES, "index"}
    for page in PAGES:
        assert f"\n{page}\n" in INDEX.split("{toctree}")[1]


def test_a_card_says_how_often_it_was_counted() -> None:
    assert [card.title for card in CARDS if card.often != OFTEN[len(card.numbers)]] == []


@pytest.mark.parametrize("page", PAGES)
def test_wrong_code_breaks_its_law_and_right_code_keeps_it(page: str) -> None:
    if "import torch" in DOOR["text_of"](page):
        pytest.importorskip("torch")
    told = []
    for found in DOOR["answers"](page):
        title = found.card.title
        assert not found.wrong, title
        assert str(found.wrong).startswith("broken: "), title
        assert "\n" not in str(found.wrong), title
        assert found.right, f"{title}: {found.right}"
        if found.diagnosis is not None:
            assert isinstance(found.diagnosis, Diagnosis), title
            assert not found.diagnosis.agrees, title
        told.append(found.row)
    assert [row for row in told if row not in ROWS] == []  # else: python docs/mistakes/cards.py
    assert len(told) == len(DOOR["cards"](page)) > 3


def test_the_table_has_a_line_for_each_card_in_the_order_of_numbers() -> None:
    first = [int(row.split()[1].rstrip(",")) for row in ROWS]
    assert first == sorted(card.numbers[0] for card in CARDS)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.title)
def test_right_code_is_asked_what_wrong_code_was(card: Any) -> None:
    assert len(card.cells) in (3, 4)
    one, other = (ast.parse(card.cells[i]).body[-1] for i in (1, -1))
    assert ast.unparse(one).replace("wrong", "right") == ast.unparse(other)
    assert ast.unparse(one) != ast.unparse(other)
    assert len(card.cells) == 3 or re.search(r"^diagnose\(wrong\(", card.cells[2], re.MULTILINE)


def test_every_law_has_a_card_that_breaks_it() -> None:
    laws = set(
        re.findall(r"^@law\ndef (\w+)", "".join(map(_source, ("invariants", "programs"))), re.MULTILINE)
    )
    asked = {ast.parse(card.cells[1]).body[-1].value.func.id for card in CARDS}  # type: ignore[attr-defined]
    assert asked == laws
    assert len(laws) > 20


def test_only_the_page_that_needs_it_imports_a_framework() -> None:
    assert [page for page in PAGES if re.search(r"import (torch|jax)", DOOR["text_of"](page))] == ["python"]


def test_the_program_of_the_index_runs() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", INDEX, re.DOTALL)
    names: dict[str, Any] = {"my_attention": lambda q, k, v: v}
    exec(compile(program, "index.md", "exec"), names)
    names["test_my_attention"]()  # a token that sees itself alone
    names["my_attention"] = lambda q, k, v: v.mean(-2, keepdims=True) + 0 * v
    with pytest.raises(AssertionError, match="broken: with other tokens from 1 on"):
        names["test_my_attention"]()


def _source(module: str) -> str:
    return (MISTAKES / f"{module}.py").read_text(encoding="utf-8")
