"""The built site: every public name has a page, a search finds it, and no page is wider than its window."""

from __future__ import annotations

import re
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


built = pytest.mark.skipif(
    not (SITE / "searchindex.js").is_file(), reason="no site in docs/_build: make docs"
)


@built
@pytest.mark.browser
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("softmax", "normalizers.html"),
        ("window", "masks.html"),
        ("GQA", "glossary.html"),
        ("grouped heads", "contract.html"),
        ("cache", "caches.html"),
        ("rope", "positions.html"),
        ("mismatch", "howto/mismatch.html"),
        ("diagnose", "reference/polyattn.parity.html"),
    ],
)
def test_a_search_finds_the_page_among_the_first_five(words: str, page: str, browser: Any) -> None:
    browser.get(f"{(SITE / 'search.html').as_uri()}?q={words.replace(' ', '+')}")
    assert page in [address.partition("#")[0] for address in found(browser)][:5]


@built
@pytest.mark.browser
def test_a_search_for_what_is_nowhere_finds_nothing(browser: Any) -> None:
    browser.get(f"{(SITE / 'search.html').as_uri()}?q=zzyzx")
    assert found(browser) == []


def found(browser: Any) -> list[str]:
    """The addresses that a search page lists once it has finished, without what they highlight."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = "return document.querySelector('.search-summary')?.textContent ?? ''"
    WebDriverWait(browser, 30).until(lambda b: re.search("finished|did not match", b.execute_script(script)))
    links = "return [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
    return [
        address.replace("?highlight=", "#").partition("?")[0] for address in browser.execute_script(links)
    ]


PAGES = ("index", "learning", "howto/index", "howto/mismatch", "reference", "contract", "parity", "performance",
         "capabilities", "reference/polyattn.masks", "design/index", "learn/index", "learn/03-masks", "pictures",
         "teachers/index")  # fmt: skip


@built
@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_no_page_is_wider_than_its_window(page: str, width: int, browser: Any) -> None:
    """Wide tables and programs scroll in boxes of their own."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((SITE / f"{page}.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = (
        "return [...document.querySelectorAll('.content table, .content pre, .content svg, .content img')].filter(x => {"
        "if (!x.getBoundingClientRect().width) return false;"
        "for (let e = x; e && !e.matches('.content'); e = e.parentElement) {"
        "if (getComputedStyle(e).overflowX == 'auto') return false;}"
        "return x.getBoundingClientRect().right > innerWidth;}).map(x => x.outerHTML.slice(0, 80))"
    )
    assert browser.execute_script(wide) == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@built
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index", "learn/03-masks", "teachers/index", "pictures", "parity"])
def test_no_page_has_a_serious_fault_for_those_who_see_or_move_otherwise(
    page: str, scheme: str, browser: Any
) -> None:
    """By the rules of axe-core; what the theme leaves of moderate ones is its own."""
    from axe_core_python.selenium import Axe

    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
    browser.get((SITE / f"{page}.html").as_uri())
    grave = {
        (broken["id"], node["html"][:120])
        for broken in Axe().run(browser)["violations"]
        if broken["impact"] in ("serious", "critical")
        for node in broken["nodes"]
    }
    assert grave == set()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@built
@pytest.mark.browser
def test_the_picture_of_the_start_page_stops_and_goes_on(browser: Any) -> None:
    browser.set_window_size(
        1280, 900
    )  # all of it is in sight: pages scroll smoothly, and a click waits for nobody
    browser.get((SITE / "index.html").as_uri())
    stopped = "return document.querySelector('.moving-picture svg').animationsPaused()"
    button = browser.find_element("css selector", ".moving-picture button")
    assert (button.text, browser.execute_script(stopped)) == ("Pause", False)
    button.click()
    assert (button.text, browser.execute_script(stopped)) == ("Play", True)
    button.click()
    assert (button.text, browser.execute_script(stopped)) == ("Pause", False)
