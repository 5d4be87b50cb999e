"""Exact laws of attention that need no other implementation: bit for bit, or by eta against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn import AuxRequest, attention, attention_vjp, masks, mods
from polyattn.parity import ACCEPTANCE, UNIT_ROUNDOFF, Spec, eta, round_to
from polyattn.parity.cases.scores import SIX_TOKENS
from polyattn.testing import Bench
from polyattn.truth import oracle, truth

X = np.array(SIX_TOKENS)
HEAD_MAPS = [(4, 2), (12, 12), (32, 8), (28, 4), (3, 1)]


def draw(*shape: int, seed: int = 0, amplitude: float = 1.0) -> np.ndarray:
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape) * amplitude, "float16")


def qkv(rows: int = 7, keys: int = 7, heads: int = 4, kv_heads: int = 2, out_width: int = 5, batch: int = 2):
    return (
        draw(batch, heads, rows, 8, seed=1, amplitude=4),
        draw(batch, kv_heads, keys, 8, seed=2),
        draw(batch, kv_heads, keys, out_width, seed=3),
    )


def attend(bench: Bench, *arrays: np.ndarray, dtype: str = "float32", **options: Any) -> np.ndarray:
    """attention in NumPy arrays; every array among the options is converted too."""
    given = {n: bench.array(x, dtype) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    return bench.numpy(attention(*(bench.array(x, dtype) for x in arrays), **given))


def test_one_visible_key_gives_its_row_of_v_bit_for_bit(eager: Bench) -> None:
    q, k, v = qkv()
    chosen = np.array([3, 0, 6, 6, 1, 2, 5])
    out = attend(eager, q, k, v, mask=chosen[:, None] == np.arange(7))
    assert np.array_equal(out, np.repeat(v, 2, axis=1)[:, :, chosen])


def test_doubling_v_doubles_the_result_bit_for_bit(eager: Bench) -> None:
    q, k, v = qkv()
    assert np.array_equal(attend(eager, q, k, 2 * v), 2 * attend(eager, q, k, v))


def test_permuting_the_batch_permutes_the_result_bit_for_bit(eager: Bench) -> None:
    q, k, v = qkv(batch=5)
    order = np.array([3, 1, 4, 0, 2])
    assert np.array_equal(
        attend(eager, q[order], k[order], v[order], is_causal=True),
        attend(eager, q, k, v, is_causal=True)[order],
    )


def test_a_second_run_gives_the_same_bits(eager: Bench) -> None:
    q, k, v = qkv(rows=33, keys=33)
    assert np.array_equal(attend(eager, q, k, v), attend(eager, q, k, v))


@pytest.mark.rule("rule-8")
def test_grouped_heads_equal_repeated_heads(eager: Bench) -> None:
    q, k, v = qkv()
    repeated = truth(Spec(q, np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)))
    assert eta(attend(eager, q, k, v), repeated["out"], "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-8")
@pytest.mark.parametrize("layout", ["BHLD", "BLHD"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEAD_MAPS)
def test_query_head_h_reads_kv_head_h_over_group(
    eager: Bench, heads: int, kv_heads: int, layout: str
) -> None:
    q, k, _ = qkv(heads=heads, kv_heads=kv_heads)
    v = np.zeros((2, kv_heads, 7, 5)) + np.arange(kv_heads)[:, None, None]
    mask = np.eye(7, dtype=bool)  # one visible key: exact whatever the sums do
    if layout == "BLHD":
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    out = attend(eager, q, k, v, mask=mask, layout=layout)
    out = out.swapaxes(1, 2) if layout == "BLHD" else out
    expected = np.broadcast_to((np.arange(heads) // (heads // kv_heads))[:, None, None], out.shape)
    assert np.array_equal(out, expected)


def test_permuting_the_keys_changes_nothing(eager: Bench) -> None:
    q, k, v = qkv()
    order = np.array([4, 2, 0, 6, 5, 1, 3])
    out = attend(eager, q, k[:, :, order], v[:, :, order])
    assert eta(out, truth(Spec(q, k, v))["out"], "float32") <= ACCEPTANCE


def test_values_of_one_give_one(eager: Bench) -> None:
    q, k, v = qkv()
    judged = truth(Spec(q, k, np.ones_like(v)))["out"]
    assert (np.abs(judged.value - 1) < 2.0**-50).all()
    assert eta(attend(eager, q, k, np.ones_like(v)), judged, "float32") <= ACCEPTANCE


def test_adding_one_number_to_all_scores_changes_nothing(eager: Bench) -> None:
    q, k, v = qkv()
    unshifted, shifted = truth(Spec(q, k, v)), truth(Spec(q, k, v, bias=np.full((1, 1, 1, 1), 3.0)))
    judged = shifted["out"]._replace(value=unshifted["out"].value)
    out = attend(eager, q, k, v, bias=np.full((1, 1, 1, 1), 3.0))
    assert eta(out, judged, "float32") <= ACCEPTANCE


def test_the_result_lies_between_the_least_and_the_greatest_value(eager: Bench) -> None:
    q, k, v = qkv()
    out, values = attend(eager, q, k, v), np.repeat(v, 2, axis=1)
    room = ACCEPTANCE * UNIT_ROUNDOFF["float32"] * truth(Spec(q, k, v))["out"].condition
    assert (out >= values.min(2, keepdims=True) - room).all()
    assert (out <= values.max(2, keepdims=True) + room).all()


@pytest.mark.parametrize("left", [6, 7, 1000])
def test_a_window_as_long_as_the_sequence_is_causal_bit_for_bit(eager: Bench, left: int) -> None:
    q, k, v = qkv()
    causal = attend(eager, q, k, v, is_causal=True)
    assert np.array_equal(attend(eager, q, k, v, mask=masks.window(left, 0)), causal)
    assert np.array_equal(attend(eager, q, k, v, mask=masks.sliding_window(left + 1)), causal)
    assert not np.array_equal(attend(eager, q, k, v, mask=masks.window(5, 0)), causal)


def test_a_large_softcap_is_no_softcap_and_a_small_one_is_not(eager: Bench) -> None:
    q, k, v = qkv()
    judged = truth(Spec(q, k, v))["out"]
    assert eta(attend(eager, q, k, v, score_mod=mods.softcap(1e6)), judged, "float32") <= ACCEPTANCE
    assert eta(attend(eager, q, k, v, score_mod=mods.softcap(2.0)), judged, "float32") > ACCEPTANCE


@pytest.mark.rule("rule-1")
def test_softcap_comes_before_the_mask_so_hidden_keys_weigh_exactly_nothing(eager: Bench) -> None:
    q, k, v = (eager.array(x, "float32") for x in qkv())
    hidden = np.arange(7) >= 4
    mask = eager.array(np.broadcast_to(~hidden, (7, 7)))
    _, aux = attention(q, k, v, mask=mask, score_mod=mods.softcap(2.0), return_aux=AuxRequest(weights=True))
    weights = eager.numpy(aux.weights)
    assert not weights[..., hidden].any()
    assert weights[..., ~hidden].all()


@pytest.mark.rule("rule-1")
def test_softcap_comes_before_the_bias(eager: Bench) -> None:
    q, k, v = qkv()
    bias = draw(1, 1, 7, 7, amplitude=4)
    out = attend(eager, q, k, v, score_mod=mods.softcap(2.0), bias=bias)
    assert eta(out, truth(Spec(q, k, v, softcap=2.0, bias=bias))["out"], "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-2")
def test_a_bias_of_minus_infinity_is_a_mask_bit_for_bit(eager: Bench) -> None:
    q, k, v = qkv()
    mask = np.random.default_rng(0).random((2, 1, 7, 7)) < 0.5
    mask[1, :, 2] = False
    biased = attend(eager, q, k, v, bias=np.where(mask, 0.0, -np.inf))
    assert np.array_equal(biased, attend(eager, q, k, v, mask=mask))


def test_a_bias_of_finfo_min_is_a_finite_bias_so_the_row_is_the_mean(eager: Bench) -> None:
    q, k, _ = qkv(keys=4)
    v = np.random.default_rng(0).integers(-8, 8, (2, 2, 4, 5)).astype(float)
    bias = np.zeros((1, 1, 7, 4))
    bias[..., 3, :] = np.finfo(np.float32).min
    out = attend(eager, q, k, v, bias=bias)
    assert np.array_equal(out[:, :, 3], np.repeat(v, 2, axis=1).mean(2))


def test_half_a_mask_equals_attention_over_the_visible_half(eager: Bench) -> None:
    q, k, v = qkv()
    out = attend(eager, q, k, v, mask=np.broadcast_to(np.arange(7) < 4, (7, 7)))
    assert eta(out, truth(Spec(q, k[:, :, :4], v[:, :, :4]))["out"], "float32") <= ACCEPTANCE


@pytest.mark.parametrize("axes", list(np.ndindex(2, 2, 2, 2)), ids=lambda a: "".join(map(str, a)))
def test_a_mask_broadcasts_along_every_axis(eager: Bench, axes: tuple[int, ...]) -> None:
    q, k, v = qkv(rows=6)
    shape = [n if full else 1 for full, n in zip(axes, (2, 4, 6, 7), strict=True)]
    mask = np.random.default_rng([*axes]).random(shape) < 0.6
    judged = truth(Spec(q, k, v, allowed=mask))["out"]
    assert eta(attend(eager, q, k, v, mask=mask), judged, "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-2")
def test_an_explicit_mask_and_is_causal_both_hold(eager: Bench) -> None:
    q, k, v = qkv()
    mask = np.random.default_rng(4).random((7, 7)) < 0.6
    both = attend(eager, q, k, v, mask=mask & np.tri(7, dtype=bool))
    assert np.array_equal(attend(eager, q, k, v, mask=mask, is_causal=True), both)
    assert np.array_equal(
        attend(eager, q, k, v, mask=masks.from_array(eager.array(mask)) & masks.causal()), both
    )


@pytest.mark.rule("rule-4")
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("keys", [1, 3, 8])
@pytest.mark.parametrize("offset", [0, "end", 2, -1])
def test_positions_decide_who_sees_whom(eager: Bench, rows: int, keys: int, offset: Any) -> None:
    q, k, v = qkv(rows=rows, keys=keys)
    start = keys - rows if offset == "end" else offset
    allowed = np.arange(keys) <= np.arange(rows)[:, None] + start
    out = attend(eager, q, k, v, is_causal=True, query_offset=offset)
    judged = truth(Spec(q, k, v, allowed=allowed[None, None]))["out"]
    assert eta(out, judged, "float32") <= ACCEPTANCE


def test_a_later_key_never_changes_an_earlier_row(eager: Bench) -> None:
    q, k, v = qkv()
    for dtype in set(eager.dtypes) - {"float64"}:  # JAX needs a scope for it
        before = attend(eager, q, k, v, is_causal=True, dtype=dtype)
        for j in range(1, 7):
            k2, v2 = k.copy(), v.copy()
            k2[:, :, j:] += 3
            v2[:, :, j:] -= 5
            after = attend(eager, q, k2, v2, is_causal=True, dtype=dtype)
            assert np.array_equal(after[:, :, :j], before[:, :, :j])
            assert not np.array_equal(after[:, :, j], before[:, :, j])


@pytest.mark.parametrize("scale", [-1e4, -1.0, 0.0, 1e-8])
def test_any_scale_is_legal(eager: Bench, scale: float) -> None:
    q, k, v = qkv()
    out = attend(eager, q, k, v, scale=scale)
    assert eta(out, truth(Spec(q, k, v, scale=scale))["out"], "float32") <= ACCEPTANCE


@pytest.mark.rule("rule-21")
@pytest.mark.parametrize("number", [133120.0, 300.0])
def test_large_half_precision_logits_stay_finite(eager: Bench, number: float) -> None:
    dtype = "bfloat16" if number > 60000 else "float16"
    if dtype not in eager.dtypes:
        assert eager.name in ("strict", "autograd")
        return
    x = np.full((1, 1, 4, 64), number)
    assert np.array_equal(attend(eager, x, x, x, dtype=dtype), x)


@pytest.mark.rule("rule-10")
def test_every_score_of_a_uniform_row_has_lse_log_of_the_number_of_keys(eager: Bench) -> None:
    q, k, v = qkv()
    _, aux = attention(
        *(eager.array(x, "float32") for x in (0 * q, k, v)), return_aux=AuxRequest(lse=True, weights=True)
    )
    judged = truth(Spec(0 * q, k, v))["lse"]
    assert np.array_equal(judged.value.astype(float), np.full((2, 4, 7), np.log(7)))
    assert eta(eager.numpy(aux.lse), judged, "float32") <= ACCEPTANCE


def test_the_six_tokens_of_the_course_give_its_printed_numbers(eager: Bench) -> None:
    x = eager.array(X, "float32")
    out, aux = attention(x, x, x, scale=1.0, return_aux=AuxRequest(scores=True, weights=True))
    scores, weights = eager.numpy(aux.scores)[1], eager.numpy(aux.weights)[1]
    assert scores.round(4).astype("f4").tolist() == _f4(0.5640, 0.7614, 0.3795, 0.8904, 0.5394, 0.6306)
    assert weights.round(4).astype("f4").tolist() == _f4(0.1543, 0.1880, 0.1283, 0.2139, 0.1506, 0.1649)
    assert eager.numpy(out)[1].round(4).astype("f4").tolist() == _f4(0.5017, 0.3981, 0.6277)


def _f4(*numbers: float) -> list[float]:
    return np.array(numbers, "f4").tolist()


def test_the_loop_oracle_and_the_library_agree_on_the_weights(eager: Bench) -> None:
    q, k, v = qkv()
    spec = Spec(q, k, v, allowed=np.tri(7, dtype=bool)[None, None])
    given = (eager.array(x, "float32") for x in (q, k, v))
    _, aux = attention(*given, is_causal=True, return_aux=AuxRequest(weights=True))
    # the weights are the result for V = 1, key by key
    identity = Spec(q, k, np.broadcast_to(np.eye(7), (2, 2, 7, 7)), allowed=spec.allowed)
    judged = truth(identity)["out"]
    assert np.array_equal(judged.value.astype("f4"), oracle(spec).weights.astype("f4"))
    assert eta(eager.numpy(aux.weights), judged, "float32") <= ACCEPTANCE


def test_a_scale_that_is_a_numpy_scalar_is_a_number_and_has_no_gradient() -> None:
    x = np.eye(3)
    assert attention_vjp(x, x, x, scale=np.log(2))[1](x).keys() == {"query", "key", "value"}
    assert attention_vjp(x, x, x, scale=np.asarray(np.log(2)))[1](x).keys() == {
        "query",
        "key",
        "value",
        "scale",
    }
