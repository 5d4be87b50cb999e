"""The pictures of pages are what their scripts draw, and stand on the pages with words for who does not see them."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures"
NUMBER = r"-?\d+(?:\.\d+)?"
PAGES = {
    "mechanisms": ("differential", "forgetting", "latent", "mixing", "selection", "tensor-product"),
    "pages": ("normalizers", "positions", "linear", "caches", "models"),
}
NAMES = [(script, name) for script, names in PAGES.items() for name in names]


@pytest.fixture(scope="module")
def pictures() -> Iterator[Callable[[str], dict[str, Any]]]:
    """The PICTURES of a script, each a function that draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIGURES)
        yield cache(lambda script: runpy.run_path(str(FIGURES / f"{script}.py"))["PICTURES"])


def same(old: str, new: str) -> bool:
    """Alike but for a unit in the last digit of a number, which processors round differently."""
    if re.sub(NUMBER, "#", old) != re.sub(NUMBER, "#", new):
        return False
    for a, b in zip(re.findall(NUMBER, old), re.findall(NUMBER, new), strict=True):
        digits = max(len(x.partition(".")[2]) for x in (a, b))
        if abs(float(a) - float(b)) > 1.01 * 10.0**-digits:
            return False
    return True


def test_every_script_is_known(pictures: Callable[[str], dict[str, Any]]) -> None:
    assert {script: tuple(pictures(script)) for script in PAGES} == PAGES


@pytest.mark.parametrize(("script", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_picture_is_what_its_script_draws(
    script: str, name: str, pictures: Callable[[str], dict[str, Any]]
) -> None:
    if name == "models":
        pytest.importorskip("transformers")
    kept = (FIGURES / f"{name}.svg").read_text(encoding="utf-8")
    assert same(kept, str(pictures(script)[name]())), f"python docs/figures/{script}.py"
    assert len(kept) < 60_000


@pytest.mark.parametrize(("script", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_picture_is_read_by_its_page(script: str, name: str) -> None:
    """It says itself what it is, in words that fit into it; its page says what is seen."""
    svg = ElementTree.fromstring((FIGURES / f"{name}.svg").read_text(encoding="utf-8"))
    title = svg.find("{*}title")
    assert title is not None
    assert title.text
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    assert width <= 840
    for text in svg.iter("{*}text"):
        if "transform" in text.attrib:
            continue
        x, room = float(text.attrib["x"]), 7.0 * len(text.text or "")
        start = x - room * {"middle": 0.5, "end": 1.0}.get(text.attrib.get("text-anchor", ""), 0.0)
        assert start >= -4, text.text
        assert start + room <= width + 4, text.text
        assert 0 < float(text.attrib["y"]) <= height, text.text
    folder = DOCS / "mechanisms" if script == "mechanisms" else DOCS
    place = f"{'../' * (script == 'mechanisms')}figures/{name}.svg"
    words = re.findall(rf"!\[([^\]]+)\]\({re.escape(place)}\)", (folder / f"{name}.md").read_text("utf-8"))
    assert len(words) == 1
    assert len(words[0]) > 40
