"""The derivative of the engine at its edges: rows that see nothing, sinks far away, arguments that broadcast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.libraries import torch

from polyattn import Blockwise, attention, attention_vjp, masks, mods
from polyattn.implementations.blockwise.rule import with_derivative
from polyattn.parity import ACCEPTANCE, Spec, eta
from polyattn.problem import pose
from polyattn.truth import truth

TILES = Blockwise(2, 3)
Q, K, V = (np.random.default_rng(i).normal(size=(2, n, 5, 4)) for i, n in ((1, 4), (2, 2), (3, 2)))
COTANGENT = np.random.default_rng(4).normal(size=Q.shape)
ALLOWED = np.ones((2, 1, 5, 5), bool)
ALLOWED[0, 0, 1] = ALLOWED[1, 0, 4] = False  # rows that see nothing
ALLOWED[:, :, 2, 3] = False
EMPTY = np.broadcast_to(~ALLOWED.any(-1), Q.shape[:3])
HIDDEN_BY: dict[str, dict[str, Any]] = {
    "mask": {"mask": ALLOWED},
    "bias": {"bias": np.where(ALLOWED, 0.0, -np.inf)},
    "both": {"mask": ALLOWED, "bias": np.zeros((2, 1, 5, 5))},
}


def pullback(q: Any = Q, k: Any = K, v: Any = V, **options: Any) -> Any:
    return attention_vjp(q, k, v, **options, implementation=TILES)[1]


@pytest.mark.rule("rule-6")
@pytest.mark.parametrize("how", HIDDEN_BY)
def test_a_row_that_sees_nothing_sends_nothing_back_whatever_comes_to_it(how: str) -> None:
    options = HIDDEN_BY[how] | {"scale": np.full(4, 0.5), "sinks": np.zeros(4)}
    d_lse = np.random.default_rng(5).normal(size=Q.shape[:3])
    expected = pullback(**options)(COTANGENT, d_lse)
    spoilt_out = np.where(EMPTY[..., None], np.nan, COTANGENT)
    spoilt_lse = np.where(EMPTY, np.nan, d_lse)
    for cotangents in ((spoilt_out, d_lse), (COTANGENT, spoilt_lse)):
        got = pullback(**options)(*cotangents)
        for name in expected:
            assert np.array_equal(got[name], expected[name]), name


@pytest.mark.rule("rule-7")
@pytest.mark.parametrize("how", HIDDEN_BY)
def test_a_query_of_nan_that_sees_nothing_is_in_no_gradient(how: str) -> None:
    options = HIDDEN_BY[how] | {"scale": np.full(4, 0.5)}
    expected = pullback(**options)(COTANGENT)
    with np.errstate(invalid="ignore"):
        got = pullback(np.where(EMPTY[..., None], np.nan, Q), **options)(COTANGENT)
    for name in expected:
        assert np.array_equal(got[name], expected[name]), name


def test_a_sink_beyond_the_range_of_exp_takes_nothing_from_a_row_that_sees_nothing() -> None:
    with np.errstate(over="ignore"):
        got = pullback(mask=ALLOWED, sinks=np.array([0.0, 800.0, -800.0, 1e4]))(COTANGENT)
    assert all(np.isfinite(x).all() for x in got.values())


@pytest.mark.parametrize("level", [-1e4, -800.0, 800.0, 1e4])
def test_sinks_far_above_and_below_the_scores_have_true_gradients(level: float) -> None:
    sinks = np.array([level, 0.0, level, 1.0])
    got = pullback(sinks=sinks)(COTANGENT)
    judged = truth(Spec(Q, K, V, sinks=sinks), COTANGENT)
    for name in ("query", "key", "value"):
        assert eta(got[name], judged["d" + name[0]], "float64") <= ACCEPTANCE, name
    near = type(judged["dsinks"])(*(x[1::2] if np.ndim(x) else x for x in judged["dsinks"]))
    assert eta(got["sinks"][1::2], near, "float64") <= ACCEPTANCE
    assert not got["sinks"][::2].any()  # below the least float64


def test_a_scale_for_each_of_two_heads_has_two_gradients() -> None:
    q, scale = Q[:, :2], np.array([0.5, 2.0])
    got = pullback(q, scale=scale)(COTANGENT[:, :2])["scale"]
    judged = truth(Spec(q, K, V, scale=scale), COTANGENT[:, :2])["dscale"]
    assert got.shape == (2,)
    assert eta(got, judged, "float64") <= ACCEPTANCE


@pytest.mark.parametrize("alone", ["query", "key", "value"])
@pytest.mark.parametrize("tile", [TILES, Blockwise(8, 8)])
def test_a_batch_that_one_array_alone_has_is_summed_over_for_the_others(alone: str, tile: Blockwise) -> None:
    arrays = {"query": Q, "key": K, "value": V}
    given = {name: x if name == alone else x[:1] for name, x in arrays.items()}
    out, back = attention_vjp(**given, is_causal=True, implementation=tile)
    judged = truth(Spec(*given.values(), allowed=np.tri(5, dtype=bool)[None, None]), COTANGENT)
    assert eta(out, judged["out"], "float64") <= ACCEPTANCE
    for name, gradient in back(COTANGENT).items():
        assert gradient.shape == given[name].shape
        assert eta(gradient, judged["d" + name[0]], "float64") <= ACCEPTANCE, name


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_blocks_of_all_items_know_a_batch_that_one_array_alone_has(alone: int) -> None:
    given = [x if i == alone else x[:1] for i, x in enumerate((Q, K, V))]
    tensors = [torch.tensor(x) for x in given]  # PyTorch cuts no items
    p = pose("polyattn.attention", *tensors)
    with torch.no_grad():  # scores are overwritten then
        (out, _), back = with_derivative(p, TILES)
        found = back(torch.tensor(COTANGENT), torch.zeros(Q.shape[:3], dtype=torch.float64))
    judged = truth(Spec(*given), COTANGENT)
    assert eta(out.numpy(), judged["out"], "float64") <= ACCEPTANCE
    for name, x, gradient in zip(("dq", "dk", "dv"), given, found[:3], strict=True):
        assert tuple(gradient.shape) == x.shape  # of the Problem: JAX takes no other
        assert eta(gradient.numpy(), judged[name], "float64") <= ACCEPTANCE, name


@pytest.mark.parametrize("implementation", ["reference", TILES])
def test_a_modification_may_give_the_scores_their_batch(implementation: Any) -> None:
    out = attention(
        Q[:1], K[:1], V, score_mod=lambda s, b, h, q, kv: s + b * (q - kv), query_offset=0, implementation=implementation
    )  # fmt: skip
    at = np.arange(5)
    shift = np.arange(2)[:, None, None, None] * (at[:, None] - at)
    judged = truth(Spec(np.repeat(Q[:1], 2, 0), np.repeat(K[:1], 2, 0), V, shift=shift))["out"]
    assert eta(out, judged, "float64") <= ACCEPTANCE


def test_a_bias_beside_a_modification_with_arrays_keeps_its_own_gradient() -> None:
    bias, table = (
        np.random.default_rng(6).normal(size=(1, 4, 5, 5)),
        np.random.default_rng(7).normal(size=(8, 4)),
    )
    mod = mods.compose(mods.softcap(np.array(1.5)), mods.relative_position_bias(table))
    got = pullback(bias=bias, mask=masks.causal(), score_mod=mod)(COTANGENT)
    distance = np.arange(5) - np.arange(5)[:, None]
    shift = table[mods.relative_bucket(distance, 8, bidirectional=True, max_distance=128)].transpose(2, 0, 1)
    spec = Spec(Q, K, V, np.tri(5, dtype=bool)[None, None], softcap=1.5, shift=shift[None], bias=bias)
    judged = truth(spec, COTANGENT)
    for name, quantity in {"query": "dq", "key": "dk", "value": "dv", "bias": "dbias"}.items():
        assert got[name].shape == judged[quantity].value.shape
        assert eta(got[name], judged[quantity], "float64") <= ACCEPTANCE, name


@pytest.mark.parametrize("of", ["numpy", "torch"])
def test_grouped_heads_without_width_average_the_values_they_see(of: str) -> None:
    """Every score is 0: so additive attention brings its own, as a bias."""
    tensor = torch.tensor if of == "torch" else np.asarray
    q, k, v = (tensor(x) for x in (Q[..., :0], K[..., :0], V))
    for options, allowed in (({}, np.ones((5, 5), bool)), ({"is_causal": True}, np.tri(5, dtype=bool))):
        out, back = attention_vjp(q, k, v, **options, implementation=TILES)
        wide = Spec(np.zeros((2, 4, 5, 1)), np.zeros((2, 2, 5, 1)), V, allowed[None, None])
        judged = truth(wide, COTANGENT)
        assert eta(np.asarray(out), judged["out"], "float64") <= ACCEPTANCE
        found = back(tensor(COTANGENT))
        assert tuple(found["query"].shape) == (2, 4, 5, 0)
        assert tuple(found["key"].shape) == (2, 2, 5, 0)
        assert eta(np.asarray(found["value"]), judged["dv"], "float64") <= ACCEPTANCE
        out, back = attention_vjp(*(tensor(x) for x in (Q, K)), v[..., :0], **options, implementation=TILES)
        assert tuple(out.shape) == (2, 4, 5, 0)
        assert not any(np.asarray(x).any() for x in back(out).values())
