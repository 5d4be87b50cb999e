"""The plan of the engine itself: which tiles run, in blocks of which items and heads, of which size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn import Blockwise, Reference, attention, masks
from polyattn.arrays import TileSizes, backend_of
from polyattn.implementations.blockwise.plan import Visits, plan
from polyattn.implementations.choice import choose
from polyattn.masks.lengths import Prefix
from polyattn.masks.relative import Chunked
from polyattn.masks.tiles import FULL, PARTIAL, both_ways, grid
from polyattn.places import Places
from polyattn.problem import Problem, pose

IDS = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 2, 2, 2, 2, 2, 2, 3, 3]])
HIDE = np.random.default_rng(0).random((2, 1, 10, 10)) < 0.8
HIDE[1, :, 4:8, :4] = False
#: mask and options: what 10 rows may see of 10 keys, for both items alike or for each
SEEN: dict[str, dict[str, Any]] = {
    "everything": {},
    "causal": {"is_causal": True},
    "a window": {"mask": masks.window(2, 1)},
    "nothing": {"mask": masks.key_lengths(0)},
    "lengths": {"mask": masks.key_lengths([4, 10])},
    "documents": {"mask": masks.segments(IDS)},
    "an array": {"mask": HIDE},
    "an offset for each": {"is_causal": True, "query_offset": np.array([0, -5])},
    "documents, causal": {"mask": masks.segments(IDS) & masks.causal()},
}


def posed(rows: int = 10, keys: int = 10, heads: int = 4, kv_heads: int = 2, **options: Any) -> Problem:
    """A problem without memory of its own."""
    sizes = ((heads, rows), (kv_heads, keys), (kv_heads, keys))
    q, k, v = (np.broadcast_to(np.zeros(1, np.float32), (2, *size, 1)) for size in sizes)
    return pose("polyattn.attention", q, k, v, **options)


def visited(visits: Visits, item: int, size: int, extent: int) -> list[tuple[set[int], set[int]]]:
    """For every tile of one axis the tiles of the other that it meets: as full, and with the mask."""

    def line(table: Any, i: int) -> Any:
        return table[item if len(table) > 1 else 0][i]

    found = []
    for i in range(len(visits.full_n[0])):
        full = set() if visits.full == 0 else set(line(visits.full, i)[: line(visits.full_n, i)])
        part = set() if visits.part == 0 else set(line(visits.part, i)[: line(visits.part_n, i)])
        found.append((full, part | ({extent // size} if line(visits.rest, i) else set())))
    return found


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("tile", [(4, 4), (5, 2), (3, 10), (16, 16)])
def test_exactly_the_tiles_that_have_something_to_see_are_met(name: str, tile: tuple[int, int]) -> None:
    p = posed(**SEEN[name])
    cut = plan(p, Blockwise(*tile))
    rows, keys = min(tile[0], 10), min(tile[1], 10)
    assert cut.sizes == (rows, keys, 1)
    allowed = np.ones((2, 1, 10, 10), bool) if p.mask is None else p.mask.allowed(p.positions())
    allowed = np.broadcast_to(allowed, (2, 1, 10, 10))[:, 0]
    for item in range(2):
        for seen, visits, a, b in (
            (allowed[item], cut.by_query, rows, keys),
            (allowed[item].T, cut.by_key, keys, rows),
        ):
            expected = []
            for i in range(0, 10, a):
                tiles = [seen[i : i + a, j : j + b] for j in range(0, 10, b)]
                whole = [tile.all() and (j + 1) * b <= 10 for j, tile in enumerate(tiles)]
                some = [tile.any() for tile in tiles]
                expected.append(
                    (
                        {j for j, full in enumerate(whole) if full},
                        {j for j, full in enumerate(whole) if some[j] and not full},
                    )
                )
            assert visited(visits, item, b, 10) == expected


def test_items_that_look_alike_share_one_list() -> None:
    def lists(**options: Any) -> int:
        return len(plan(posed(**options), Blockwise(4, 4)).by_query.full_n)

    assert lists() == lists(is_causal=True) == lists(mask=masks.key_lengths(3)) == 1
    assert lists(mask=masks.key_lengths([4, 10])) == 2
    assert lists(is_causal=True, query_offset=np.array([0, -5])) == 2
    assert lists(is_causal=True, query_offset=np.array([-5])) == 1


@pytest.mark.parametrize(
    ("wanted", "kv_heads", "blocks"), [(None, 6, None), (1, 6, 1), (4, 6, 2), (3, 6, 3), (4, 5, 1)]
)
def test_blocks_have_equal_numbers_of_kv_heads(
    wanted: int | None, kv_heads: int, blocks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = TileSizes(8, 8, wanted)
    monkeypatch.setattr(type(backend_of(HIDE)), "tile_sizes", lambda self, p: sizes)
    p = posed(heads=kv_heads, kv_heads=kv_heads, mask=masks.key_lengths([4, 10]))
    cut = plan(p, Blockwise())
    assert cut.sizes.kv_heads == blocks
    assert len(cut.by_query.full_n) == (1 if wanted is None else 2)  # a block of all items has one list
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, kv_heads, 10, 4))
    out = attention(q, k, v, mask=masks.key_lengths([4, 10]), implementation="blockwise")
    one = attention(q, k, v, mask=masks.key_lengths([4, 10]), implementation=Blockwise(8, 8))
    assert (out == one).all()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 512),  # no mask
        ({"is_causal": True}, 512),  # more visits cost more than what is left out
        ({"mask": masks.sliding_window(256)}, 256),
        ({"mask": masks.window(None, 100)}, 256),
        ({"mask": masks.sliding_window(16)}, 128),
        ({"mask": masks.window(None, 2000)}, 512),
        ({"mask": masks.mask_mod(lambda b, h, q, kv: abs(q - kv) < 16)}, 512),  # nobody knows what it hides
        ({"is_causal": True, "query_offset": np.array(0)}, 512),  # not the same for every call
        ({"mask": masks.from_array(np.tri(2048, k=16, dtype=bool))}, 512),
        ({"mask": masks.key_lengths([16, 16]) & masks.sliding_window(16)}, 512),  # not the same for all items
    ],
    ids=[
        "all",
        "causal",
        "middle",
        "beyond",
        "narrow",
        "wide",
        "function",
        "array offset",
        "array",
        "lengths",
    ],
)
def test_tiles_are_as_fine_as_the_mask_is_narrow(options: dict[str, Any], size: int) -> None:
    p = posed(2048, 2048, heads=1, kv_heads=1, **options)
    cut = plan(p, Blockwise())
    assert cut.sizes == (size, size, 1)
    assert cut == plan(p, Blockwise(size, size))  # what was joined from finer tiles is what it is


def test_tiles_that_were_asked_for_are_taken() -> None:
    narrow = {"mask": masks.sliding_window(16)}
    assert plan(posed(2048, 2048, **narrow), Blockwise(300, 200)).sizes[:2] == (300, 200)
    assert plan(posed(2048, 2048, heads=1, kv_heads=1, **narrow), Blockwise(rows=300)).sizes[:2] == (300, 512)
    assert plan(posed(30, 20, mask=masks.key_lengths(9)), Blockwise(300, 200)).sizes[:2] == (30, 20)


@pytest.mark.parametrize(("heads", "kv_heads", "rows"), [(4, 4, 512), (8, 2, 128), (32, 1, 16), (96, 1, 16)])
def test_a_tile_of_numpy_is_one_mebibyte_whatever_the_group(heads: int, kv_heads: int, rows: int) -> None:
    p = posed(2048, 2048, heads=heads, kv_heads=kv_heads)
    assert p.backend.tile_sizes(p) == (rows, 512, 1)


@pytest.mark.parametrize(
    ("rows", "keys", "heads", "kv_heads", "name"),
    [
        (16, 2**14, 2, 2, "reference"),  # 16 rows for each kv head: 4 MiB of scores
        (17, 2**14, 2, 2, "blockwise"),
        (8, 2**14, 4, 2, "reference"),
        (9, 2**14, 4, 2, "blockwise"),
        (16, 2**21, 1, 1, "reference"),  # 256 MiB
        (16, 2**21 + 1, 1, 1, "blockwise"),
        (128, 1024, 1, 1, "reference"),  # 1 MiB
        (128, 1025, 1, 1, "blockwise"),
    ],
)
def test_numpy_reads_few_rows_by_the_definition_and_many_tile_by_tile(
    rows: int, keys: int, heads: int, kv_heads: int, name: str
) -> None:
    assert choose(posed(rows, keys, heads, kv_heads), "auto").implementation.name == name


def test_a_limit_of_no_bytes_lets_nothing_pass_but_nothing() -> None:
    x = np.zeros((0, 4))
    assert attention(x, x, x, implementation=Reference(max_bytes=0)).shape == (0, 4)
    with pytest.raises(ValueError, match="expected at most 0 bytes of scores"):
        attention(np.zeros((1, 4)), np.zeros((1, 4)), np.zeros((1, 4)), implementation=Reference(max_bytes=0))


def test_a_cut_asks_about_what_is_seen_and_its_edge_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many questions as tiles that are seen, whatever the number of tiles."""
    asked: list[Any] = []
    box = Chunked.box
    monkeypatch.setattr(Chunked, "box", lambda self, given: (asked.append(given), box(self, given))[1])
    for tiles in (64, 1024):
        asked.clear()
        found, _ = both_ways(
            masks.chunked(50) & masks.causal(), 16 * tiles, 16 * tiles, (16, 16), places=Places()
        )
        seen = sum(stop - start for line in found for start, stop, _ in line)
        assert tiles <= seen <= 4 * tiles
        assert len(asked) <= 12 * seen


def test_what_is_full_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    box = Prefix.box
    monkeypatch.setattr(Prefix, "box", lambda self, given: (asked.append(given), box(self, given))[1])
    found, _ = both_ways(masks.prefix(2**9), 2**10, 2**10, (2, 2), places=Places())
    assert found == (((0, 2**8, FULL),),) * 2**9
    assert len(asked) == 5  # the whole, and its quarters


def test_tiles_that_are_alike_are_one_run() -> None:
    found, _ = both_ways(masks.causal(), 2**20, 2**20, (2**10, 2**10), places=Places())
    assert found[0] == ((0, 1, PARTIAL),)
    assert all(line == ((0, i, FULL), (i, i + 1, PARTIAL)) for i, line in enumerate(found[1:], 1))


def test_a_window_over_a_million_tokens_is_planned_by_its_tiles() -> None:
    cut_ = plan(posed(10**6, 10**6, 1, 1, mask=masks.sliding_window(128)), Blockwise())
    assert cut_.sizes == (128, 128, 1)
    assert len(cut_.by_query.full_n[0]) == len(cut_.by_key.full_n[0]) == 7813
    assert sum(cut_.by_query.part_n[0]) + sum(cut_.by_query.rest[0]) == 2 * 7813 - 1


@pytest.mark.parametrize("offsets", [[0, 40], [40, 0], [0, 0], [-9, 3, 40]])
def test_a_cut_for_all_items_is_that_of_each_of_them_joined(offsets: list[int]) -> None:
    places = Places(np.array(offsets), 0)
    alone = [grid(masks.causal(), 12, 32, (2, 4), b=b, places=places) for b in range(len(offsets))]
    joined = [
        tuple(tiles[0] if len(set(tiles)) == 1 else PARTIAL for tiles in zip(*lines, strict=True))
        for lines in zip(*alone, strict=True)
    ]
    assert list(grid(masks.causal(), 12, 32, (2, 4), places=places)) == joined
