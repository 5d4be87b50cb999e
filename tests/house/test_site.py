"""The built site: every public name has a page, a search finds it, and no page is wider than its window."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SITE = DOCS / "_build" / "html"


@pytest.fixture(scope="module")
def unshown() -> Any:
    pytest.importorskip("sphinx")
    return runpy.run_path(str(DOCS / "conf.py"))["unshown"]


def test_a_public_name_on_no_page_is_found(unshown: Any) -> None:
    surface = {"polyattn.truth": ["eta", "truth"], "polyattn.parity": ["eta", "truth"]}
    shown, modules = {"polyattn.truth.eta"}, {"polyattn.truth"}
    assert unshown(surface, shown, modules) == ["polyattn.truth.truth", "polyattn.parity.truth"]
    assert unshown(surface, shown | {"polyattn.parity.truth"}, {*modules, "polyattn.parity"}) == []


def test_a_name_of_another_thing_does_not_count(unshown: Any) -> None:
    surface = {"polyattn.parity": ["eta"]}
    assert unshown(surface, {"polyattn.testing.eta"}, {"polyattn.testing"}) == ["polyattn.parity.eta"]
