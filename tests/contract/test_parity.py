"""The judges are judged: truth by the oracle, by mpmath and by differences, eta by mutants of the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from shared.libraries import mparray, mpmath

import polyattn
from polyattn import masks, mods
from polyattn.arrays import backend_of
from polyattn.parity import Spec, eta, floor_ratio, round_to
from polyattn.parity.case import Case
from polyattn.parity.cases import cases
from polyattn.truth import oracle, truth


@pytest.mark.parametrize("case", [c for c in cases() if c.name != "many keys"], ids=lambda c: c.name)
def test_truth_equals_the_oracle(case: Case) -> None:
    spec = case.sample(1, "float32").spec
    loops, judged = oracle(spec), truth(spec)
    assert eta(loops.out, judged["out"], "float64") <= 4
    if spec.normalizer == "softmax":
        assert eta(loops.lse, judged["lse"], "float64") <= 4


@pytest.mark.parametrize("case", cases(), ids=lambda c: c.name)
def test_true_gradients_are_directional_derivatives_of_the_true_output(case: Case) -> None:
    spec = case.sample(2, "float32").spec
    rng = np.random.default_rng(3)
    out_shape = (*spec.shape[:3], spec.v.shape[-1])
    cotangent = rng.normal(size=out_shape)
    judged = truth(spec, cotangent)
    scale = np.asarray(spec.scales if np.ndim(spec.scale) else spec.scales[0], np.longdouble)
    fields = {"q": spec.q, "k": spec.k, "v": spec.v, "scale": scale, "bias": spec.bias, "sinks": spec.sinks}
    for name, value in fields.items():
        if value is None or np.size(value) == 0:
            continue
        direction = rng.normal(size=np.shape(value))
        step = np.longdouble(1e-6)

        def at(
            sign: int, name: str = name, value: Any = value, direction: Any = direction, step: Any = step
        ) -> np.longdouble:
            moved = np.asarray(value, np.longdouble) + sign * step * direction
            out = truth(Spec(**{**spec.__dict__, name: moved}))["out"].value
            return (out * cotangent).sum()

        difference = (at(+1) - at(-1)) / (2 * step)
        gradient = judged[f"d{name}"]
        # central differences: an error of step^2 times the third derivative, and of u / step
        bound = (
            1e-9
            * float((gradient.condition * np.abs(direction)).sum())
            * max(1.0, np.abs(spec.q).max(initial=0) ** 2)
        )
        assert abs(float((gradient.value * direction).sum() - difference)) <= bound, name


def test_fifty_digits_confirm_the_truth_in_float64() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 2, 4, 3)) * 4
    allowed = np.tril(np.ones((4, 4), bool))
    judged = truth(Spec(q, k, v, allowed=allowed[None, None], softcap=3.0))
    with mpmath.workdps(50):
        out, aux = polyattn.attention(
            *(mparray.asarray(x) for x in (q, k, v)),
            mask=masks.causal(),
            scale=mparray.asarray(1 / math.sqrt(3)),
            score_mod=mods.softcap(3.0),
            return_aux=polyattn.AuxRequest(lse=True),
        )
        out, lse = (np.array(backend_of(x).to_list(x)) for x in (out, aux.lse))
    assert eta(out, judged["out"], "float64") <= 1
    assert eta(lse, judged["lse"], "float64") <= 1


def test_golden_six_tokens() -> None:
    x = np.array([[0.42, 0.15, 0.89], [0.78, 0.33, 0.21], [0.12, 0.44, 0.67], [0.56, 0.91, 0.73], [0.34, 0.29, 0.85], [0.63, 0.11, 0.49]])  # fmt: skip
    out, aux = polyattn.attention(x, x, x, scale=1, return_aux=polyattn.AuxRequest(scores=True, weights=True))
    assert aux.scores[1].round(4).tolist() == [0.5640, 0.7614, 0.3795, 0.8904, 0.5394, 0.6306]
    assert aux.weights[1].round(4).tolist() == [0.1543, 0.1880, 0.1283, 0.2139, 0.1506, 0.1649]
    assert out.round(6).tolist() == [
        [0.465705, 0.387386, 0.673175],
        [0.501717, 0.398076, 0.627718],
        [0.460588, 0.409116, 0.672231],
        [0.47898, 0.453814, 0.666344],
        [0.464064, 0.398302, 0.674008],
        [0.486054, 0.382583, 0.646395],
    ]


def test_eta_is_large_where_the_scale_is_a_little_wrong() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 1, 64, 32))
    wrong = polyattn.attention(q, k, v, scale=1 / math.sqrt(33))
    assert eta(wrong, truth(Spec(q, k, v))["out"], "float64") > 1e4


def test_eta_demands_exactness_where_nothing_may_be_rounded() -> None:
    judged = truth(Spec(*np.zeros((3, 1, 1, 1, 1)), allowed=np.zeros((1, 1, 1, 1), bool)))
    assert eta(np.zeros((1, 1, 1, 1)), judged["out"], "float32") == 0
    assert eta(np.full((1, 1, 1, 1), 1e-30), judged["out"], "float32") == math.inf
    assert eta(np.full((1, 1, 1, 1), np.nan), judged["out"], "float32") == math.inf
    assert eta(np.full((1, 1, 1), -1e38), judged["lse"], "float32") == math.inf
    assert eta(np.zeros((1, 1, 1, 2)), judged["out"], "float32") == math.inf


@pytest.mark.rule("rule-21")
def test_floor_ratio_finds_sums_in_half_precision() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (round_to(x, "float16") for x in rng.normal(size=(3, 1, 1, 256, 64)))
    judged = truth(Spec(q, k, v))["out"]
    good = polyattn.attention(*(x.astype(np.float16) for x in (q, k, v)))
    half = [x.astype(np.float16) for x in (q, k, v)]
    s = half[0] @ half[1].swapaxes(-1, -2) * np.float16(1 / 8)
    w = np.exp(s - s.max(-1, keepdims=True))
    naive = (w / w.sum(-1, keepdims=True, dtype=np.float16)) @ half[2]
    assert floor_ratio(good, judged, "float16") <= 1.5 < floor_ratio(naive, judged, "float16")


def test_rounding_to_bfloat16_is_that_of_ml_dtypes() -> None:
    import ml_dtypes

    x = np.concatenate(
        [
            np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-25, 25).repeat(20),
            [0.0, np.inf, -np.inf],
        ]
    )
    assert (
        round_to(x, "bfloat16") == x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    ).all()
