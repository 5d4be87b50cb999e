"""Forms of arguments at their edges: offsets, scales and sinks of every shape, seeds and rates, buckets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn import attention, mods
from polyattn.arrays import backend_of
from polyattn.dropout import drop, fold_in, keep_factors, key_of, threefry2x32
from polyattn.parity import ACCEPTANCE, Spec, eta
from polyattn.places import positions
from polyattn.truth import truth

rng = np.random.default_rng(0)
Q, K, V = (rng.normal(size=(6, n, 5, 4)) for n in (4, 2, 2))
OFFSETS = np.array([0, 3, -2, 1, 7, -4])


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_an_offset_for_each_item_comes_flat_or_in_the_leading_axes(shape: tuple[int, ...]) -> None:
    q, k, v = (x.reshape(*shape, *x.shape[1:]) for x in (Q, K, V))
    for side, sign in (("query_offset", 1), ("key_offset", -1)):
        # shifted keys stay at 0 or above: a negative position is an empty slot
        options = (
            {side: OFFSETS.reshape(shape)}
            if sign > 0
            else {side: OFFSETS.reshape(shape) + 4, "query_offset": 4}
        )
        out = attention(q, k, v, is_causal=True, **options)
        at = np.arange(5)[:, None] + sign * OFFSETS[:, None, None, None]
        judged = truth(Spec(Q, K, V, allowed=np.arange(5) <= at))["out"]
        assert eta(out.reshape(Q.shape), judged, "float64") <= ACCEPTANCE


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_offset_in_an_array_is_that_number(shape: tuple[int, ...]) -> None:
    for side in ("query_offset", "key_offset"):
        number, array = (
            attention(Q, K, V, is_causal=True, **{"query_offset": 0, side: offset})
            for offset in (2, np.full(shape, 2))
        )
        assert (number == array).all()


@pytest.mark.parametrize("name", ["scale", "sinks"])
@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (1, 4, 1, 1)])
def test_one_value_for_each_head_comes_in_three_shapes(name: str, shape: tuple[int, ...]) -> None:
    values = np.array([0.25, 0.5, 1.0, 2.0])
    out = attention(Q, K, V, **{name: values.reshape(shape)})
    assert eta(out, truth(Spec(Q, K, V, **{name: values}))["out"], "float64") <= ACCEPTANCE


@pytest.mark.parametrize("name", ["scale", "sinks"])
@pytest.mark.parametrize(
    "value", [0.75, np.array(0.75), np.array([0.75]), np.full((1, 1, 1, 1), 0.75)], ids=np.shape
)
def test_one_value_for_all_heads_is_a_number_or_an_array_of_one(name: str, value: Any) -> None:
    out = attention(Q, K, V, **{name: value})
    assert eta(out, truth(Spec(Q, K, V, **{name: np.full(4, 0.75)}))["out"], "float64") <= ACCEPTANCE


@pytest.mark.parametrize("name", ["scale", "sinks"])
@pytest.mark.parametrize(
    "shape",
    [
        (3,),
        (4, 1),
        (1, 4),
        (1, 4, 1),
        (1, 1, 4),
        (1, 2, 2, 1),
        (1, 1, 1, 1, 1),
        (4, 1, 1, 1),
    ],
)
def test_values_that_lie_along_no_head_axis_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        attention(Q, K, V, **{name: np.zeros(shape)})
    assert str(caught.value) == (
        f"polyattn.attention: expected {name} to be a scalar or of shape (4,), one per query head, got shape {shape}; "
        "pass one value per head"
    )


def test_a_sink_of_infinity_takes_all_and_one_of_minus_infinity_nothing() -> None:
    sinks = np.array([np.inf, -np.inf, np.inf, 0.0])
    out = attention(Q, K, V, sinks=sinks)
    assert not out[:, [0, 2]].any()
    judged = truth(Spec(Q, K, V, sinks=np.array([-np.inf, -np.inf, -np.inf, 0.0])))["out"]
    without = type(judged)(*(x[:, 1::2] for x in judged))
    assert eta(out[:, 1::2], without, "float64") <= ACCEPTANCE


# dropout


def words(*given: int) -> tuple[int, int]:
    """Threefry on the low 32 bits of each number."""
    arrays = [np.array([n & 0xFFFFFFFF], np.uint32).view(np.int32) for n in given]
    one, other = threefry2x32(*arrays)
    return int(one[0]), int(other[0])


SEEDS = [0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 5 * 2**32 + 3, 2**63, 2**64 - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_both_words_of_a_seed_are_the_key_of_every_stream(seed: int) -> None:
    assert key_of(seed, 3) == words(seed, seed >> 32, 3, -2)
    assert fold_in(seed, 3) == words(seed, seed >> 32, 3, -1)[0] & 0x7FFFFFFF


@pytest.mark.parametrize("seed", SEEDS)
def test_a_weight_is_kept_from_exactly_its_rate_on(seed: int) -> None:
    at = positions(backend_of(Q), Q, (2, 3, 4, 5))
    b, h, q, kv = 1, 2, 3, 4
    word = words(*words(seed, seed >> 32, b, h), q, kv)[0] & 0xFFFFFFFF
    for rate, kept in ((word / 2**32, True), ((word + 1) / 2**32, False), ((word - 1) / 2**32, True)):
        factor = keep_factors(rate, seed, at, np.float64)[b, h, q, kv]
        assert factor == (1 / (1 - rate) if kept else 0)


def test_a_rate_next_to_one_drops_nearly_everything() -> None:
    at = positions(backend_of(Q), Q, (2, 3, 40, 50))
    for rate in (1 - 2.0**-31, 1 - 2.0**-40, 1 - 2.0**-53):
        assert not keep_factors(rate, 0, at, np.float64).any()


def test_the_entries_of_an_array_are_dropped_as_weights_of_one_head_are() -> None:
    x = np.ones((2, 3, 4, 5))
    factors = keep_factors(0.5, 7, positions(backend_of(Q), Q, (6, 1, 4, 5)), np.float64)
    assert np.array_equal(drop(x, 0.5, 7), factors.reshape(x.shape))


# buckets of T5


@pytest.mark.parametrize(
    ("bidirectional", "buckets"), [(True, 8), (False, 4), (True, 4), (False, 2), (False, 5)]
)
def test_buckets_reach_beyond_the_exact_ones(bidirectional: bool, buckets: int) -> None:
    exact = buckets // (4 if bidirectional else 2)
    table = np.zeros((buckets, 1))
    with pytest.raises(ValueError) as caught:
        mods.relative_position_bias(table, bidirectional=bidirectional, max_distance=exact)
    assert str(caught.value) == (
        f"polyattn.mods.relative_position_bias: expected at least {4 if bidirectional else 2} buckets and "
        f"max_distance beyond the {exact} exact ones, got {buckets} and {exact}; T5 has 32 buckets and 128"
    )
    mods.relative_position_bias(table, bidirectional=bidirectional, max_distance=exact + 1)


@pytest.mark.parametrize(("bidirectional", "buckets"), [(True, 3), (False, 1), (True, 0)])
def test_too_few_buckets_are_refused(bidirectional: bool, buckets: int) -> None:
    with pytest.raises(ValueError, match=f"and max_distance beyond the 0 exact ones, got {buckets} and 128"):
        mods.relative_position_bias(np.zeros((buckets, 1)), bidirectional=bidirectional)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_distances_that_are_powers_begin_their_buckets(bidirectional: bool) -> None:
    """Four exact buckets, then one for each doubling up to 64: 4, 8, 16, 32 begin theirs."""
    buckets = 16 if bidirectional else 8
    distance = np.array([0, -1, -3, -4, -7, -8, -15, -16, -31, -32, -1000])
    found = mods.relative_bucket(distance, buckets, bidirectional=bidirectional, max_distance=64)
    assert found.tolist() == [0, 1, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    ahead = mods.relative_bucket(-distance, buckets, bidirectional=bidirectional, max_distance=64)
    assert ahead.tolist() == ([0, *(8 + n for n in found[1:].tolist())] if bidirectional else [0] * 11)
