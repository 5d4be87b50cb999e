"""A trace shows what attention computes, stage by stage, on every library."""

from __future__ import annotations

import re

import numpy as np
import pytest

from polyattn import AuxRequest, attention, masks, mods, trace
from polyattn.testing import Bench

RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(2, 4, 5, 8)), RNG.normal(size=(2, 2, 7, 8)), RNG.normal(size=(2, 2, 7, 3))
BIAS = RNG.normal(size=(4, 5, 7))
SIX = np.array(
    [[0.42, 0.15, 0.89], [0.78, 0.33, 0.21], [0.12, 0.44, 0.67], [0.56, 0.91, 0.73], [0.34, 0.29, 0.85], [0.63, 0.11, 0.49]]
)  # fmt: skip


def _everything(bench: Bench) -> tuple[tuple[object, ...], dict[str, object]]:
    dtype = "float32"
    arrays = tuple(bench.array(x, dtype) for x in (Q, K, V))
    options = {
        "mask": masks.causal() & masks.key_lengths([7, 2]),
        "query_offset": "end",
        "score_mod": mods.compose(mods.softcap(2.0), mods.alibi(4)),
        "bias": bench.array(BIAS, dtype),
        "sinks": bench.array(np.zeros(4), dtype),
        "dropout_rate": 0.25,
        "dropout_seed": 3,
    }
    return arrays, options


def test_a_trace_ends_in_the_output_of_the_definition_bit_for_bit(eager: Bench) -> None:
    arrays, options = _everything(eager)
    steps = trace(*arrays, **options)
    request = AuxRequest(lse=True, weights=True, scores=True, max_scores=False)
    out, aux = attention(*arrays, **options, implementation="reference", return_aux=request)
    assert (eager.numpy(steps.out) == eager.numpy(out)).all()
    assert (eager.numpy(steps["lse"].value) == eager.numpy(aux.lse)).all()
    assert (eager.numpy(steps["weights"].value) == eager.numpy(aux.weights)).all()
    assert (eager.numpy(steps["masked"].value) == eager.numpy(aux.scores)).all()


def test_every_stage_is_named_in_order_and_follows_from_the_one_before(eager: Bench) -> None:
    arrays, options = _everything(eager)
    steps = trace(*arrays, **options)
    names = [stage.name for stage in steps]
    assert names == [
        "scores", "after softcap", "after alibi", "biased", "masked", "row maximum", "weights", "dropped weights",
        "output", "lse",
    ]  # fmt: skip
    value = {stage.name: eager.numpy(stage.value) for stage in steps}
    u = 2.0**-24
    allowed = np.isfinite(value["masked"])
    capped = np.where(allowed, 2.0 * np.tanh(value["scores"] / 2.0), 0.0)
    assert np.abs(np.where(allowed, value["after softcap"], 0.0) - capped).max() <= 8 * u * 2.0
    assert (value["biased"] == (value["after alibi"] + BIAS.astype(np.float32)).astype(np.float32))[
        allowed
    ].all()
    top = np.maximum(value["masked"].max(-1), 0.0)  # the sink is 0
    assert (value["row maximum"] == top).all()
    kept = value["dropped weights"] != 0
    assert 0 < kept.sum() < (value["weights"] != 0).sum()
    assert np.abs(value["dropped weights"][kept] - value["weights"][kept] / 0.75).max() <= 2 * u
    assert (value["weights"].sum(-1) < 1).all()  # the sink has its share


def test_statistics_count_what_is_there(eager: Bench) -> None:
    x = np.array([[1.0, 2.0], [3.0, -4.0]])
    mask = np.array([[True, False], [False, False]])
    steps = trace(*(eager.array(x, "float32") for _ in range(3)), mask=eager.array(mask), scale=1.0)
    masked = steps["masked"]
    assert (masked.nans, masked.infs, masked.empty_rows, masked.range) == (0, 3, 1, (5.0, 5.0))
    assert steps["weights"].empty_rows is None
    assert steps["lse"].infs == 1
    assert steps["scores"].shape == (1, 1, 2, 2)
    assert steps["scores"].dtype == "float32"
    largest = steps["scores"].range
    assert largest is not None
    assert steps["scores"].headroom == pytest.approx(
        np.log2(np.finfo(np.float32).max / max(map(abs, largest))), abs=1e-3
    )


def test_half_precision_is_traced_in_float32_and_its_headroom_is_that_of_the_query() -> None:
    x = np.full((1, 64), 40.0, np.float16)
    steps = trace(x, x, x, scale=1.0)
    assert steps["scores"].dtype == "float32"
    assert -1 < steps["scores"].headroom < 0  # 64 * 1600 = 102400 does not fit in float16
    assert steps.out.dtype == np.float16


def test_the_walk_through_of_six_tokens() -> None:
    steps = trace(SIX[1:2], SIX, SIX, scale=1.0)
    golden = [0.5640, 0.7614, 0.3795, 0.8904, 0.5394, 0.6306]
    assert np.abs(steps["scores"].value.ravel() - golden).max() <= 5e-5 + 1e-12  # four digits are given
    assert (
        np.abs(steps["weights"].value.ravel() - [0.1543, 0.1880, 0.1283, 0.2139, 0.1506, 0.1649]).max()
        <= 5.1e-5
    )
    assert np.abs(steps.out.ravel() - [0.501717, 0.398076, 0.627718]).max() <= 5.1e-7


def test_it_prints_as_text_as_a_rich_table_and_as_html_that_is_inert() -> None:
    def evil(s, b, h, q, kv):  # type: ignore[no-untyped-def]
        return s * 1.0

    evil.__name__ = "<script>alert(1)</script>"
    steps = trace(SIX, SIX, SIX, score_mod=evil)
    text = str(steps)
    assert text.splitlines()[0].split() == [
        "stage",
        "equation",
        "shape",
        "dtype",
        "range",
        "NaN",
        "Inf",
        "empty",
        "rows",
        "headroom",
    ]
    assert len(text.splitlines()) == 1 + len(steps.stages)
    page = steps._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert len(re.findall("<tr>", page)) == 1 + len(steps.stages)
    assert steps.__rich__().row_count == len(steps.stages)
    pytest.importorskip("matplotlib")
    assert len(steps.figure().axes) == 2 * 3  # scores, after the mod, weights, each with a bar


def test_nothing_to_see_is_traced_too(eager: Bench) -> None:
    q, k = (eager.array(np.zeros(shape), "float32") for shape in ((1, 1, 2, 4), (1, 1, 0, 4)))
    steps = trace(q, k, k)
    assert steps["scores"].range is None
    assert (eager.numpy(steps.out) == 0).all()


def test_what_a_trace_refuses() -> None:
    with pytest.raises(TypeError) as refused:
        trace(SIX, SIX, SIX, implementation="native")
    assert str(refused.value) == (
        "polyattn.trace: expected the definition to be shown, got implementation=, as polyattn.attention has it; leave "
        "implementation out"
    )
    with pytest.raises(
        KeyError, match="no stage 'masked'; there are scores, row maximum, weights, output, lse"
    ):
        trace(SIX, SIX, SIX)["masked"]


def test_a_compiler_cannot_be_traced() -> None:
    import jax

    with pytest.raises(ValueError, match="got symbols of a compiler; call it outside"):
        jax.jit(lambda x: trace(x, x, x).out)(jax.numpy.asarray(SIX))
