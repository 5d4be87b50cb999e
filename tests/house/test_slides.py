"""The figures for slides are written, each light and dark, with no word over another, and stand on the page of teachers."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

TEACHERS = Path(__file__).parents[2] / "docs" / "teachers"
NAMES = ("steps", "masks", "heads", "alignment", "fold", "caches", "turns", "costs")


@pytest.fixture(scope="module", autouse=True)
def _path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TEACHERS)
        yield


def drawn(name: str, theme: str) -> Any:
    from matplotlib import rc_context

    slide = import_module("slide")
    with rc_context(slide.STYLE):
        return import_module("slides").FIGURES[name](getattr(slide, theme))


def words(slide: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in slide.figure.findobj(Text) if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("name", NAMES)
def test_no_word_lies_over_another_or_off_the_slide_or_is_small(name: str) -> None:
    from matplotlib import rc_context
    from matplotlib.text import Text

    slide = drawn(name, "LIGHT")
    with rc_context(import_module("slide").STYLE):
        assert import_module("overlap").overlapping(slide.figure) == []
        wide, high = slide.figure.get_size_inches() * slide.figure.dpi
        for text in slide.figure.findobj(Text):
            if text.get_visible() and text.get_text():
                box = text.get_window_extent()
                assert 0 < box.x0 < box.x1 < wide, text.get_text()
                assert 0 < box.y0 < box.y1 < high, text.get_text()
                assert text.get_fontsize() >= 14, text.get_text()


def contrast(a: str, b: str) -> float:
    def light(color: str) -> float:
        x = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        x = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        return float(x @ [0.2126, 0.7152, 0.0722]) + 0.05

    one, other = light(a), light(b)
    return max(one, other) / min(one, other)


def test_the_colours_are_in_sight() -> None:
    slide = import_module("slide")
    for theme in (slide.LIGHT, slide.DARK):
        assert contrast(theme.ink, theme.paper) >= 7
        assert min(contrast(color, theme.paper) for color in (theme.blue, theme.orange)) >= 4.5
        assert contrast(theme.line, theme.paper) >= 3
        for share in np.linspace(0, 1, 21):
            ground = slide.mixed(theme.soft, theme.blue, share)
            assert contrast(slide.plainer(ground), ground) >= 4.5


def test_the_same_is_said_on_white_and_on_black() -> None:
    for name in NAMES:
        assert words(drawn(name, "LIGHT")) == words(drawn(name, "DARK"))


def test_what_is_said_is_what_attention_computes() -> None:
    slides = import_module("slides")
    x = slides.VECTORS
    scores = x @ x.T
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    numbers = [f"{entry:.2f}" for matrix in (scores, weights, weights @ x) for entry in matrix.ravel()]
    assert [text for text in words(drawn("steps", "LIGHT")) if re.fullmatch(r"\d\.\d\d", text)] == numbers
    assert [text for text in words(drawn("alignment", "LIGHT")) if "→" in text] == [
        "→ 8",
        "→ 6",
        "→ 4",
        "→ 6",
    ]
    said = words(drawn("fold", "LIGHT"))
    assert [said[said.index("average", i) + 1] for i, text in enumerate(said) if text == "maximum"] == [
        "4",
        "6",
        "5",
    ]
    assert any("from L = 127 " in text for text in words(drawn("costs", "LIGHT")))  # 127 + 1 = 2 * 64


def test_each_is_written_four_times_at_sixteen_by_nine(tmp_path: Path) -> None:
    slides, slide = import_module("slides"), import_module("slide")
    assert tuple(slides.FIGURES) == NAMES
    made = slide.save(slides.FIGURES["alignment"], "alignment", tmp_path / "slides")
    kinds = [(theme, kind) for theme in ("light", "dark") for kind in ("svg", "png")]
    assert [path.name for path in made] == [f"alignment-{theme}.{kind}" for theme, kind in kinds]
    again = slide.save(slides.FIGURES["alignment"], "alignment", tmp_path / "again")
    for first, second in zip(made, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    for svg in made[::2]:
        root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
        wide, high = (float(root.attrib[side].removesuffix("pt")) for side in ("width", "height"))
        assert round(wide / high, 3) == round(16 / 9, 3)
    for png in made[1::2]:
        data = png.read_bytes()
        assert [int.from_bytes(data[i : i + 4], "big") for i in (16, 20)] == [1920, 1080]


@pytest.mark.parametrize("name", ["exact", "overlap"])
def test_the_examples_of_a_program_are_true(name: str) -> None:
    found = doctest.testmod(import_module(name))
    assert (found.failed, found.attempted > 0) == (0, True)


def test_the_page_shows_each_and_offers_all_of_its_files() -> None:
    page = (TEACHERS / "index.md").read_text(encoding="utf-8")
    for name in NAMES:
        for theme in ("light", "dark"):
            assert (
                len(re.findall(rf'<img class="only-{theme}"[^>]* src="slides/{name}-{theme}\.svg"', page))
                == 1
            )
            for kind in ("svg", "png"):
                assert f'href="slides/{name}-{theme}.{kind}"' in page
    for file in ("worksheet.pdf", "solutions.pdf"):
        assert f'href="{file}"' in page
