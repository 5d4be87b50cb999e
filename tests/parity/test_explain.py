"""The page of explain-text holds what the model computes, and computes what the library does, whatever is switched."""

from __future__ import annotations

import base64
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.explained import TEXT, arrays, data_of, made, needs_smollm2, open_page

from polyattn import AuxRequest, masks, mods, trace
from polyattn.models import minilm, smollm2
from polyattn.parity import ACCEPTANCE, Spec, eta, truth
from polyattn.truth import Judged

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
            row = right["output"].moved(itemgetter(np.s_[:, :, computed[0][3]]))
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
    of_head = right.moved(lambda x: x[0, 7])
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
