"""Mask objects: their dense form is a comparison, and what they say of a tile is exact."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared.libraries import mpl, torch

from polyattn import attention, masks
from polyattn.masks import EMPTY, FULL, PARTIAL, Mask
from polyattn.parity import ACCEPTANCE, Spec, eta, round_to
from polyattn.testing import Bench
from polyattn.truth import truth

Q, KV = np.arange(7)[:, None], np.arange(9)
IDS, OTHER = np.array([0, 0, 1, 1, 1, 2, 0]), np.array([0, 0, 1, 1, 2, 2, 2, 0, 5])
ARRAY = np.random.default_rng(0).random((7, 9)) < 0.5
PARENTS = np.array([-1, 0, 0, 1, -1, 1, 5])
ANCESTORS = np.array([[1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1]], bool)  # fmt: skip
STARTS, STOPS = np.array([0, 2, 5, 0, 3, 9, 1]), np.array([9, 3, 5, 0, 8, 12, 2])

#: What the queries 0 to 8 of random_blocks(8, 2, 2, 5) see, as it was drawn on 2026-11-30; query 8 is beyond.
BLOCKS = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]], bool)
RANDOM = np.pad(BLOCKS.repeat(2, 0).repeat(2, 1), ((0, 1), (0, 1)))


def on(position: Any, n: int) -> Any:
    """Whether there is such a position among n."""
    return (position >= 0) & (position < n)


# offset o -> what the dense form must be, in NumPy's words
LITERAL: dict[str, tuple[Callable[[], Mask], Callable[[Any], Any]]] = {
    "causal": (masks.causal, lambda q: q >= KV),
    "window 2 1": (lambda: masks.window(2, 1), lambda q: (q - 2 <= KV) & (q + 1 >= KV)),
    "window to the left": (lambda: masks.window(None, 2), lambda q: q + 2 >= KV),
    "window to the right": (lambda: masks.window(3, None), lambda q: q - 3 <= KV),
    "window of all": (lambda: masks.window(None, None), lambda q: (q == q) & (KV == KV)),
    "window of itself": (lambda: masks.window(0, 0), lambda q: q == KV),
    "sliding window": (lambda: masks.sliding_window(3), lambda q: (q >= KV) & (q - KV < 3)),
    "prefix": (lambda: masks.prefix(4), lambda q: (KV < 4) & (q == q)),
    "chunked": (lambda: masks.chunked(3), lambda q: q // 3 == KV // 3),
    "dilated": (lambda: masks.dilated(3), lambda q: (q - KV) % 3 == 0),
    "key lengths": (lambda: masks.key_lengths(5), lambda q: (KV < 5) & (q == q)),
    "query lengths": (lambda: masks.query_lengths(3), lambda q: (Q < 3) & (KV == KV)),
    "segments": (lambda: masks.segments(IDS, OTHER), lambda q: IDS[:, None] == OTHER),
    "key ranges": (
        lambda: masks.key_ranges(STARTS, STOPS),
        lambda q: (STARTS[:, None] <= KV) & (STOPS[:, None] > KV),
    ),
    "from array": (lambda: masks.from_array(ARRAY), lambda q: ARRAY),
    "neighborhood": (
        lambda: masks.neighborhood(8, 3),
        lambda q: on(q, 8) & on(KV, 8) & (abs(np.clip(q, 1, 6) - KV) <= 1),
    ),
    "neighborhood 2 x 4": (
        lambda: masks.neighborhood([2, 4], [2, 3]),
        lambda q: on(q, 8) & on(KV, 8) & (abs(np.clip(q % 4, 1, 2) - KV % 4) <= 1),
    ),
    "neighborhood in time": (
        lambda: masks.neighborhood([3, 1, 3], [2, 1, 1], [0]),
        lambda q: on(q, 9) & on(KV, 9) & (q % 3 == KV % 3) & ((q - KV == 0) | (q - KV == 3)),
    ),
    "sliding tiles": (
        lambda: masks.sliding_tiles([2, 4], [2, 1], [1, 3]),
        lambda q: on(q, 8) & on(KV, 8) & (abs(np.clip(q // 2, 1, 2) - KV // 2) <= 1),
    ),
    "block causal": (lambda: masks.block_causal(3), lambda q: q // 3 >= KV // 3),
    "block diffusion": (
        lambda: masks.block_diffusion(4, 2),
        lambda q: (
            (on(q, 4) & on(KV, 4) & (q // 2 == KV // 2))
            | (on(q, 4) & on(KV - 4, 4) & (q // 2 > (KV - 4) // 2))
            | (on(q - 4, 4) & on(KV - 4, 4) & ((q - 4) // 2 >= (KV - 4) // 2))
        ),
    ),
    "shared prefix": (
        lambda: masks.shared_prefix(2, IDS, OTHER),
        lambda q: (KV < 2) | (IDS[:, None] == OTHER),
    ),
    "tree": (lambda: masks.tree(PARENTS, 2), lambda q: np.concatenate([np.ones((7, 2), bool), ANCESTORS], 1)),
    "global tokens": (
        lambda: masks.global_tokens([1, 2, 5]),
        lambda q: np.isin(q, [1, 2, 5]) | np.isin(KV, [1, 2, 5]),
    ),
    "first tokens": (lambda: masks.global_tokens(2), lambda q: on(q, 2) | on(KV, 2)),
    "strided": (
        lambda: masks.strided(3),
        lambda q: (q >= KV) & ((q - KV <= 3) | ((q - KV) % 3 == 0)),
    ),
    "random blocks": (
        lambda: masks.random_blocks(8, 2, 2, 5),
        lambda q: RANDOM[np.where(on(q, 8), q, 8), KV],
    ),
    "function": (lambda: masks.mask_mod(lambda b, h, q, kv: (q + kv) % 2 == 0), lambda q: (q + KV) % 2 == 0),
    "and": (lambda: masks.causal() & masks.prefix(3), lambda q: (q >= KV) & (KV < 3)),
    "or": (lambda: masks.causal() | masks.prefix(3), lambda q: (q >= KV) | (KV < 3)),
    "not": (lambda: ~masks.causal(), lambda q: q < KV),
}


@pytest.mark.parametrize("offset", [0, 2, -3])
@pytest.mark.parametrize("name", LITERAL)
def test_the_dense_form_is_the_literal_comparison(name: str, offset: int) -> None:
    make, literal = LITERAL[name]
    dense = make().dense(7, 9, query_offset=offset)
    assert dense.dtype == bool
    assert np.array_equal(dense, literal(Q + offset))
    additive = make().additive(7, 9, query_offset=offset)
    assert np.array_equal(additive, np.where(literal(Q + offset), 0.0, -np.inf))


def test_a_dense_mask_is_an_array_of_the_library_asked_for(eager: Bench) -> None:
    like = eager.array(np.ones(1), "float32")
    dense = (masks.causal() & masks.dilated(2)).dense(7, 9, like=like)
    assert type(dense) is type(like)
    assert np.array_equal(eager.numpy(dense), (Q >= KV) & ((Q - KV) % 2 == 0))


def test_lengths_offsets_and_arrays_per_item_need_their_batch() -> None:
    n, allowed = np.array([2, 8]), np.random.default_rng(1).random((2, 3, 7, 9)) < 0.5
    mask = masks.key_lengths(n) & masks.from_array(allowed)
    dense = mask.dense(7, 9, batch=2, heads=3)
    assert np.array_equal(dense, allowed & (n[:, None, None, None] > KV))
    offset = np.array([3, -1])
    per_item = masks.causal().dense(7, 9, batch=2, heads=1, query_offset=offset)
    assert np.array_equal(per_item, (Q + offset[:, None, None, None]) >= KV)


@pytest.mark.rule("rule-5")
@pytest.mark.parametrize(
    ("mask", "picture"),
    [
        (masks.sliding_window(2), "# . . .\n# # . .\n. # # .\n. . # #"),
        (masks.window(1, 0), "# . . .\n# # . .\n. # # .\n. . # #"),
        (masks.window(2, 0), "# . . .\n# # . .\n# # # .\n. # # #"),
        (masks.window(0, 1), "# # . .\n. # # .\n. . # #\n. . . #"),
        (masks.window(1, 1), "# # . .\n# # # .\n. # # #\n. . # #"),
        (masks.sliding_window(1), "# . . .\n. # . .\n. . # .\n. . . #"),
        (masks.window(0, None), "# # # #\n. # # #\n. . # #\n. . . #"),
    ],
)
def test_a_window_counts_neighbours_and_a_sliding_window_counts_keys(mask: Mask, picture: str) -> None:
    assert mask.show(4) == picture
    drawn = np.array([[c == "#" for c in line.split()] for line in picture.splitlines()])
    assert np.array_equal(mask.dense(4), drawn)


def test_show_and_figure_draw_the_item_head_and_offset_asked_for() -> None:
    allowed = np.random.default_rng(2).random((2, 3, 4, 5)) < 0.5
    mask = masks.from_array(allowed) & masks.causal()
    expected = allowed[1, 2] & (np.arange(5) <= np.arange(4)[:, None] + 1)
    shown = mask.show(4, 5, b=1, h=2, query_offset=1)
    assert shown == "\n".join(" ".join("#" if x else "." for x in row) for row in expected)
    mpl.use("Agg")
    figure = mask.figure(4, 5, b=1, h=2, query_offset=1)
    (image,) = figure.axes[0].images
    drawn = np.asarray(image.get_array())
    assert np.array_equal(drawn.astype(bool), expected)


def test_masks_compose_without_changing() -> None:
    a, b = masks.causal(), masks.prefix(2)
    before = a.dense(7, 9).copy()
    assert np.array_equal((~(a & b)).dense(7, 9), (~a | ~b).dense(7, 9))
    assert np.array_equal((~~a).dense(7, 9), before)
    assert np.array_equal(a.dense(7, 9), before)


LEAVES = st.one_of(
    st.just(masks.causal()),
    st.builds(masks.window, st.none() | st.integers(0, 6), st.none() | st.integers(0, 6)),
    st.builds(masks.sliding_window, st.integers(1, 6)),
    st.builds(masks.prefix, st.integers(0, 14)),
    st.builds(masks.chunked, st.integers(1, 6)),
    st.builds(masks.dilated, st.integers(1, 6)),
    st.builds(masks.key_lengths, st.integers(0, 14)),
    st.builds(masks.query_lengths, st.integers(0, 12)),
    st.builds(masks.key_lengths, st.lists(st.integers(0, 14), min_size=2, max_size=2)),
    st.integers(0, 2**32).map(lambda s: masks.from_array(np.random.default_rng(s).random((12, 14)) < 0.8)),
    st.integers(0, 2**32).map(
        lambda s: masks.from_array(np.random.default_rng(s).random((2, 1, 12, 1)) < 0.8)
    ),
    st.integers(0, 2**32).map(
        lambda s: masks.segments(
            *(np.sort(np.random.default_rng([s, n]).integers(0, 3, n)) for n in (12, 14))
        )
    ),
    st.builds(masks.block_causal, st.integers(1, 6)),
    st.builds(masks.block_diffusion, st.integers(1, 8), st.integers(1, 4)),
    st.builds(masks.strided, st.integers(1, 6)),
    st.builds(masks.global_tokens, st.integers(0, 14) | st.lists(st.integers(0, 14), max_size=4)),
    st.lists(st.integers(1, 4), min_size=1, max_size=3).flatmap(
        lambda shape: st.builds(
            masks.neighborhood,
            st.just(shape),
            st.tuples(*(st.integers(1, n) for n in shape)),
            st.lists(st.integers(0, len(shape) - 1)),
        )
    ),
    st.lists(st.integers(1, 3), min_size=1, max_size=2).flatmap(
        lambda tiles: st.builds(
            masks.sliding_tiles,
            st.just([2 * n for n in tiles]),
            st.just(2),
            st.tuples(*(st.integers(1, n) for n in tiles)),
        )
    ),
    st.integers(1, 14).flatmap(
        lambda n: st.integers(1, 4).flatmap(
            lambda size: st.builds(
                masks.random_blocks,
                st.just(n),
                st.just(size),
                st.integers(0, -(-n // size)),
                st.integers(0, 99),
            )
        )
    ),
    st.builds(
        lambda s, n: masks.tree(
            np.array(
                [[np.random.default_rng([s, b, i]).integers(-1, i) for i in range(12)] for b in range(2)]
            ),
            n,
            14,
        ),
        st.integers(0, 2**16),
        st.integers(0, 2) | st.just(np.array([2, 0])),
    ),
    st.integers(0, 2**32).map(
        lambda s: masks.key_ranges(*np.sort(np.random.default_rng(s).integers(0, 15, (2, 2, 12)), axis=0))
    ),
)
TREES = st.recursive(
    LEAVES,
    lambda deeper: st.one_of(
        st.tuples(deeper, deeper).map(lambda ab: ab[0] & ab[1]),
        st.tuples(deeper, deeper).map(lambda ab: ab[0] | ab[1]),
        deeper.map(lambda a: ~a),
    ),
    max_leaves=4,
)


@st.composite
def ranges(draw: Any, stop: int) -> range:
    first = draw(st.integers(0, stop - 1))
    return range(first, draw(st.integers(first + 1, stop)))


def state(dense: np.ndarray) -> Any:
    return FULL if dense.all() else PARTIAL if dense.any() else EMPTY


@settings(max_examples=600, deadline=None, derandomize=True)
@given(TREES, ranges(12), ranges(14), st.integers(-9, 9), st.sampled_from([None, 0, 1]))
def test_what_a_mask_says_of_a_tile_is_exact(
    mask: Mask, rows: range, keys: range, offset: int, b: Any
) -> None:
    dense = mask.dense(12, 14, batch=2, heads=1, query_offset=offset)
    cut = dense[slice(None) if b is None else b][..., rows.start : rows.stop, keys.start : keys.stop]
    assert mask.tile(rows, keys, b=b, query_offset=offset) is state(cut), mask


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TREES, st.integers(1, 12), st.integers(1, 14), st.integers(-9, 9))
def test_tiles_cut_the_whole_matrix_with_ragged_ends(mask: Mask, high: int, wide: int, offset: int) -> None:
    dense = mask.dense(12, 14, batch=2, heads=1, query_offset=offset)[1, 0]
    expected = [
        [state(dense[i : i + high, j : j + wide]) for j in range(0, 14, wide)] for i in range(0, 12, high)
    ]
    assert mask.tiles(12, 14, (high, wide), b=1, query_offset=offset) == expected


def test_a_function_is_partial_unless_what_stands_beside_it_decides() -> None:
    rows, keys = range(4, 8), range(4)
    f = masks.mask_mod(lambda b, h, q, kv: q >= kv)
    assert f.tile(rows, keys) is PARTIAL
    assert (~f).tile(rows, keys) is PARTIAL
    assert (f & masks.causal()).tile(range(4), range(4, 8)) is EMPTY
    assert (f | masks.causal()).tile(rows, keys) is FULL
    assert (f & masks.causal()).tile(rows, keys) is PARTIAL


def _with_arrays(name: str, array: Callable[[Any], Any]) -> Mask | None:
    """A mask that holds arrays, with those of another library."""
    made = {
        "segments": lambda: masks.segments(array(IDS), array(OTHER)),
        "key ranges": lambda: masks.key_ranges(array(STARTS), array(STOPS)),
        "from array": lambda: masks.from_array(array(ARRAY)),
        "shared prefix": lambda: masks.shared_prefix(2, array(IDS), array(OTHER)),
        "tree": lambda: masks.tree(array(PARENTS), 2),
    }
    return made[name]() if name in made else None


@pytest.mark.rule("rule-3")
@pytest.mark.parametrize("name", LITERAL)
def test_a_mask_object_gives_attention_over_its_literal(eager: Bench, name: str) -> None:
    make, literal = LITERAL[name]
    rng = np.random.default_rng(3)
    q, k, v = (round_to(rng.normal(size=(2, 2, n, 4)), "float16") for n in (7, 9, 9))
    mask = _with_arrays(name, eager.array)
    mask = make() if mask is None else mask
    out = attention(*(eager.array(x, "float32") for x in (q, k, v)), mask=mask, query_offset=1)
    judged = truth(Spec(q, k, v, allowed=literal(Q + 1)[None, None]))["out"]
    assert eta(eager.numpy(out), judged, "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-12")
@pytest.mark.parametrize("name", LITERAL)
def test_a_mask_runs_unchanged_inside_flex_attention(name: str) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    make, literal = LITERAL[name]
    mask = _with_arrays(name, torch.tensor)
    mask = make() if mask is None else mask
    rng = np.random.default_rng(3)
    q, k, v = (round_to(rng.normal(size=(2, 2, n, 4)), "float16") for n in (7, 9, 9))
    given = [torch.tensor(x, dtype=torch.float32) for x in (q, k, v)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather be compiled
        block_mask = create_block_mask(mask, None, None, 7, 9, device="cpu")
        theirs = flex_attention(*given, block_mask=block_mask)
    judged = truth(Spec(q, k, v, allowed=literal(Q)[None, None]))["out"]
    seen = judged.value.any(-1)
    assert eta(theirs.numpy()[seen], type(judged)(*(x[seen] for x in judged)), "float32") <= ACCEPTANCE
    assert eta(attention(*given, mask=mask, query_offset=0).numpy(), judged, "float32") <= ACCEPTANCE
