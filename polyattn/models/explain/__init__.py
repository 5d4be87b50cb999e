"""A text, a pretrained model, and one page on where its tokens look; what the page shows it computes itself."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import numpy as np

from polyattn.calls import integer, shown
from polyattn.models.explain.texts import MODELS, Model
from polyattn.parity.report import visible
from polyattn.rotary import Rotary, angles
from polyattn.truth.spec import Floats

__all__ = ["MOST_BYTES", "MOST_TOKENS", "page"]

_WHO = "polyattn.models.explain.page"
#: The most tokens of a page: more cells than their square are neither read nor drawn at once.
MOST_TOKENS = 96
_SCRIPTS = ("arithmetic.js", "parts.js", "held.js", "built.js", "drawn.js", "page.js")
#: The most bytes that the numbers of a page may fill, in base64.
MOST_BYTES = 2_900_000


def page(text: str, *, model: str = "minilm", layer: int = 0, head: int = 0) -> str:
    """One HTML file on the attention of a pretrained model to a text: every weight, and the numbers that it is made of.

    model: "minilm" (extra pretrained) or "smollm2" (extra chat). layer, head: what is shown first, from 0. The file holds
    q, k and v of the layers in float32, with rotary positions q and k before they are turned and the angles; it computes in
    float64. Where all layers would fill more than `MOST_BYTES` it holds the one asked for and others spread evenly, and says
    which. It fetches nothing and runs nothing but its own script.

    ValueError for an empty text, one of more than `MOST_TOKENS` tokens, an unknown model, layer or head;
    ModuleNotFoundError where the model is not installed; ImportError without Jinja2.

        html = page("The cat sat on the mat because it was tired", layer=2, head=4)
    """
    found = _model(model)
    for name, given, count in (("layer", layer, found.depth), ("head", head, found.heads)):
        if not 0 <= integer(_WHO, name, given) < count:
            raise ValueError(
                f"{_WHO}: expected {name} to be from 0 to {count - 1}, those of {found.name}, got {shown(given)}; choose one"
            )
    read = found.read(_numbers(found, text))
    layers = [tuple(np.asarray(x, np.float32) for x in qkv) for qkv in read.layers]
    q, k, _ = layers[0]
    kept = _kept(found.depth, layer, MOST_BYTES // sum(len(_base64(x)) for x in layers[0]))
    data = {
        "tokens": [visible(token) for token in read.tokens],
        "heads": q.shape[0],
        "kvHeads": k.shape[0],
        "width": q.shape[2],
        "first": found.added // 2,
        "last": len(read.tokens) - found.added // 2,
        "causal": found.is_causal,
        "scale": q.shape[2] ** -0.5,
        "rotary": None if found.rotary is None else _turning(found.rotary, len(read.tokens), q.shape[2]),
        "layer": layer,
        "head": head,
        "layers": [
            {"number": i, **dict(zip(("query", "key", "value"), map(_base64, layers[i]), strict=True))}
            for i in kept
        ],
    }
    stored = (
        f"All {found.depth} layers are in this file."
        if len(kept) == found.depth
        else f"Of its {found.depth} layers {', '.join(map(str, kept))} are in this file, which would be too large with all."
    )
    words = {"model": found.name, "about": found.about, "stored": stored, "text": visible(text)}
    return _render(**words, data=_inert(data), turned=found.rotary is not None)


def _turning(rotary: Rotary, length: int, width: int) -> dict[str, str]:
    """By which angle the model turns each pair of each token, and which entries it takes for a pair."""
    turns = angles(np.arange(length)[:, None], rotary.frequencies(width), np.float32)
    return {"angles": _base64(turns), "pairing": "interleaved" if rotary.interleaved else "half"}


def _model(name: str) -> Model:
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"{_WHO}: expected model to be {' or '.join(MODELS)}, got {shown(name)}; choose one")
    return MODELS[name]


def _numbers(model: Model, text: str) -> list[int]:
    """The tokens of a text that a page can show."""
    if not isinstance(text, str):
        raise TypeError(f"{_WHO}: expected text to be a str, got {shown(text)}; give a sentence")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(
            f"{_WHO}: expected a text that Unicode can write, got half a character (a surrogate) in it; give it in UTF-8"
        )
    numbers = model.numbers(text) if text.strip() else []
    if len(numbers) <= model.added:
        raise ValueError(f"{_WHO}: expected a text with a word in it, got {shown(text)}; give a sentence")
    if len(numbers) > MOST_TOKENS:
        raise ValueError(
            f"{_WHO}: expected a text of at most {MOST_TOKENS} tokens, which a page can show ({model.name} itself reads "
            f"{model.longest}), got {len(numbers)}; give a shorter one"
        )
    return numbers


def _kept(depth: int, chosen: int, room: int) -> list[int]:
    """The numbers of as many layers as there is room for: all of them, or the chosen one and others spread evenly.

    >>> _kept(6, 1, 9), _kept(30, 8, 4), _kept(6, 3, 1)
    ([0, 1, 2, 3, 4, 5], [0, 8, 19, 29], [3])
    """
    if room >= depth:
        return list(range(depth))
    if room == 1:
        return [chosen]
    spread = [round(i * (depth - 1) / (room - 1)) for i in range(room)]
    nearest = min(range(room), key=lambda i: abs(spread[i] - chosen))
    return [*spread[:nearest], chosen, *spread[nearest + 1 :]]


def _base64(x: Floats) -> str:
    return base64.b64encode(x.astype("<f4").tobytes()).decode()


def _inert(data: object) -> str:
    """JSON in which nothing can end the element that holds it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _render(*, data: str, **words: object) -> str:
    """The template with its style and its scripts, which are allowed by their hash; every word escaped."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ImportError(
            f"{_WHO}: expected Jinja2, which makes pages, got an environment without it; pip install 'polyattn[cli]'"
        ) from None
    folder = Path(__file__).parent

    def contents(*names: str) -> dict[str, str]:
        whole = "".join((folder / name).read_text(encoding="utf-8") for name in names)
        digest = base64.b64encode(hashlib.sha256(whole.encode()).digest()).decode()
        kind = "style" if names[0].endswith(".css") else "script"
        return {kind: Markup(whole), f"{kind}_hash": digest}

    templates = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    template = templates.get_template("page.html.j2")
    parts = contents("page.css") | contents(*_SCRIPTS)
    return str(template.render(data=Markup(data), **parts, **words))
