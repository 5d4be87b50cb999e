"""What nobody may see changes nothing: poisoned keys, and rows that see no key at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn import AuxRequest, Blockwise, attention, attention_vjp, masks
from polyattn.parity import ACCEPTANCE, Spec, eta, round_to
from polyattn.testing import Bench
from polyattn.truth import truth

# Every way to hide keys 4 and 5 of 6 from all of 4 query rows.
HIDING: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "array": lambda b: {"mask": b.array(np.broadcast_to(np.arange(6) < 4, (4, 6)))},
    "bias": lambda b: {
        "bias": b.array(np.where(np.arange(6) < 4, 0.5, -np.inf)[None, None, None], "float32")
    },
    "causal": lambda b: {"is_causal": True, "query_offset": 0},
    "window": lambda b: {"mask": masks.window(None, 0), "query_offset": 0},
    "lengths": lambda b: {"mask": masks.key_lengths(b.array(np.array([4, 4], np.int32)))},
    "prefix": lambda b: {"mask": masks.prefix(4)},
    "not": lambda b: {"mask": ~masks.mask_mod(lambda b, h, q, kv: kv >= 4 + 0 * q), "query_offset": 0},
    "function": lambda b: {"mask": lambda b, h, q, kv: (kv < 4) & (q >= 0), "query_offset": 0},
    "segments": lambda b: {
        "mask": masks.segments(
            b.array(np.zeros(4, np.int32)), b.array(np.array([0, 0, 0, 0, 1, 2], np.int32))
        )
    },
}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape), "float16")


def qkv(rows: int = 4, keys: int = 6) -> dict[str, np.ndarray]:
    return {
        "query": draw(2, 4, rows, 8, seed=1),
        "key": draw(2, 2, keys, 8, seed=2),
        "value": draw(2, 2, keys, 5, seed=3),
    }


def run(
    bench: Bench, arrays: dict[str, np.ndarray], sent_back: np.ndarray | None = None, **options: Any
) -> dict[str, np.ndarray]:
    """out, lse and, where the library has derivatives, the gradient of every array."""

    def f(given: Any) -> Any:
        out, aux = attention(**given, **options, return_aux=AuxRequest(lse=True))
        return out, aux.lse

    shape = (*arrays["query"].shape[:3], arrays["value"].shape[-1])
    if sent_back is None:
        sent_back = np.random.default_rng(5).choice([-1.0, 0.5, 1.0], shape)
    cotangent = bench.array(sent_back, "float32")
    given = {name: bench.array(x, "float32") for name, x in arrays.items()}
    out, lse, grads = bench.run(f, given, cotangent)
    return {name: bench.numpy(x) for name, x in {"out": out, "lse": lse, **(grads or {})}.items()}


@pytest.mark.rule("rule-7")
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", HIDING)
def test_hidden_keys_holding_poison_change_not_one_bit(eager: Bench, how: str, poison: float) -> None:
    clean = qkv()
    spoilt = {name: x.copy() for name, x in clean.items()}
    spoilt["key"][:, :, 4:] = poison
    spoilt["value"][:, :, 4:] = poison
    expected, got = run(eager, clean, **HIDING[how](eager)), run(eager, spoilt, **HIDING[how](eager))
    for name in expected:
        assert np.array_equal(expected[name], got[name]), name
    if "key" in got:
        assert not got["key"][:, :, 4:].any()
        assert not got["value"][:, :, 4:].any()


@pytest.mark.rule("rule-7")
def test_hidden_poison_changes_not_one_bit_on_any_bench(bench: Bench) -> None:
    clean = qkv()
    spoilt = {name: x.copy() for name, x in clean.items()}
    spoilt["key"][0, :, 4:], spoilt["value"][0, :, 4:] = np.nan, np.inf
    lengths = bench.array(np.array([4, 6], np.int32))
    mask = masks.key_lengths(lengths)
    expected, got = run(bench, clean, mask=mask), run(bench, spoilt, mask=mask)
    for name in expected:
        assert np.array_equal(expected[name], got[name]), name


@pytest.mark.rule("rule-7")
def test_poison_hidden_from_one_kv_head_alone_changes_not_one_bit(eager: Bench) -> None:
    clean = qkv()
    spoilt = {name: x.copy() for name, x in clean.items()}
    spoilt["key"][1, 0, 3], spoilt["value"][1, 0, 3] = np.nan, np.inf
    allowed = np.ones((2, 4, 4, 6), bool)
    allowed[1, :2, :, 3] = False  # both query heads of kv head 0
    mask = eager.array(allowed)
    expected, got = run(eager, clean, mask=mask), run(eager, spoilt, mask=mask)
    for name in expected:
        assert np.array_equal(expected[name], got[name]), name


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 17])
def test_keys_beyond_the_length_are_as_if_cut_off(eager: Bench, length: int) -> None:
    arrays = qkv(keys=17)
    arrays["key"][:, :, length:], arrays["value"][:, :, length:] = np.nan, np.inf
    got = run(eager, arrays, mask=masks.key_lengths(length))
    cut = Spec(arrays["query"], arrays["key"][:, :, :length], arrays["value"][:, :, :length])
    judged = truth(cut)
    assert eta(got["out"], judged["out"], "float32") <= ACCEPTANCE
    assert eta(got["lse"], judged["lse"], "float32") <= ACCEPTANCE


def test_scalar_and_vector_lengths_mean_the_same(eager: Bench) -> None:
    arrays = qkv()
    vector = eager.array(np.array([3, 3], np.int32))
    for build in (masks.key_lengths, masks.query_lengths, masks.prefix):
        number, array, listed = (run(eager, arrays, mask=build(n)) for n in (3, vector, [3, 3]))
        for name in number:
            assert np.array_equal(number[name], array[name])
            assert np.array_equal(number[name], listed[name])


@pytest.mark.rule("rule-6")
@pytest.mark.parametrize("sinks", [False, True])
def test_a_row_that_sees_nothing_is_zero_with_zero_gradients(bench: Bench, sinks: bool) -> None:
    allowed = np.ones((2, 1, 4, 6), bool)
    allowed[0, :, 1] = False
    allowed[1] = False
    arrays = qkv() | ({"sinks": draw(4)} if sinks else {}) | {"bias": draw(2, 1, 4, 6)}
    got = run(bench, arrays, mask=bench.array(allowed))
    hidden = np.broadcast_to(~allowed.any(-1), (2, 4, 4))
    assert not got["out"][hidden].any()
    assert (got["lse"][hidden] == -np.inf).all()
    assert np.isfinite(got["lse"][~hidden]).all()
    if "query" in got:
        assert all(np.isfinite(got[name]).all() for name in arrays)
        assert not got["query"][hidden].any()
        assert not got["key"][1].any()
        assert not got["value"][1].any()
        assert not got["bias"][~allowed].any()
        assert got["query"][~hidden].any()


@pytest.mark.rule("rule-6", "rule-23")
@pytest.mark.parametrize("way", ["reference", "blockwise", "auto"])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("where", ["query", "cotangent"])
def test_poison_at_a_row_that_sees_nothing_changes_not_one_bit(
    eager: Bench, where: str, sinks: bool, way: str
) -> None:
    allowed = np.ones((2, 4, 4, 6), bool)
    allowed[0, :, 1], allowed[1, 2] = False, False
    clean = qkv() | ({"sinks": draw(4)} if sinks else {})
    spoilt, cotangent = {name: x.copy() for name, x in clean.items()}, np.ones((2, 4, 4, 5))
    poisoned = spoilt["query"] if where == "query" else cotangent.copy()
    poisoned[~allowed.any(-1)] = np.nan
    mask = eager.array(allowed)
    expected = run(eager, clean, cotangent, mask=mask, implementation=way)
    got = run(eager, spoilt, poisoned if where == "cotangent" else cotangent, mask=mask, implementation=way)
    for name in expected:
        assert np.array_equal(expected[name], got[name]), name


@pytest.mark.rule("rule-6")
@pytest.mark.parametrize("how", ["array", "bias", "negative offset", "lengths", "query lengths", "function"])
def test_rows_that_see_nothing_are_zero_however_they_are_hidden(eager: Bench, how: str) -> None:
    options: dict[str, Any] = {
        "array": lambda: {"mask": eager.array(np.zeros((4, 6), bool))},
        "bias": lambda: {"bias": eager.array(np.full((1, 1, 4, 6), -np.inf), "float32")},
        "negative offset": lambda: {"is_causal": True, "query_offset": -4},
        "lengths": lambda: {"mask": masks.key_lengths(0)},
        "query lengths": lambda: {"mask": masks.query_lengths(0)},
        "function": lambda: {"mask": lambda b, h, q, kv: q < kv - 99, "query_offset": 0},
    }[how]()
    got = run(eager, qkv(), **options)
    assert (got.pop("lse") == -np.inf).all()
    assert all(not x.any() for x in got.values())
    arrays = {name: eager.array(x, "float32") for name, x in qkv().items()}
    _, aux = attention(**arrays, **options, return_aux=AuxRequest(weights=True))
    assert not eager.numpy(aux.weights).any()


@pytest.mark.rule("rule-2")
def test_all_masks_at_once_hide_by_combination_and_never_by_sums(eager: Bench) -> None:
    arrays = qkv(rows=6)
    mask = masks.key_lengths([0, 3]) & masks.window(1, 0)
    bias = eager.array(np.full((1, 1, 6, 6), -np.inf), "float32")
    got = run(eager, arrays, mask=mask, is_causal=True, bias=bias)
    assert (got.pop("lse") == -np.inf).all()
    assert all(not x.any() for x in got.values())


def test_a_long_hidden_prefix_is_as_if_cut_off(eager: Bench) -> None:
    arrays = qkv(keys=140)
    mask = eager.array(np.tile(np.arange(140) >= 130, (4, 1)))
    got = run(eager, arrays, mask=mask)["out"]
    bias = eager.array(np.where(np.arange(140) >= 130, 0.0, -np.inf)[None, None, None], "float32")
    judged = truth(Spec(arrays["query"], arrays["key"][:, :, 130:], arrays["value"][:, :, 130:]))["out"]
    assert eta(got, judged, "float32") <= ACCEPTANCE
    assert np.array_equal(run(eager, arrays, bias=bias)["out"], got)


def test_a_band_far_from_the_diagonal_has_empty_rows_and_no_nan(eager: Bench) -> None:
    q, kv = np.arange(40)[:, None], np.arange(40)
    arrays = qkv(rows=40, keys=40)
    band = (kv >= q) & (kv <= q - 10) | (kv == q - 20)
    got = run(eager, arrays, mask=eager.array(band))
    judged = truth(Spec(arrays["query"], arrays["key"], arrays["value"], allowed=band[None, None]))
    assert eta(got["out"], judged["out"], "float32") <= ACCEPTANCE
    assert eta(got["lse"], judged["lse"], "float32") <= ACCEPTANCE


def test_hidden_queries_and_hidden_keys_are_different_things(eager: Bench) -> None:
    arrays = qkv(rows=6)
    rows = run(eager, arrays, mask=masks.query_lengths([2, 5]))["out"]
    keys = run(eager, arrays, mask=masks.key_lengths([2, 5]))["out"]
    assert not rows[0, :, 2:].any()
    assert not rows[1, :, 5:].any()
    assert keys[0, :, 2:].all()
    assert not np.array_equal(rows[:, :, :2], keys[:, :, :2])


@pytest.mark.rule("rule-7")
def test_keys_beyond_the_window_have_gradients_of_exactly_zero(bench: Bench) -> None:
    arrays = qkv(rows=6)
    # only the last row is asked for, so only the last two keys are read
    mask = masks.window(1, 0) & ~masks.query_lengths(5)
    got = run(bench, arrays, mask=mask)
    assert not got["out"][:, :, :5].any()
    if "key" in got:
        assert not got["key"][:, :, :4].any()
        assert not got["value"][:, :, :4].any()
        assert got["value"][:, :, 4:].all()


@pytest.mark.rule("rule-14")
@pytest.mark.parametrize("empty", ["batch", "heads", "rows", "keys", "width", "out_width"])
def test_an_axis_of_size_zero_gives_zeros_of_the_right_shape(bench: Bench, empty: str) -> None:
    size = {"batch": 2, "heads": 2, "rows": 3, "keys": 5, "width": 8, "out_width": 4} | {empty: 0}
    arrays = {
        "query": draw(size["batch"], size["heads"], size["rows"], size["width"]),
        "key": draw(size["batch"], size["heads"], size["keys"], size["width"]),
        "value": draw(size["batch"], size["heads"], size["keys"], size["out_width"]),
    }
    got = run(bench, arrays)
    judged = truth(Spec(*arrays.values()))
    assert eta(got["out"], judged["out"], "float32") <= ACCEPTANCE
    assert eta(got["lse"], judged["lse"], "float32") <= ACCEPTANCE
    for name in set(got) - {"out", "lse"}:
        assert got[name].shape == arrays[name].shape
        assert np.isfinite(got[name]).all()


@pytest.mark.rule("rule-7", "rule-23")
@pytest.mark.parametrize("how", ["mask", "bias", "lengths"])
@pytest.mark.parametrize("poison", [np.inf, np.nan, 6e4])
def test_the_engine_does_not_warn_of_what_is_hidden(how: str, poison: float) -> None:
    """NumPy warns of inf * 0 and of exp(120): warnings are errors here, and the definition gives none."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 9, 4)).astype(np.float16)
    q[..., 6:, :] = k[..., 5:, :] = v[..., 5:, :] = poison
    allowed = (np.arange(9) < 5) & (np.arange(9)[:, None] < 6)
    options: dict[str, Any] = {
        "mask": {"mask": allowed},
        "bias": {"bias": np.where(allowed, 0.0, -np.inf)},
        "lengths": {"mask": masks.key_lengths(5) & masks.query_lengths(6)},
    }[how]
    for sinks in (None, 120.0):
        attention(q, k, v, **options, sinks=sinks, implementation="reference")
        for tile in (Blockwise(2, 3), Blockwise(4, 4), Blockwise(9, 9)):
            out, pullback = attention_vjp(q, k, v, **options, sinks=sinks, implementation=tile)
            gradients = pullback(out)
            assert not any(x[..., 6:, :].any() for x in (out, gradients["query"]))
