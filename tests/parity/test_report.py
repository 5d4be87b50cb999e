"""A report is one inert page: whatever the labels say, nothing runs, nothing is fetched, nothing is overwritten."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from polyattn import attention, trace
from polyattn.parity import Comparison, compare
from polyattn.parity.verify import plan

HOSTILE = (
    "</title></pre></script><script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b[31m\x00"
)
Q, K, V = np.random.default_rng(0).normal(size=(3, 1, 2, 6, 4))


@pytest.fixture(scope="module")
def hostile() -> Comparison:
    inputs = {"query": Q, "key": K, "value": V}
    return compare(
        lambda q, k, v: trace(q, k, v, scale=1.0),
        lambda q, k, v: trace(q, k, v),
        inputs,
        on=("numpy", "numpy"),
        names=(HOSTILE, "ours"),
        gradients=False,
    )


class Elements(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_a_hostile_label_is_text(hostile: Comparison) -> None:
    page = hostile.to_html()
    elements = Elements(page)
    assert "script" not in elements.tags
    assert "img" not in elements.tags
    assert not [
        name for name, _ in elements.attributes if name.startswith("on") or name in ("src", "href", "style")
    ]
    assert "&lt;script&gt;document.title" in page
    assert not re.search(r"[\x00\x1b]", page + str(hostile) + hostile.to_junit())


def test_the_page_allows_nothing_but_its_own_style(hostile: Comparison) -> None:
    page = hostile.to_html()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert "http:" not in page
    assert "https:" not in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_the_page_says_everything(hostile: Comparison) -> None:
    page = hostile.to_html()
    for heading in (
        "eta in float64",
        "Stages",
        "What explains it",
        "Worst element",
        "To see it again",
        "Environment",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "scale = 1 (scores not divided)" in page
    assert "The first stage that differs: scores." in page
    assert np.__version__ in page


def test_json_and_junit_say_the_same(hostile: Comparison) -> None:
    data = json.loads(json.dumps(hostile.to_json(), allow_nan=False))
    assert data["agrees"] is False
    assert data["first_divergence"] == "scores"
    assert data["sides"][1]["agrees"] is True
    suite = ElementTree.fromstring(hostile.to_junit())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")


def test_a_report_never_overwrites_unless_forced(hostile: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    hostile.to_html(path)
    before = path.read_text()
    with pytest.raises(FileExistsError) as there:
        hostile.to_html(path)
    assert str(there.value) == (
        f"polyattn.parity.Comparison.to_html: expected a new file for the report, got {str(path)!r}, which is there; force it, or name another"
    )
    path.write_text("mine")
    hostile.to_html(path, force=True)
    assert path.read_text() == before
    with pytest.raises(FileNotFoundError, match=r"expected an existing folder for the report 'r\.html'"):
        hostile.to_html(tmp_path / "nowhere" / "r.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.npz"]


def test_verify_has_a_page_too() -> None:
    work = plan(["numpy"], ["float32"], ["golden", "plain"])
    list(work.run())
    page = work.to_html()
    assert "golden six tokens" in page
    assert "AGREE: 2 results" in page
    assert page.count('<td class="good"') == 2


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_in_a_browser(browser: Any, hostile: Comparison, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "report.html"
    hostile.to_html(path)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    assert browser.title.startswith("</title></pre></script><script>")  # text, not a program
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.execute_script("return document.images.length") == 0
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    assert browser.execute_script("return document.querySelector('.verdict.bad').innerText").startswith(
        "DISAGREE"
    )
    shown = browser.find_element("css selector", "svg rect")
    assert shown.size["width"] > 0
    assert browser.get_log("browser") == []  # no console message: no error, nothing blocked
    if scheme == "light":
        assert len(browser.print_page()) > 10_000  # a PDF in base64


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(browser: Any, hostile: Comparison, tmp_path: Path) -> None:
    work = plan(["numpy"], only=["golden", "plain"])
    list(work.run())
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    for name, page in (("verify", work.to_html()), ("compare", hostile.to_html())):
        (tmp_path / f"{name}.html").write_text(page, encoding="utf-8")
        browser.get((tmp_path / f"{name}.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390, name
        text = browser.find_element("css selector", "svg text")
        assert text.size["height"] > 11, name  # pixels, in which it can be read
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_comparison_that_agrees_has_a_good_verdict_and_nothing_to_repeat() -> None:
    inputs = {"query": Q, "key": K, "value": V}
    good = compare(attention, attention, inputs, on=("numpy", "numpy"), gradients=False)
    assert 'class="verdict good"' in good.to_html()
    assert "To see it again" not in good.to_html()
