"""The contract is one page: its rules are shown by cases and tests, and what these name is on the page."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from polyattn import attention
from polyattn.parity.cases import cases

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contract.md").read_text()
RULES = re.findall(r"^\((rule-\d+)\)=\n### (\d+)\. ", PAGE, re.MULTILINE)


def marks(source: str) -> Iterator[str]:
    """The arguments of every `pytest.mark.rule(...)` in a program."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rule":
            yield from (ast.literal_eval(argument) for argument in node.args)


def test_every_heading_of_a_rule_has_the_anchor_of_its_number_and_they_count_up() -> None:
    assert len(re.findall(r"^### ", PAGE, re.MULTILINE)) == len(RULES)
    assert [anchor for anchor, _ in RULES] == [f"rule-{number}" for _, number in RULES]
    assert [int(number) for _, number in RULES] == list(range(1, len(RULES) + 1))


def test_every_rule_is_shown_by_a_case_or_a_test_and_every_rule_named_is_on_the_page() -> None:
    by_cases = {rule for case in cases() for rule in case.rules}
    by_tests = {rule for path in (ROOT / "tests").rglob("test_*.py") for rule in marks(path.read_text())}
    on_page = {anchor for anchor, _ in RULES}
    assert sorted(on_page - by_cases - by_tests) == [], "no case and no test shows them"
    assert sorted((by_cases | by_tests) - on_page) == [], "they are not on the page"


def test_marks_are_found_on_functions_and_on_modules() -> None:
    source = 'pytestmark = pytest.mark.rule("rule-1")\n@pytest.mark.rule("rule-2", "rule-3")\ndef f(): pass\n'
    assert sorted(marks(source)) == ["rule-1", "rule-2", "rule-3"]


def test_the_signature_on_the_page_is_that_of_the_function() -> None:
    program = PAGE.split("```python\n")[1].split("```")[0]
    (function,) = ast.parse(program).body
    assert isinstance(function, ast.FunctionDef)
    written = [a.arg for a in (*function.args.args, *function.args.kwonlyargs)]
    defaults = [ast.literal_eval(d) for d in function.args.kw_defaults if d is not None]
    parameters = inspect.signature(attention).parameters.values()
    asked = {p.name: p.default for p in parameters}
    assert dict(zip(written[3:], defaults, strict=True)) == {
        name: default for name, default in asked.items() if name not in ("query", "key", "value")
    }
    assert list(written[:3]) == list(asked)[:3]
