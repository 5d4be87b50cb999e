"""Which traps bite when a call moves from one library to another."""

from __future__ import annotations

import numpy as np
import pytest
from shared.foreign import HERE, Array, Keywords, bound, library

import polyattn
from polyattn import masks, mods
from polyattn.conventions.call import call_of
from polyattn.dialects import DIALECTS, explain
from polyattn.dialects.probes import answers_as_judged
from polyattn.dialects.question import WrittenCall

SQUARE = np.zeros((1, 2, 3, 8), np.float32)


def draw(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(5)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_explain_names_the_traps_that_bite_and_what_each_library_returns() -> None:
    q, k, v = draw((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4))
    allowed = np.ones((1, 1, 3, 3), bool)
    allowed[..., 1, :] = False
    found = explain("torch.sdpa", "jax.nn", q, k, v, mask=allowed)
    assert [trap.question for trap in found.bites] == ["layout", "empty row"]
    trap = found.bites[1]
    assert trap.where == (0, 0, 1, 0)
    assert trap.values is not None
    assert trap.values[0] == trap.meant == 0.0
    assert trap.values[1] == pytest.approx(v[0, 0, :, 0].mean(), abs=1e-12 + bound(q, k, v, 0.5))
    assert trap.eta == np.inf
    theirs = library("jax.nn").call(DIALECTS["jax.nn"].from_polyattn(q, k, v, mask=allowed, repair=False))
    assert np.abs(found.returns[1] - theirs.swapaxes(1, 2)).max() <= bound(q, k, v, 0.5)
    assert "jax.nn: mean of all values -> " in str(found)
    assert "lurks  float64 input" in str(found)


@pytest.mark.parametrize(
    ("a", "b", "case", "bites", "shared"),
    [
        ("torch.sdpa", "flash_attn.2", {"is_causal": True, "query_offset": "end"}, ["causal"], []),
        ("torch.sdpa", "jax.nn", {"is_causal": True, "query_offset": "end"}, [], ["causal"]),
        ("torch.sdpa", "torch.mha", {"mask": np.array([[[[1, 0, 1, 0, 1]]]], bool)}, ["bool mask", "grouped heads"], []),
        ("torch.sdpa", "keras", {"mask": np.array([[[[1.0, 0, 1, 0, 1]]]])}, ["float mask"], []),
        ("onnx.25", "transformers", {"mask": masks.window(1, 1), "query_offset": 0}, ["window"], []),
        ("onnx.25", "x_transformers", {"score_mod": mods.compose(mods.softcap(1.0), mods.alibi(4)), "query_offset": 0}, ["grouped heads", "softcap"], []),
        ("flash_attn.4", "transformers", {"sinks": np.ones(4)}, ["sinks"], []),
        ("jax.nn", "flax.nnx", {"scale": 0.1}, ["scale"], []),
        ("jax.nn", "x_transformers", {}, ["grouped heads"], []),
        ("transformers", "torch.sdpa", {"is_causal": True, "mask": np.ones((1, 1, 3, 5), bool), "query_offset": 0}, ["mask and causal"], []),
        ("torch.sdpa", "equinox", {"bias": np.ones((1, 1, 3, 5))}, ["bias", "grouped heads"], []),
        ("torch.sdpa", "torch.flex", {"return_aux": polyattn.AuxRequest(lse=True)}, ["lse"], []),
    ],
)  # fmt: skip
def test_each_trap_bites_where_its_call_is(
    a: str, b: str, case: Keywords, bites: list[str], shared: list[str]
) -> None:
    q, k, v = draw((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8))
    found = explain(a, b, q, k, v, **case)
    numeric = [t.question for t in found.bites if t.question != "layout"]
    # What differs only in needing a flag, or is refused by both, is another matter than what is asked here.
    assert [name for name in numeric if name in bites] == bites
    assert {name for name in numeric if name not in bites} <= {"grouped heads", "bias"}
    assert [t.question for t in found.shared if t.question in ("causal", "mask and causal")] == shared


HALF, HOLLOW = np.ones((1, 1, 4, 4), bool), np.zeros((1, 1, 4, 4), np.float32)
HALF[..., 1, :2], HOLLOW[..., 1, 2:] = False, -np.inf  # together they leave row 1 with nothing
TRIL = np.tri(4, dtype=bool)[None, None]


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"mask": TRIL}, id="causal"),  # turned round, its last row is empty
        pytest.param({"mask": ~TRIL}, id="what causality hides"),
        pytest.param({"mask": TRIL & ~np.eye(4, dtype=bool)}, id="without itself"),
        pytest.param({"mask": ~TRIL, "is_causal": True}, id="what causality hides, and the flag"),
        pytest.param({"mask": HALF, "bias": HOLLOW}, id="a mask and a bias hide a row together"),
        pytest.param({"bias": np.where(TRIL, HOLLOW, -np.inf)}, id="a bias hides half of a row"),
        pytest.param({"mask": masks.window(1, 0), "query_offset": 2}, id="a window"),
    ],
)
def test_a_call_is_judged_as_the_library_reads_it(name: str, case: Keywords) -> None:
    """Arguments passed on by name, masks not turned round: the library returns what it is said to return."""
    q, k, v = (x.astype(np.float64) for x in draw((1, 2, 4, 4), (1, 2, 4, 4), (1, 2, 4, 4)))
    written = WrittenCall(call_of(q, k, v, case))
    assert answers_as_judged(name, written) in (True, None), DIALECTS[name].settings(written)


def test_a_mask_that_is_turned_round_there_leaves_rows_empty_there() -> None:
    q, k, v = draw((1, 2, 4, 4), (1, 2, 4, 4), (1, 2, 4, 4))
    found = explain("torch.sdpa", "torch.mha", q, k, v, mask=TRIL)
    assert [trap.question for trap in found.bites] == ["layout", "bool mask", "empty row"]
    trap = found.bites[2]
    assert trap.where == (0, 0, 3, 0)
    assert trap.values is not None
    assert np.isnan(trap.values[1])
    assert np.isnan(found.returns[1][:, :, 3]).all()
    assert not np.isnan(found.returns[1][:, :, :3]).any()
    assert np.array_equal(found.returns[0], found.meant)
    # A row that is empty as it is meant bites as soon as the mask is turned round.
    found = explain("torch.sdpa", "torch.mha", q, k, v, mask=TRIL & ~np.eye(4, dtype=bool))
    assert [trap.where for trap in found.bites if trap.question == "empty row"] == [(0, 0, 0, 0)]
    assert not np.isnan(found.returns[1]).any()


def test_a_flag_that_is_a_hint_is_no_error_beside_a_mask() -> None:
    q, k, v = draw((1, 2, 4, 4), (1, 2, 4, 4), (1, 2, 4, 4))
    given = {"mask": np.ones((1, 1, 4, 4), bool), "is_causal": True}
    assert isinstance(explain("torch.sdpa", "torch.mha", q, k, v, is_causal=True).returns[1], str)
    assert isinstance(explain("torch.sdpa", "torch.mha", q, k, v, **given).returns[1], np.ndarray)


def test_explain_knows_dtypes_poison_and_rows_without_bias() -> None:
    q, k, v = (x.astype(np.float64) for x in draw((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)))
    found = explain("torch.sdpa", "jax.nn", q, k, v)
    assert "float64" in [trap.question for trap in found.bites]
    k, v = k.astype(np.float32).copy(), v.astype(np.float32)
    k[:, :, 2] = np.nan
    found = explain("torch.sdpa", "jax.nn", q.astype(np.float32), k, v, mask=masks.prefix(2))
    assert "poison" in [trap.question for trap in found.bites]
    assert "NaN of" in found.results()[0]
    hollow = np.zeros((1, 1, 3, 3), np.float32)
    hollow[..., 0, :] = -np.inf
    found = explain("torch.sdpa", "jax.nn", q.astype(np.float32), v, v, bias=hollow)
    assert [trap.question for trap in found.bites] == ["layout", "empty bias row"]


@pytest.mark.parametrize(
    ("a", "case", "sentence"),
    [
        ("torch.sdp", {}, "expected one of torch.sdpa, torch.flex,"),
        (
            "torch.sdpa",
            {"mask": np.array([[0.5]])},
            "that stand for them, got 0.5; what is added to the scores is bias=",
        ),
        (
            "torch.sdpa",
            {"dropout_rate": 0.5},
            "expected arguments of polyattn.attention that have conventions",
        ),
    ],
)
def test_a_wrong_question_is_answered_with_a_sentence(a: str, case: Keywords, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        explain(a, "jax.nn", SQUARE, SQUARE, SQUARE, **case)
    assert sentence in str(error.value)
