"""Objects show themselves in a notebook: inert, self-contained, on white paper and on black."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from polyattn import AuxRequest, attention, layers, masks, trace
from polyattn.draw import html_table
from polyattn.parity import compare, diagnose

Q, K, V = np.random.default_rng(0).normal(size=(3, 2, 4, 6, 8)).astype(np.float32)
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"


def aux(q: Any = Q, k: Any = K, v: Any = V) -> Any:
    return attention(q, k, v, is_causal=True, return_aux=AuxRequest(lse=True, weights=True))[1]


def named(name: str) -> Callable[..., Any]:
    def near(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return abs(q - kv) <= 1

    near.__name__ = name
    return near


def compared() -> Any:
    inputs = {"query": Q, "key": K, "value": V}
    sides = (lambda q, k, v: trace(q, k, v, scale=1.0)), trace
    return compare(*sides, inputs, on=("numpy", "numpy"), names=(HOSTILE, "ours"), gradients=False)


@dataclass(frozen=True)
class Hostile(layers.Layer):
    word: str = "x"

    def parameters(self) -> Any:
        return {HOSTILE: layers.LayerNorm(3, epsilon=1e-5), "w": layers.Parameter((2, 5), layers.Normal(1.0))}


def encoder() -> layers.Encoder:
    return layers.Encoder(layers.EncoderBlock.preset("torch", 8, 2, 16), depth=3)


SHOWN: dict[str, Callable[[], Any]] = {
    "a mask": lambda: masks.mask_mod(named(HOSTILE)) & masks.key_lengths([3, 9]),
    "aux": aux,
    "a diagnosis": lambda: diagnose(attention(Q, K, V, scale=32**-0.5), Q, K, V, is_causal=True),
    "an agreement": lambda: diagnose(attention(Q, K, V), Q, K, V),
    "a riddle": lambda: diagnose(np.ones_like(Q), Q, K, V, pairs=False),
    "a comparison": compared,
    "a layer": lambda: Hostile(HOSTILE),
    "a stack of layers": encoder,
    "a trace": lambda: trace(Q, K, V, score_mod=lambda s, b, h, q, kv: s),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_notebook_shows_is_inert_and_needs_nothing(name: str) -> None:
    page = SHOWN[name]()._repr_html_()
    elements = list(ElementTree.fromstring(f"<div>{page}</div>").iter())  # every tag is closed
    tags = {element.tag.rpartition("}")[2] for element in elements}
    assert tags <= {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "div",
        "p",
        "strong",
        "svg",
        "title",
        "text",
        "g",
        "path",
    }
    attributes = {name for element in elements for name in element.attrib}
    assert not [x for x in attributes if x in ("src", "href", "class", "id") or x.startswith("on")]
    assert "background" not in page  # the paper is the notebook's, and so is the colour of what is read
    assert not re.search(r"(?<!-)color:", page)


def test_a_layer_is_the_tree_of_its_parts_and_counts_all_numbers() -> None:
    layer = encoder()
    params = layer.init(0, like=Q)

    def counted(part: Any) -> int:
        return sum(map(counted, part.values())) if isinstance(part, dict) else part.size

    page = layer._repr_html_()
    assert f"<strong>{counted(params):,}</strong>" in page
    assert page.count("block_0 ... block_2, 3 alike") == 1
    assert f"{counted(params):,}</td>" in page  # of the blocks together
    assert page.count(">w_q<") == 1
    depths = [float(x) for x in re.findall(r"padding-left: ([\d.]+)em", page)]
    assert sorted(set(depths)) == [0.5, 1.9, 3.3]


def test_columns_of_numbers_end_at_one_edge() -> None:
    page = html_table(("name", "eta"), [("out", "1.5e-07"), ("dq", "inf"), ("dk", "-")])
    assert page.count("text-align: right") == page.count("text-align: left") == 4
    assert "right" not in html_table(("eta",), [("1.5",), ("NaN here",)])


def test_a_mask_is_drawn_in_the_size_of_its_arrays() -> None:
    def drawn(mask: masks.Mask) -> tuple[str, int]:
        page = mask._repr_html_()
        assert page is not None
        size = re.search(r": (\d+ queries, \d+ keys)</title>", page)
        assert size is not None
        return size[1], page.count("<text y=")

    allowed = np.random.default_rng(0).random((2, 1, 5, 7)) < 0.5
    assert drawn(masks.causal()) == ("8 queries, 8 keys", 1)
    assert drawn(masks.from_array(allowed) & masks.key_lengths([3, 6])) == ("5 queries, 7 keys", 2)
    assert drawn(masks.from_array(allowed[..., :1]) | masks.causal()) == ("5 queries, 8 keys", 2)
    assert drawn(~masks.segments(np.array([0, 0, 1]))) == ("3 queries, 3 keys", 1)
    assert drawn(masks.query_lengths(10) & masks.key_lengths([3, 9])) == ("10 queries, 9 keys", 2)


def test_a_mask_that_cannot_be_drawn_is_shown_as_text() -> None:
    table = np.ones(4, bool)
    assert masks.mask_mod(lambda b, h, q, kv: table[q] & table[kv])._repr_html_() is None  # it knows 4 rows
    assert masks.from_array(np.ones((2000, 2), bool))._repr_html_() is None


def test_weights_are_drawn_where_they_are_few_enough_to_see() -> None:
    assert aux()._repr_html_().count("<text y=") == 4  # a square a head of the first item
    page = aux(*(x[:, :, [0] * 40] for x in (Q, K, V)))._repr_html_()
    assert "(2, 4, 40, 40)" in page
    assert "<svg" not in page
    assert "<svg" not in aux(Q[:, :, :0], K[:, :, :0], V[:, :, :0])._repr_html_()
    assert (
        "blockwise"
        in attention(Q, K, V, implementation="blockwise", return_aux=AuxRequest(lse=True))[1]._repr_html_()
    )


def test_aux_shows_itself_while_it_is_traced() -> None:
    jax = pytest.importorskip("jax")
    pages = []

    def look(x: Any) -> Any:
        pages.append(aux(x, x, x)._repr_html_())
        return x

    jax.jit(look)(Q)
    assert "(2, 4, 6, 6)" in pages[0]
    assert "<svg" not in pages[0]


@pytest.mark.parametrize(
    "draw",
    [lambda: masks.causal().figure(4), lambda: trace(Q, K, V, is_causal=True).figure()],
    ids=["mask", "trace"],
)
def test_a_figure_shows_itself_without_pyplot_and_without_paper(draw: Callable[[], Any]) -> None:
    page = draw()._repr_svg_()
    assert ElementTree.fromstring(page).tag == "{http://www.w3.org/2000/svg}svg"
    assert "#ffffff" not in page  # no paper
    assert "#000000" not in re.sub(r'id="image\w+".*?/>', "", page, flags=re.DOTALL)  # no black ink
    assert "#767676" in page
