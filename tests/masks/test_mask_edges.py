"""Masks at their edges: traced, called on numbers, laid on leading axes, cut item by item."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp

from polyattn import Blockwise, attention, masks
from polyattn.masks import EMPTY, FULL, PARTIAL, Mask
from polyattn.truth import Spec, eta, truth

B, H, L, S = 2, 2, 6, 7
RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(B, H, n, 4)) for n in (L, S, S))
ROW, KEY = np.arange(L)[:, None], np.arange(S)
STARTS, STOPS = np.sort(RNG.integers(0, S + 1, (2, B, L)), axis=0)
IDS, KEY_IDS = RNG.integers(0, 3, (B, L)), RNG.integers(0, 3, (B, S))
ARRAY = RNG.random((B, H, L, S)) < 0.6
AT = np.array([1, -2])[:, None, None, None] + ROW

#: what is traced -> the mask made of it, and what may be seen with offsets of 1 and -2
TRACED: dict[str, tuple[Any, Any, np.ndarray]] = {
    "chunks": ((), lambda: masks.chunked(3), AT // 3 == KEY // 3),
    "dilation": ((), lambda: masks.dilated(2), (AT - KEY) % 2 == 0),
    "window": ((), lambda: masks.window(1, 2), (KEY >= AT - 1) & (KEY <= AT + 2)),
    "lengths": ((np.array([3, 7]),), masks.key_lengths, np.array([3, 7])[:, None, None, None] > KEY),
    "prefix": ((np.array([2, 0]),), lambda n: masks.prefix(n) | masks.causal(), (np.array([2, 0])[:, None, None, None] > KEY) | (KEY <= AT)),
    "ids": ((IDS, KEY_IDS), masks.segments, (IDS[:, :, None] == KEY_IDS[:, None, :])[:, None]),
    "ranges": ((STARTS, STOPS), masks.key_ranges, ((STARTS[..., None] <= np.arange(S)) & (np.arange(S) < STOPS[..., None]))[:, None]),
    "array": ((ARRAY,), masks.from_array, ARRAY),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_mask_hides_what_it_hides(name: str) -> None:
    given, make, allowed = TRACED[name]

    @jax.jit
    def run(q: Any, k: Any, v: Any, offset: Any, *given: Any) -> Any:
        return attention(q, k, v, mask=make(*given), query_offset=offset, implementation=Blockwise(2, 3))

    arrays = (jnp.asarray(x, jnp.float32) for x in (Q, K, V))
    out = run(*arrays, jnp.asarray([1, -2]), *(jnp.asarray(x) for x in given))
    rounded = (x.astype(np.float32).astype(float) for x in (Q, K, V))
    judged = truth(Spec(*rounded, allowed=np.broadcast_to(allowed, (B, H, L, S))))["out"]
    assert eta(np.asarray(out), judged, "float32") <= 4


@pytest.mark.parametrize(
    "mask",
    [
        masks.key_lengths([3, 7]),
        masks.query_lengths([2, 5]),
        masks.prefix([4, 1]),
        masks.segments(IDS, KEY_IDS),
        masks.key_ranges(STARTS, STOPS),
        masks.key_ranges(STARTS[0], STOPS),
        masks.from_array(ARRAY),
        masks.from_array(ARRAY[:1, :, :1]),
        masks.from_array(ARRAY[:, :1, :, :1]),
    ],
    ids=str,
)
def test_a_mask_called_on_numbers_is_its_dense_form(mask: Mask) -> None:
    """As FlexAttention calls it: one place at a time, or all at once on index arrays."""
    dense = mask.dense(L, S, batch=B, heads=H)
    index = [
        np.arange(n).reshape([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate((B, H, L, S))
    ]
    assert (np.broadcast_to(mask(*index), dense.shape) == dense).all()
    for place in np.ndindex(*dense.shape):
        assert bool(mask(*(np.asarray(i) for i in place))) == dense[place], place


LEAD = (2, 3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in ("mask", "bias") for shape in ((L, S), (H, 1, S), (1, 1, L, 1), (1, 1, H, 1, S), (2, 1, 1, L, S), (1, 3, H, L, 1), (2, 3, 1, 1, S), (2, 3, H, L, S))],
)  # fmt: skip
def test_arrays_are_laid_on_leading_axes(name: str, shape: tuple[int, ...]) -> None:
    q, k, v = (RNG.normal(size=(*LEAD, *x.shape[1:])) for x in (Q, K, V))
    given = RNG.random(shape) < 0.7 if name == "mask" else RNG.normal(size=shape)
    full = np.broadcast_to(given, (*LEAD, H, L, S)).reshape(6, H, L, S)
    spec = Spec(
        *(x.reshape(6, *x.shape[2:]) for x in (q, k, v)), **{{"mask": "allowed"}.get(name, name): full}
    )
    for way in ("reference", Blockwise(2, 3)):
        out = attention(q, k, v, **{name: given}, implementation=way)
        assert eta(out.reshape(6, H, L, 4), truth(spec)["out"], "float64") <= 4


@pytest.mark.parametrize("way", ["reference", Blockwise(2, 3)], ids=str)
def test_lengths_and_ids_are_laid_on_leading_axes(way: Any) -> None:
    q, k, v = (RNG.normal(size=(*LEAD, *x.shape[1:])) for x in (Q, K, V))
    lengths = RNG.integers(0, S + 1, LEAD)
    ids, key_ids = RNG.integers(0, 2, (*LEAD, L)), RNG.integers(0, 2, (*LEAD, S))
    same = (ids[..., :, None] == key_ids[..., None, :]).reshape(6, 1, L, S)
    short = (lengths[..., None] > KEY).reshape(6, 1, 1, S)
    for mask, allowed in (
        (masks.key_lengths(lengths), short),
        (masks.key_lengths(lengths.reshape(6)), short),
        (masks.segments(ids, key_ids), same),
        (masks.segments(ids, key_ids) & masks.key_lengths(lengths.ravel().tolist()), same & short),
        (masks.segments(ids[:1, :1].reshape(1, L), key_ids[0, 0]), same[:1]),
        (masks.key_lengths(np.array([4])), KEY[None, None, None] < 4),
    ):
        out = attention(q, k, v, mask=mask, implementation=way)
        spec = Spec(
            *(x.reshape(6, *x.shape[2:]) for x in (q, k, v)), allowed=np.broadcast_to(allowed, (6, 1, L, S))
        )
        assert eta(out.reshape(6, H, L, 4), truth(spec)["out"], "float64") <= 4


def test_a_tile_of_all_items_is_what_its_items_have_in_common() -> None:
    full, none, some = (
        masks.key_lengths([4, 4, 4]),
        masks.key_lengths([0, 0, 0]),
        masks.key_lengths([4, 0, 4]),
    )
    rows, keys = range(4), range(4)
    assert [m.tile(rows, keys) for m in (full, none, some)] == [FULL, EMPTY, PARTIAL]
    ids = np.array([[0] * 4, [0] * 4, [1] * 4])
    assert masks.segments(ids).tile(rows, keys) is FULL
    assert masks.segments(ids, ids[::-1].copy()).tile(rows, keys) is PARTIAL
    assert masks.segments(ids, ids + 5).tile(rows, keys) is EMPTY
    by_item = np.array([9, 9, -9])
    assert masks.causal().tile(rows, keys, query_offset=by_item) is PARTIAL
    assert masks.causal().tile(rows, keys, query_offset=by_item, b=2) is EMPTY
    both = masks.segments(ids[:2]) & masks.from_array(np.array([True, False]).reshape(2, 1, 1, 1))
    assert both.tile(rows, keys) is PARTIAL
    heads = masks.from_array(np.array([True, False]).reshape(1, 2, 1, 1)) & masks.segments(ids[:1])
    assert heads.tile(rows, keys) is PARTIAL
    assert (heads.tile(rows, keys, h=0), heads.tile(rows, keys, h=1)) == (FULL, EMPTY)


def test_lengths_that_change_in_place_are_read_anew() -> None:
    lengths = np.array([S, S])
    mask = masks.key_lengths(lengths)
    for way in ("reference", Blockwise(2, 3)):
        lengths[:] = S
        assert (
            attention(Q, K, V, mask=mask, implementation=way) == attention(Q, K, V, implementation=way)
        ).all()
        lengths[:] = 3
        spec = Spec(Q, K, V, allowed=(KEY < 3)[None, None, None])
        assert eta(attention(Q, K, V, mask=mask, implementation=way), truth(spec)["out"], "float64") <= 4


def test_what_two_partial_masks_have_in_common_is_looked_up_in_every_head_and_item() -> None:
    rows, keys = range(4), range(4)
    halves = np.array([[[True, True, False, False]], [[False, False, True, True]]])  # of two heads or items
    second = masks.segments(np.zeros(4, np.int32), np.array([1, 1, 0, 0]))
    for shape in ((1, 2, 1, 4), (2, 1, 1, 4)):
        assert (masks.from_array(halves.reshape(shape)) & second).tile(rows, keys) is PARTIAL
    assert masks.causal().tile(rows, keys, query_offset=np.array([9, -9])) is PARTIAL


@pytest.mark.parametrize("mask", [masks.window(None, 1), masks.dilated(2), masks.window(0, 3)], ids=str)
def test_the_tiles_of_a_diagonal_that_are_cut_short_are_looked_at_again(mask: Mask) -> None:
    expected = [
        [mask.tile(range(i, min(i + 2, 6)), range(j, min(j + 4, 6))) for j in (0, 4)] for i in (0, 2, 4)
    ]
    assert mask.tiles(6, 6, (2, 4)) == expected


def test_ids_of_queries_alone_may_have_leading_axes_and_a_mask_one_axis_more() -> None:
    q, k, v = (RNG.normal(size=(*LEAD, *x.shape[1:])) for x in (Q, K, V))
    ids, key_ids = RNG.integers(0, 2, (*LEAD, L)), RNG.integers(0, 2, S)
    same = (ids.reshape(6, 1, L, 1) == key_ids).reshape(6, 1, L, S)
    out = attention(q, k, v, mask=masks.segments(ids, key_ids))
    spec = Spec(*(x.reshape(6, *x.shape[2:]) for x in (q, k, v)), allowed=same)
    assert eta(out.reshape(6, H, L, 4), truth(spec)["out"], "float64") <= 4
    of_one = attention(Q[0], K[0], V[0], mask=ARRAY[:1])
    spec = Spec(Q[:1], K[:1], V[:1], allowed=ARRAY[:1])
    assert eta(of_one[None], truth(spec)["out"], "float64") <= 4


def test_ranges_with_leading_axes_of_their_own() -> None:
    rng = np.random.default_rng(4)
    q, k, v = (rng.normal(size=(2, 3, 1, n, 4)) for n in (5, 7, 7))
    starts, stops = np.sort(rng.integers(0, 8, (2, 2, 3, 5)), axis=0)
    allowed = (starts[..., None] <= np.arange(7)) & (np.arange(7) < stops[..., None])
    out = attention(q, k, v, mask=masks.key_ranges(starts, stops), implementation=Blockwise(2, 3))
    flat = (x.reshape(6, 1, -1, 4) for x in (q, k, v))
    judged = truth(Spec(*flat, allowed=allowed.reshape(6, 1, 5, 7)))["out"]
    for found in (out, attention(q, k, v, mask=allowed[:, :, None])):
        assert eta(found.reshape(6, 1, 5, 4), judged, "float64") <= 4


def test_a_mask_of_ones_own_that_is_no_dataclass_is_refused() -> None:
    class Diagonal(Mask):
        def allowed(self, at: Any) -> Any:
            return at.q == at.kv

        def box(self, box: Any) -> Any:
            return PARTIAL

        def __str__(self) -> str:
            return "diagonal()"

    for mask in (Diagonal(), Diagonal() & masks.causal()):
        with pytest.raises(TypeError) as caught:
            attention(Q[..., :L, :], K[..., :L, :], V[..., :L, :], mask=mask)
        assert str(caught.value) == (
            "polyattn.masks: expected Diagonal to be a dataclass, whose fields tell its arrays, got another class; "
            "write @dataclass(frozen=True) over it"
        )


def test_the_least_size_that_shows_a_mask_is_that_of_its_longest_item() -> None:
    assert masks.key_lengths([3, 12]).least_size() == (0, 12)
    assert (masks.query_lengths(5) & masks.key_lengths(4)).least_size() == (5, 4)
