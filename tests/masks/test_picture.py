"""Pictures of masks: which items and heads look alike, and one SVG that is right to the cell and inert."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from polyattn import masks
from polyattn.masks.algebra import Mask
from polyattn.masks.picture import MOST, panels, svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(picture: str, queries: int, keys: int) -> list[np.ndarray]:
    """The tiles of every panel, read back from the paths."""
    found = []
    for path in ElementTree.fromstring(picture).iter(f"{SVG}path"):
        if path.get("fill") == "none":
            continue
        rows = np.zeros((queries, keys), bool)
        for kv, q, run, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path.get("d", "")):
            assert run == back
            assert not rows[int(q), int(kv) : int(kv) + int(run)].any()
            rows[int(q), int(kv) : int(kv) + int(run)] = True
        found.append(rows)
    return found


def texts(picture: str) -> list[str | None]:
    return [text.text for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "offset"),
    [
        (masks.causal(), 8, 8, 0),
        (masks.causal() & masks.window(3, 0), 5, 9, 4),
        (masks.dilated(2) | masks.prefix(3), 40, 60, 0),
        (masks.window(60, 60), 500, 500, 0),
        (masks.query_lengths(2), 3, 4, 0),
    ],
)
def test_every_tile_is_where_the_mask_shows_a_key(mask: Mask, queries: int, keys: int, offset: int) -> None:
    picture = svg(mask, queries, keys, query_offset=offset)
    (tiles,) = drawn(picture, queries, keys)
    np.testing.assert_array_equal(tiles, mask.dense(queries, keys, query_offset=offset))
    assert {"key", "query", "0"} <= set(texts(picture))


def test_items_that_differ_have_a_panel_each_and_those_alike_share_one() -> None:
    mask = masks.key_lengths([3, 5, 3])
    picture = svg(mask, 2, 6)
    three, five = drawn(picture, 2, 6)
    assert (three.sum(), five.sum()) == (6, 10)
    assert {"items 0, 2", "item 1"} <= set(texts(picture))
    (same,) = panels(masks.key_lengths([4, 4]), 2, 6)
    assert same.label == ""


def test_heads_and_items_are_named() -> None:
    array = np.arange(6).reshape(2, 3, 1, 1) < np.arange(1, 7)
    assert [panel.label for panel in panels(masks.from_array(array), 1, 6)][:3] == [
        "item 0, head 0",
        "item 0, head 1",
        "item 0, head 2",
    ]
    (one,) = panels(masks.from_array(array), 1, 6, b=1, h=0)
    assert one.rows == [[False, False, False, True, True, True]]
    assert [panel.label for panel in panels(masks.from_array(array[:1]), 1, 6)] == [
        "head 0",
        "head 1",
        "head 2",
    ]
    crossed = np.array([[0, 1], [1, 0]], bool).reshape(2, 2, 1, 1)
    assert [panel.label for panel in panels(masks.from_array(crossed), 1, 1)] == [
        "item 0, head 0 and 1 more",
        "item 0, head 1 and 1 more",
    ]


def test_what_has_no_room_is_counted() -> None:
    picture = svg(masks.key_lengths(range(MOST + 3)), 1, 20)
    assert len(drawn(picture, 1, 20)) == MOST
    assert "and 3 more" in texts(picture)


def test_the_picture_needs_nothing_and_obeys_no_label() -> None:
    class Hostile(type(masks.causal())):  # type: ignore[misc]
        def __str__(self) -> str:
            return "</text></svg><script>alert(1)</script>\x1b[31m\x00" + "x" * 400

    picture = svg(Hostile(None, 0), 3)
    root = ElementTree.fromstring(picture)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "title", "text", "g", "path"}
    assert not re.search(r"[\x00\x1b]|href|style|url\(", picture)
    caption = texts(picture)[0]
    assert caption is not None
    assert caption.endswith("...")


def test_the_position_of_the_first_query_is_said() -> None:
    assert texts(svg(masks.causal(), 1, 3, query_offset=2))[0] == "causal(), query 0 at position 2"
    many = masks.causal() & masks.window(1, 1) & masks.prefix(3)
    cut = texts(svg(many, 1, 3, query_offset=2))[0]
    assert cut == "causal() & wi..., query 0 at position 2"


def test_nothing_to_draw_is_a_picture_too() -> None:
    for queries, keys in ((0, 0), (0, 3), (3, 0)):
        ElementTree.fromstring(svg(masks.causal(), queries, keys))
