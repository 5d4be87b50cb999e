"""`compare` tells which of two ports is wrong, in which stage first, and why."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from polyattn import attention, masks, mods, trace
from polyattn.parity import compare
from polyattn.testing import BENCHES

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(2, 4, 12, 8)).astype(np.float32) for _ in range(3))
BIAS = RNG.normal(size=(4, 12, 12)).astype(np.float32)
INPUTS = {"query": Q, "key": K, "value": V}
MASK = RNG.random(size=(2, 1, 12, 12)) > 0.3
MASK[..., 0] = True
MEANT = {"mask": MASK, "bias": BIAS, "score_mod": mods.softcap(2.0)}


def sdpa(q: Any, k: Any, v: Any) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def jax_nn(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_two_libraries_that_agree(dtype: str) -> None:
    if dtype == "float64":  # jax.nn takes its softmax in float32
        found = compare(sdpa, lambda q, k, v: attention(q, k, v), INPUTS, on=("torch", "jax"), dtype=dtype)
        assert found.sides[1].notes == ["x64 was enabled for this call alone"]
        assert not jax.config.jax_enable_x64
    else:
        found = compare(sdpa, jax_nn, INPUTS, on=("torch", "jax"), layouts=("BHLD", "BLHD"), dtype=dtype)
    assert found.agrees
    assert found.verdict.startswith(f"AGREE: {sdpa.__module__}.sdpa and ")
    assert set(found.between) == {"out", "dq", "dk", "dv"}
    assert max(found.between.values()) <= 8


def _staged(defect: str) -> Callable[..., Any]:
    """Attention written down stage by stage in PyTorch, with one thing wrong."""

    def f(q: Any, k: Any, v: Any, mask: Any, bias: Any) -> Any:
        scores = q @ k.mT * (1.0 if defect == "scale" else 8**-0.5)
        if defect == "tf32":
            scores = (scores * 2**10).round() / 2**10
        capped = torch.tanh(scores / 2.0) * (1.0 if defect == "cap factor" else 2.0)
        biased = capped - bias if defect == "bias" else capped + bias
        hidden = mask if defect == "polarity" else ~mask
        masked = biased.masked_fill(hidden, 1e-10 if defect == "fill" else -torch.inf)
        weights = torch.softmax(masked, dim=-2 if defect == "axis" else -1)
        if defect == "dropout":
            weights = torch.nn.functional.dropout(weights, 0.5)
        out = weights @ (v.flip(-1) if defect == "value" else v)
        return out, {
            "scores": scores, "after softcap": capped, "biased": biased, "masked": masked, "weights": weights,
            "output": out,
        }  # fmt: skip

    return f


@pytest.mark.parametrize(
    ("defect", "stage"),
    [
        ("none", None),
        ("scale", "scores"),
        ("tf32", "scores"),
        ("cap factor", "after softcap"),
        ("bias", "biased"),
        ("polarity", "masked"),
        ("fill", "masked"),
        ("axis", "weights"),
        ("dropout", "weights"),
        ("value", "output"),
    ],
)
def test_the_first_stage_that_diverges_is_found(defect: str, stage: str | None) -> None:
    def ours(q: Any, k: Any, v: Any, mask: Any, bias: Any) -> Any:
        return trace(q, k, v, **MEANT | {"mask": mask, "bias": bias})

    inputs = {**INPUTS, "mask": MASK, "bias": BIAS}
    found = compare(
        _staged(defect),
        ours,
        inputs,
        on=("torch", "jax"),
        meant=MEANT,
        names=("port", "ours"),
        gradients=False,
    )
    assert found.first_divergence == stage
    assert found.sides[1].agrees
    assert found.sides[0].agrees == (stage is None)
    assert (f"first stage that differs: {stage}" in str(found)) == (stage is not None)


def test_the_worst_element_is_named_with_the_truth() -> None:
    def spoiled(q: Any, k: Any, v: Any) -> Any:
        out = attention(q, k, v)
        out[1, 2, 3, 4] += 0.5
        return out

    found = compare(
        lambda *x: attention(*x), spoiled, INPUTS, on=("numpy", "numpy"), names=("a", "b"), gradients=False
    )
    assert found.worst is not None
    assert (found.worst.quantity, found.worst.index) == ("out", (1, 2, 3, 4))
    assert found.worst.g - found.worst.f == pytest.approx(0.5, abs=1e-6)
    assert abs(found.worst.f - found.worst.truth) < 1e-6
    assert "no known convention explains this" in str(found)
    assert found.verdict == "DISAGREE: a computes what was meant, b does not"


def test_gradients_are_judged_too() -> None:
    def detached(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k.detach(), v)

    found = compare(detached, sdpa, INPUTS, on=("torch", "torch"))
    etas = found.sides[0].etas
    assert etas["out"] <= 4
    assert etas["dk"] > 4
    assert found.sides[1].agrees


def test_both_may_follow_another_convention() -> None:
    def torch_side(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def jax_side(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    inputs = {"query": Q[:, :, :3], "key": K, "value": V}
    meant = {"is_causal": True, "query_offset": "end"}
    found = compare(torch_side, jax_side, inputs, on=("torch", "jax"), meant=meant, layouts=("BHLD", "BLHD"))
    assert found.verdict.endswith(
        "computes what was meant; they agree with each other; did you mean query_offset=0?"
    )
    assert found.to_json()["instead"] == ["query_offset=0"]
    for side in found.sides:
        assert side.diagnosis is not None
        assert "causal mask aligned top-left" in str(side.diagnosis)


@pytest.mark.parametrize(
    ("computed", "meant", "asked"),
    [
        ({"is_causal": True}, {}, "is_causal=True"),
        ({}, {"is_causal": True}, "is_causal=False"),
        ({"mask": ~MASK}, {"mask": MASK}, "mask=~mask (True = may attend)"),
        ({"scale": 1.0}, {}, "scale=1.0"),
        ({"bias": BIAS}, {"bias": BIAS, "score_mod": mods.softcap(2.0)}, "no score_mod="),
        ({"bias": BIAS}, {"bias": -BIAS}, "bias=-bias"),
    ],
)
def test_what_would_make_both_right_is_asked_for(computed: Any, meant: Any, asked: str) -> None:
    found = compare(
        lambda q, k, v: attention(q, k, v, **computed),
        lambda q, k, v: attention(q, k, v, **computed, implementation="reference"),
        INPUTS,
        on=("numpy", "numpy"),
        meant=meant,
        names=("f", "g"),
        gradients=False,
    )
    assert found.verdict == (
        f"DISAGREE: neither f nor g computes what was meant; they agree with each other; did you mean {asked}?"
    )


def test_nothing_is_asked_for_where_nothing_makes_both_right() -> None:
    found = compare(
        lambda q, k, v: attention(q, k, v) * 1.5,
        lambda q, k, v: attention(q, k, v) * 1.5,
        INPUTS,
        on=("numpy", "numpy"),
        names=("f", "g"),
        gradients=False,
    )
    assert found.verdict.endswith("they agree with each other")
    assert found.instead == ()


def test_stages_of_one_side_are_judged_by_the_truth() -> None:
    def staged(q: Any, k: Any, v: Any) -> Any:
        scores = q @ k.mT * 8**-0.5
        weights = torch.softmax(1.1 * scores, -1)
        out = weights @ v
        return out, {"output": out, "scores": scores, "weights": weights}

    found = compare(staged, sdpa, INPUTS, on=("torch", "torch"), names=("port", "sdpa"), gradients=False)
    assert found.first_divergence == "weights"
    assert re.search(
        r"^first stage of port that differs from the truth's: weights \(eta \S+\); scores agrees$",
        str(found),
        re.MULTILINE,
    )
    assert [row[0] for row in found.stage_rows()] == ["scores", "weights", "output"]
    assert all(row[2] == "-" for row in found.stage_rows())
    assert "The first stage of port that differs" in unescape(found.to_html())


def test_stages_that_cannot_be_judged_are_said() -> None:
    def staged(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, k, v), {"scores": q}

    def named(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, k, v), {"logits": q @ k.mT}

    found = compare(staged, named, INPUTS, on=("torch", "torch"), gradients=False)
    assert found.agrees
    assert found.sides[0].notes == [
        "stage 'scores' was not judged: expected shape (2, 4, 12, 12), got (2, 4, 12, 8)"
    ]
    assert found.sides[1].notes == [
        "no stage was judged: the stages of this call are scores, row maximum, weights, output, lse, got logits"
    ]


def test_arrays_of_any_library_and_any_strides_are_inputs() -> None:
    frozen = np.ascontiguousarray(Q)
    frozen.flags.writeable = False
    strange = {
        "query": torch.from_numpy(np.array(Q)),
        "key": jax.numpy.asarray(K),
        "value": np.broadcast_to(V[:1, :1, ::-1, ::-1], V.shape),  # negative and zero strides
    }
    for inputs in (strange, {**INPUTS, "query": frozen}):
        assert compare(
            sdpa, jax_nn, inputs, on=("torch", "jax"), layouts=("BHLD", "BLHD"), gradients=False
        ).agrees


def test_what_a_function_writes_into_its_inputs_does_not_reach_the_other() -> None:
    def writes(q: Any, k: Any, v: Any) -> Any:
        out = attention(q, k, v)
        q[...] = 0.0
        return out

    before = Q.copy()
    found = compare(writes, lambda *x: attention(*x), INPUTS, on=("numpy", "numpy"), gradients=False)
    assert found.agrees
    assert (before == Q).all()


def test_a_function_that_fails_is_reported_and_the_other_is_judged() -> None:
    def fails(*x: Any) -> Any:
        raise RuntimeError("no kernel")

    found = compare(fails, sdpa, INPUTS, on=("numpy", "torch"), names=("f", "g"))
    assert not found.agrees
    assert found.verdict == "f could not be judged: RuntimeError: no kernel"
    assert found.sides[1].agrees
    for result, what in (((1, 2, 3), "a tuple of 3"), (None, "NoneType")):
        other = compare(lambda *x, r=result: r, sdpa, INPUTS, on=("numpy", "torch"), names=("f", "g"))
        assert other.sides[0].error == (
            "TypeError: expected the function to return its output, a trace, or (output, {stage: array}), got "
            f"{what}; wrap it"
        )
    transposed = compare(
        lambda q, k, v: attention(q, k, v).mT, sdpa, INPUTS, on=("numpy", "torch"), names=("f", "g")
    )
    assert transposed.sides[0].error == (
        "ValueError: expected output of shape (2, 4, 12, 8) (B, H, L, E), got (2, 4, 8, 12); layouts= says how axes lie"
    )


def test_nan_in_an_output_is_a_disagreement() -> None:
    def spoiled(q: Any, k: Any, v: Any) -> Any:
        return torch.where(q > 1e9, q, torch.nan)

    found = compare(spoiled, sdpa, INPUTS, on=("torch", "torch"), names=("f", "g"), gradients=False)
    assert found.sides[0].etas["out"] == np.inf
    assert "768 of 768 elements are NaN" in str(found)


@pytest.mark.parametrize(
    ("inputs", "options", "sentence"),
    [
        ({"query": Q}, {}, "polyattn.parity.compare: expected inputs 'query', 'key' and 'value', got query; the truth is computed from them"),
        (INPUTS, {"on": "torch"}, "polyattn.parity.compare: expected on to be two names, for f and g, got 'torch'"),
        (INPUTS, {"on": ("torch", "mxnet")}, "polyattn.parity.compare: expected a bench among numpy, autograd, jax, onnx, strict, torch, got 'mxnet'; choose one of them"),
        (INPUTS, {"dtype": "int8"}, "polyattn.parity.compare: expected dtype among float64, float32, float16, bfloat16, got int8; pass dtype="),
        ({**INPUTS, "query": [1.0]}, {}, "polyattn.parity.compare: expected query to be an array, got list; convert it"),
        (INPUTS, {"meant": {"mask": Q}}, "polyattn.parity.compare: expected a bool mask, True = may attend, got float32; additive values are bias="),
        (INPUTS, {"meant": {"sclae": 1}}, "polyattn.parity.compare: expected arguments of polyattn.attention that have conventions, rotary or embed_dim, got sclae; leave them out"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(
    inputs: Any, options: dict[str, Any], sentence: str | None
) -> None:
    options = {"on": ("torch", "torch"), **options}
    with pytest.raises((ValueError, TypeError)) as refused:
        compare(sdpa, sdpa, inputs, **options)
    assert str(refused.value) == sentence


def _printed(program: str, folder: Path) -> str:
    """What a program prints in a process of its own."""
    (folder / "again.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "again.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_of_functions_that_can_be_imported_repeats_every_digit(tmp_path: Path) -> None:
    meant = {
        "mask": masks.from_array(MASK) & masks.window(5, None),
        "is_causal": True,
        "query_offset": "end",
        "score_mod": mods.compose(mods.softcap(2.0), mods.alibi(4)),
        "bias": BIAS,
        "sinks": np.ones(4, np.float32),
        "scale": 0.5,
        "embed_dim": 64,
    }
    found = compare(attention, attention, INPUTS, on=("numpy", "numpy"), names=("it's f", "g"), meant=meant)
    assert not found.agrees
    found.save(tmp_path / "inputs.npz")
    assert _printed(found.script(), tmp_path) == f"{found}\n"


def test_the_script_of_a_report_runs_as_printed(tmp_path: Path) -> None:
    wrong = compare(
        lambda q, k, v, mask: attention(q, k, v, mask=mask, scale=1.0),
        lambda q, k, v, mask: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        {**INPUTS, "mask": MASK},
        on=("jax", "torch"),
        meant={"mask": MASK},
        layouts=("BHLD", "BHLD"),
        names=("scaled", "sdpa"),
    )
    page = tmp_path / "report.html"
    wrong.to_html(page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.npz"]
    section = page.read_text().split("<h2>To see it again</h2><pre>")[1].split("</pre>")[0]
    program = unescape(section)
    assert "f = lambda *arrays: load_bench('jax')" in program
    again = _printed(program, tmp_path)
    assert again.splitlines()[0] == wrong.verdict
    assert "scaled matches scale = 1 (scores not divided)" in again
    assert re.search(rf"^out +{re.escape(wrong.rows()[0][1])} ", again, re.MULTILINE)
    with pytest.raises(
        FileExistsError, match=r"expected a new file for what the script reads, got .*report\.npz"
    ):
        wrong.to_html(tmp_path / "report.htm")
    assert not (tmp_path / "report.htm").exists()
    wrong.to_html(page, force=True)


def test_the_script_of_a_call_that_failed_fails_likewise(tmp_path: Path) -> None:
    def broken(q: Any, k: Any, v: Any) -> Any:
        raise ValueError("no 'such' thing")

    half = {name: x.astype("bfloat16") for name, x in INPUTS.items()}
    found = compare(attention, broken, half, on=("numpy", "numpy"), names=("f", "g"), meant={"scale": 1.0})
    found.save(tmp_path / "inputs.npz")
    again = _printed(found.script(), tmp_path)
    assert again.startswith("g could not be judged: RuntimeError: ValueError: no 'such' thing")


def test_what_is_no_number_is_a_word_with_a_reason() -> None:
    mask = np.ones((12, 12), bool)
    mask[3] = False
    meant = {"mask": mask}

    def unguarded(q: Any, k: Any, v: Any) -> Any:
        return torch.softmax((q @ k.mT * 8**-0.5).masked_fill(~torch.tensor(mask), -torch.inf), -1) @ v

    found = compare(
        unguarded, sdpa, INPUTS, on=("torch", "torch"), names=("f", "g"), meant=meant, gradients=False
    )
    assert found.rows()[0][1] == "NaN"
    reason = "f: out: NaN at 64 of 768 places, first at (0, 0, 3, 0), where the truth is 0 (a row that sees no key)"
    assert reason in str(found).splitlines()
    assert reason in unescape(found.to_html())
    assert found.to_json()["sides"][0]["reasons"]["out"] == reason.removeprefix("f: out: ")
    assert "inf" not in str(found).split("matches")[0]


def test_every_library_can_be_a_side() -> None:
    for name in BENCHES:
        found = compare(
            lambda q, k, v: attention(q, k, v, mask=masks.causal()),
            lambda q, k, v: attention(q, k, v, is_causal=True),
            INPUTS,
            on=(name, "numpy"),
            meant={"is_causal": True},
            gradients=False,
        )
        assert found.agrees, str(found)
