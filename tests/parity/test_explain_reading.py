"""The page of explain-text is read and used by everybody: by keyboard, by screen readers, on a phone, in both schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shared.explained import made, needs_smollm2, open_page

from polyattn.models.explain import page


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_axe_is_broken(scheme: str, browser: Any, tmp_path: Path) -> None:
    from axe_core_python.selenium import Axe

    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
    open_page(browser, made(), tmp_path)
    found = Axe().run(browser)
    assert [(broken["id"], node["html"]) for broken in found["violations"] for node in broken["nodes"]] == []
    assert len(found["passes"]) > 10
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.browser
def test_everything_can_be_done_by_keyboard_and_is_said(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        actions = ActionChains(browser)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def control(key: str) -> None:
        ActionChains(browser).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def state() -> dict[str, Any]:
        found: dict[str, Any] = browser.execute_script("return polyattn.state()")
        return found

    def tab_to(what: str) -> None:
        for _ in range(60):
            press(Keys.TAB)
            here = browser.switch_to.active_element
            assert here.accessible_name, here.get_attribute("outerHTML")
            if browser.execute_script("return arguments[0].matches(arguments[1])", here, what):
                return
        raise AssertionError(f"no way by Tab to {what}")

    open_page(browser, made(), tmp_path)
    said = browser.find_element("id", "said")
    assert said.get_attribute("aria-live") == "polite"
    tab_to("#layer")
    press(Keys.ARROW_DOWN)
    assert state()["layer"] == 4
    tab_to("#heads input")
    press(Keys.ARROW_RIGHT)
    assert state()["head"] == 8
    tab_to("#mask")
    press(Keys.ARROW_DOWN)
    assert state()["mask"] == "causal"
    tab_to("#window")
    press("3")
    assert state()["window"] == 3
    tab_to("#cap")
    press("-", "1")
    assert browser.switch_to.active_element.get_attribute("aria-invalid") == "true"
    assert said.text == "cap: expected a number above 0, or nothing, got -1"
    tab_to("#reset")
    press(Keys.ENTER)
    assert (state()["mask"], state()["window"], state()["cap"]) == ("none", None, None)
    tab_to("#words input")
    press(Keys.ARROW_RIGHT)
    tab_to("#grid td")
    control(Keys.HOME)
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("data-at") == "2,1"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    press(Keys.ENTER)
    assert (state()["query"], state()["key"]) == (2, 1)
    weight = browser.execute_script("return polyattn.weights()[2][1]")
    assert said.text == (
        f"Layer 4, head 8: \u201c\u2068cat\u2069\u201d gives \u201c\u2068the\u2069\u201d {100 * weight:.1f} percent."
    )
    tab_to("#row input")
    control("a")
    press("9")
    assert state()["retyped"] == [["2,0", 9]]
    assert browser.execute_script("return polyattn.weights()[2][0]") > 0.9
    tab_to("#size")
    tab_to("#step")
    press(Keys.END)
    assert "the output; no number differs by more than" in browser.find_element("id", "average-title").text
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_pointing_at_a_token_and_at_a_cell_shows_where_it_looks(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    def shades() -> list[float]:
        found = "return [...document.querySelectorAll('#words span')].map((x) => Number(x.style.getPropertyValue('--weight')))"
        return list(browser.execute_script(found))

    open_page(browser, made(), tmp_path)
    weights = browser.execute_script("return polyattn.weights()")
    chosen = browser.execute_script("return polyattn.state().query")
    assert shades() == weights[chosen]
    words = browser.find_elements("css selector", "#words label")
    other = (chosen + 3) % len(words)
    ActionChains(browser).move_to_element(words[other]).perform()
    assert shades() == weights[other]
    ActionChains(browser).move_to_element(browser.find_element("tag name", "h1")).perform()
    assert shades() == weights[chosen]
    browser.find_element("css selector", '[data-at="1,4"]').click()
    assert shades() == weights[1]
    assert browser.execute_script("return [polyattn.state().query, polyattn.state().key]") == [1, 4]
    assert (
        browser.find_element("id", "cell-title").text
        == "One weight: “\u2068the\u2069” looks at “\u2068on\u2069”"
    )
    assert browser.get_log("browser") == []


@pytest.mark.browser
@needs_smollm2
def test_the_pairing_of_rotary_positions_is_switched_and_seen(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select

    def numbers() -> list[list[str]]:
        rows = "return [...document.querySelectorAll('#vectors tr')].map((tr) => [...tr.children].map((x) => x.textContent))"
        return list(browser.execute_script(rows))

    open_page(browser, made("smollm2"), tmp_path)
    browser.execute_script("polyattn.set({query: 5, key: 2}); document.querySelector('details').open = true")
    choice = Select(browser.find_element("id", "pairing"))
    assert [option.text for option in choice.options] == ["interleaved", "half-split", "none"]
    assert choice.first_selected_option.text == "interleaved"
    seen = {}
    for option in ("interleaved", "half-split", "none"):
        choice.select_by_visible_text(option)
        (names, *rows), weights = numbers(), browser.execute_script("return polyattn.weights()")
        assert names == ["d", "q", "q turned", "k", "k turned", "q k", "v", "w v", "out"]
        first = browser.find_element("css selector", "#steps li").text
        assert first.startswith("rotary positions: q stands at 5, k at 2; ")
        seen[option] = ([row[1::2][:2] for row in rows], [row[2::2][:2] for row in rows], weights, first)
    before = [of[0] for of in seen.values()]
    assert before[0] == before[1] == before[2]
    assert seen["none"][1] == seen["none"][0]
    assert len({str(of[1]) for of in seen.values()}) == len({of[3] for of in seen.values()}) == 3
    assert len({str(of[2]) for of in seen.values()}) == 3
    browser.find_element("id", "reset").click()
    assert choice.first_selected_option.text == "interleaved"
    refused = "try { polyattn.set({pairing: 'both'}) } catch (error) { return error.message }"
    assert browser.execute_script(refused) == "pairing: expected interleaved, half or none, got both"
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_model_without_rotary_positions_has_no_such_switch(browser: Any, tmp_path: Path) -> None:
    open_page(browser, made(), tmp_path)
    assert browser.find_elements("css selector", "#pairing, #q-before") == []
    assert "rotary" not in browser.find_element("tag name", "body").text
    assert "pairing" not in browser.execute_script("return polyattn.state()")
    refused = "try { polyattn.set({pairing: 'half'}) } catch (error) { return error.message }"
    assert browser.execute_script(refused).endswith("size, step, got pairing")


@pytest.mark.browser
@pytest.mark.parametrize("model", ["minilm", pytest.param("smollm2", marks=needs_smollm2)])
def test_a_screen_reader_is_told_the_name_of_everything(model: str, browser: Any, tmp_path: Path) -> None:
    """By the accessibility tree of Chromium: axe-core, which has more rules, is in no package that this project uses."""
    open_page(browser, made(model), tmp_path)
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    named = {"combobox", "spinbutton", "button", "radio", "slider", "radiogroup", "grid", "gridcell", "heading", "columnheader"}  # fmt: skip
    assert [role for role, name in seen if role in named and not name.strip()] == []
    for role in ("main", "status", "RootWebArea"):
        assert [found for found, _ in seen].count(role) == 1, role
    headings = [name for role, name in seen if role == "heading"]
    assert len(headings) == len(set(headings)) == 6
    switches = [name for role, name in seen if role in ("combobox", "spinbutton")]
    expected = [
        "Layer",
        "Mask",
        "Window, to either side",
        "Scale",
        "Soft cap",
        "Sink, a score",
        "Keys in a tile",
    ]
    assert set(expected) | ({"Rotary pairing"} if model == "smollm2" else set()) <= set(switches)
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map((h) => h.tagName)")
    assert levels == ["H1", *["H2"] * 5]
    assert browser.execute_script("return document.documentElement.lang") == "en"


#: A line for each text, and each edge of a control, whose contrast with what lies behind is below that of WCAG 2.2, AA.
FAINT = """
const parse = (text) => {
  const given = text.match(/[\\d.e-]+/g).map(Number);
  const scale = text.startsWith('color(srgb') ? 1 : 255;
  return [...given.slice(0, 3).map((x) => x / scale), given.length > 3 ? given[3] : 1];
};
const over = ([r, g, b, a], under) => [r, g, b].map((x, i) => a * x + (1 - a) * under[i]);
const behind = (element) => {
  if (element === null) return [1, 1, 1];
  const colour = parse(getComputedStyle(element).backgroundColor);
  return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(element.parentElement));
};
const light = (colour) => {
  const [r, g, b] = colour.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const found = [];
let asked = 0;
const ask = (what, colour, ground, least) => {
  asked += 1;
  const got = ratio(over(parse(colour), ground), ground);
  if (got < least) found.push(`${what}: ${got.toFixed(2)}, expected ${least}`);
};
for (const element of document.body.querySelectorAll('*')) {
  const style = getComputedStyle(element);
  if (!element.checkVisibility() || ['SCRIPT', 'STYLE', 'NOSCRIPT', 'OPTION'].includes(element.tagName)) continue;
  const name = `${element.tagName}#${element.id}.${element.className} ${element.textContent.slice(0, 20)}`;
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
  const control = element.matches('select, button, input[type="number"]');
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (own || control) ask(name, style.color, behind(element), large ? 3 : 4.5);
  if (control) ask(`edge of ${name}`, style.borderTopColor, behind(element.parentElement), 3);
  if (element.placeholder) ask(`placeholder of ${name}`, getComputedStyle(element, '::placeholder').color, behind(element), 4.5);
  if (element.matches('.bars i, .meter i')) ask(`bar in ${element.parentElement.id}`, style.backgroundColor, behind(element.parentElement), 3);
}
return [asked, found];
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("model", ["minilm", pytest.param("smollm2", marks=needs_smollm2)])
def test_nothing_is_faint(model: str, scheme: str, browser: Any, tmp_path: Path) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    open_page(browser, made(model), tmp_path)
    browser.execute_script("document.querySelector('details').open = true")
    for changes in (
        "{}",
        "{scale: 30}",
        "{scale: 0.3, mask: 'causal', retyped: new Map([['3,1', 2]]), query: 3}",
    ):
        browser.execute_script(f"polyattn.set({changes})")
        asked, faint = browser.execute_script("for (const x of document.getAnimations()) x.finish();" + FAINT)
        assert faint == []
        assert asked > 300
    cap = browser.find_element("id", "cap")
    cap.send_keys("-1")
    assert browser.execute_script(FAINT)[1] == []
    browser.execute_script("document.body.style.color = document.body.style.backgroundColor = '#888'")
    assert browser.execute_script(FAINT)[1] != []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_both_schemes(browser: Any, tmp_path: Path, scheme: str) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    open_page(browser, page("supercalifragilisticexpialidocious " * 3), tmp_path)
    browser.execute_script("document.querySelector('details').open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    open_page(browser, made(), tmp_path)
    fits = "const x = document.getElementById('row').parentElement; return x.scrollWidth <= x.clientWidth"
    assert browser.execute_script(fits)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []
