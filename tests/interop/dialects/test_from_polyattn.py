"""Arguments of attention said in a dialect: the meaning is kept, or a sentence refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from shared.foreign import Array, Keywords, bound, drawn, library

from polyattn import attention, mods
from polyattn.dialects import DIALECTS
from polyattn.dialects.capabilities import CARRIED
from polyattn.dialects.from_polyattn import express
from polyattn.dialects.libraries import PEERS
from polyattn.parity.cases import cases
from polyattn.problem import FEATURES, Problem, pose
from polyattn.truth.definition import truth
from polyattn.truth.measure import ACCEPTANCE, eta

Q = np.zeros((2, 4, 3, 8), np.float32)
K = np.zeros((2, 2, 5, 8), np.float32)
ITEM, ITEM_KEYS = Q[:1], K[:1]  # some dialects have words for one item only


def unsaid(name: str) -> Iterator[str]:
    """The cases that a dialect has no words for."""
    for case in cases():
        _, operands, options = drawn(
            case, library("torch.sdpa").array if name == "torch.flex" else lambda x: x
        )
        refused = None
        try:
            said = DIALECTS[name].from_polyattn(*operands, **options)
        except ValueError as error:
            refused = str(error)
        if refused is not None:
            assert refused.startswith(f"polyattn.dialects.DIALECTS['{name}'].from_polyattn: expected ")
            yield case.name
            continue
        sample = case.sample(0, "float32")
        with np.errstate(all="ignore"):
            out = DIALECTS[name].attention(**said)
        out = DIALECTS[name].result_of(out[0] if isinstance(out, tuple) else out, sample.spec.q.shape[1])
        if name.endswith("varlen"):  # the items of a batch are sequences
            batch, heads, rows, _ = sample.spec.shape
            out = np.reshape(out, (heads, batch, rows, out.shape[-1])).swapaxes(0, 1)
        assert eta(np.asarray(out, np.float64), truth(sample.spec)["out"], "float32") <= ACCEPTANCE, case.name


SOFT = {"softcap bias mask"}
NORMALIZED = {"sigmoid", "softpick", "sparsemax", "entmax15", "top k and sinks", "sigmoid and dropout"}
NEVER = {"dropout", "functions on positions"} | NORMALIZED
WIDE = {"values of another width", "layout blhd", "many keys"}
BIASED = {
    "masks combine",
    "sinks and empty rows",
    "sinks",
    "alibi",
    "relative position bias",
    "bias per item and head",
    "packed windows slopes and sinks",
}
PACKED = {"packed with keys of their own", "packed with themselves"}
MASKED = {
    "mask polarity",
    "causal first rows",
    "causal offset per item",
    "prefix chunks dilation",
    "packed documents",
    *PACKED,
    "packed windows slopes and sinks",
    "rows that see nothing",
    "poison in hidden keys",
    "query and key lengths",
}
UNSAID = {
    "torch.sdpa": SOFT | NEVER,
    "torch.mha": SOFT | NEVER | WIDE,
    "torch.flex": {"dropout", "no keys"} | NORMALIZED,
    "jax.nn": SOFT | NEVER | WIDE,
    "flax.nnx": SOFT | NEVER | WIDE,
    "equinox": SOFT | NEVER | BIASED | {"no keys"},
    "keras": SOFT | NEVER | WIDE,
    "onnx.23": NEVER | {"no keys"},
    "onnx.24": NEVER | {"no keys"},
    "onnx.25": NEVER | {"no keys"},
    "flash_attn.2": SOFT | NEVER | WIDE | BIASED | MASKED,
    "flash_attn.varlen": SOFT | NEVER | WIDE | BIASED | MASKED - PACKED,
    "torch.varlen": SOFT | NEVER | WIDE | BIASED | MASKED - PACKED,
    "flash_attn.3": SOFT | NEVER | BIASED | MASKED,
    "flash_attn.4": SOFT | NEVER | BIASED - {"sinks"} | MASKED,
    "onnxruntime.gqa": NEVER | WIDE | {"no keys", "causal first rows", "causal last rows"},
    "tokamax": SOFT | NEVER | {"no keys"},
    "mlx": SOFT | NEVER,
    "te": NEVER,
    "ggml": NEVER,
    "xformers": SOFT | NEVER,
    "x_transformers": SOFT | NEVER,
    "transformers": SOFT | NEVER,
}


@pytest.mark.parametrize("name", list(DIALECTS))
def test_what_is_said_in_a_dialect_means_the_same_there(name: str) -> None:
    refused = set(unsaid(name))
    assert refused == UNSAID.get(name, refused)
    assert {case.name for case in cases()} - refused  # of which the meaning was compared


REPAIRED = ("rows that see nothing", "poison in hidden keys", "sinks and empty rows", "causal last rows")


@pytest.mark.parametrize(
    "name", ["torch.sdpa", "torch.mha", "torch.mha no weights", "onnx.25", "jax.nn", "transformers"]
)
def test_repaired_calls_return_what_is_meant_from_the_library_itself(name: str) -> None:
    name = name.removeprefix("torch.") if name.endswith("weights") else name
    asked = library(name)
    d = DIALECTS[PEERS[name].dialect]
    wrong_without = 0
    for case in cases():
        if case.name in REPAIRED[: 2 if name == "jax.nn" else 4]:
            sample, operands, options = drawn(case, asked.array)
            for repair in (True, False):
                found = asked.call(d.from_polyattn(*operands, repair=repair, **options))
                out = d.result_of(found[0] if isinstance(found, tuple) else found, sample.spec.q.shape[1])
                error = eta(np.asarray(out, np.float64), truth(sample.spec)["out"], "float32")
                assert error <= ACCEPTANCE or not repair, case.name
                wrong_without += error > ACCEPTANCE
    assert wrong_without


def test_the_translators_work_under_a_compiler() -> None:
    import jax

    d = DIALECTS["jax.nn"]
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 8)).astype(np.float32)
    allowed = np.arange(4) < 3
    options = {"mask": jax.numpy.asarray(allowed[None, None, None]), "scale": jax.numpy.asarray(0.3)}

    @jax.jit
    def both(q: Array, k: Array, v: Array) -> Array:
        said = d.from_polyattn(q, k, v, **options)
        return jax.nn.dot_product_attention(**said), d.attention(**said)

    theirs, ours = both(q, k, v)
    expected = attention(q, k, v, mask=allowed[None, None, None], scale=0.3).swapaxes(1, 2)
    for found in (theirs, ours):
        assert np.abs(np.asarray(found) - expected).max() <= bound(q, k, v, 0.3)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("flash_attn.2", {"is_causal": True, "query_offset": 0}, "the mask causal() with query_offset = 0; only causality and"),
        ("flash_attn.2", {"bias": np.zeros((1, 1, 3, 5), np.float32)}, "expected what flash_attn.2 has words for (values added to the scores: none), got a bias; nothing else"),
        ("flash_attn.2", {"sinks": np.zeros(4, np.float32)}, "expected what flash_attn.2 has words for (sinks in the denominator: none), got a sink; nothing else"),
        ("torch.sdpa", {"score_mod": mods.softcap(2.0)}, "(soft cap: none), got Softcap(cap=2.0); nothing else there can express it"),
        ("torch.sdpa", {"score_mod": lambda s, b, h, q, kv: s * s, "query_offset": 0}, "which does not only add"),
        ("torch.sdpa", {"dropout_rate": 0.5, "dropout_seed": 1}, "got dropout; it draws other weights to drop from any seed: ask it for its own dropout"),
        ("torch.sdpa", {"return_aux": None}, "DIALECTS['torch.sdpa'].from_polyattn: expected no wish for intermediate values, got return_aux=, "),
        ("torch.sdpa", {"mask": np.zeros((3, 5), np.float32)}, "expected a bool mask (True = may attend), got dtype float32"),
        ("x_transformers", {"score_mod": mods.softcap(2.0), "bias": np.zeros((1, 1, 3, 5), np.float32)}, "after the bias"),
        ("x_transformers", {"score_mod": mods.softcap(2.0), "sinks": np.zeros(4, np.float32)}, "after the bias"),
    ],
)  # fmt: skip
def test_what_a_dialect_has_no_words_for_is_said_in_a_sentence(
    name: str, options: Keywords, sentence: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        DIALECTS[name].from_polyattn(Q, K, K, **options)
    assert sentence in str(error.value)


def test_float64_is_refused_where_the_softmax_would_be_in_float32() -> None:
    q, k = Q.astype(np.float64), K.astype(np.float64)
    with pytest.raises(
        ValueError,
        match=r"has words for \(float64 input: softmax in float32\), got float64 arrays; cast them",
    ):
        DIALECTS["jax.nn"].from_polyattn(q, k, k)
    assert DIALECTS["jax.nn"].from_polyattn(q, k, k, repair=False)["query"].dtype == np.float64
    assert DIALECTS["torch.sdpa"].from_polyattn(q, k, k)["enable_gqa"] is True


@dataclass(frozen=True, eq=False)
class Tomorrow(Problem):
    """A problem with an argument that no dialect has heard of."""

    sparsity: float = 0.0


def tomorrow(**fields: Any) -> Problem:
    today = pose("test", ITEM, ITEM_KEYS, ITEM_KEYS)
    return Tomorrow(**{f.name: getattr(today, f.name) for f in dataclasses.fields(today)}, **fields)


@pytest.mark.parametrize("name", list(DIALECTS))
def test_an_argument_that_is_new_is_refused_by_every_dialect_until_it_is_carried(name: str) -> None:
    d = DIALECTS[name]
    plain = express(d, tomorrow())
    assert set(plain) == set(express(d, pose("test", ITEM, ITEM_KEYS, ITEM_KEYS)))
    with pytest.raises(ValueError) as error:
        express(d, tomorrow(sparsity=0.5))
    assert str(error.value).startswith(
        f"{d.who('from_polyattn')}: expected what {name} has words for (it has"
    )
    assert str(error.value).endswith("), got the argument sparsity; leave it out, or call polyattn.attention")


def test_a_dialect_of_one_item_refuses_a_batch() -> None:
    with pytest.raises(ValueError, match="expected one batch item, got 2; call it item by item"):
        DIALECTS["flashinfer"].from_polyattn(Q, K, K)
    assert DIALECTS["flashinfer"].from_polyattn(ITEM, ITEM_KEYS, ITEM_KEYS)["q"].shape == (3, 4, 8)


def test_every_feature_of_a_problem_is_in_the_table_or_refused() -> None:
    assert set(FEATURES) - set(CARRIED) == {"origin", "lse", "weights", "scores", "max_scores"}
    for d in DIALECTS.values():
        for feature in set(CARRIED) - d.carries:
            carried = CARRIED[feature]
            assert not any(d.has(way) for way in carried.ways)
            assert carried.instead


@pytest.mark.parametrize("name", ["torch.sdpa", "torch.flex", "onnx.25", "jax.nn"])
@pytest.mark.parametrize(
    "places",
    [
        {"query_positions": [4, 0, 2], "key_positions": [2, 0, 1, 3, -1]},
        {"query_offset": 3, "key_offset": 1},
    ],
)
def test_positions_are_said_by_the_mask(name: str, places: Keywords) -> None:
    d = DIALECTS[name]
    array = library("torch.sdpa").array if name == "torch.flex" else lambda x: x
    rng = np.random.default_rng(4)
    q, k, v = (array(rng.normal(size=shape).astype(np.float32)) for shape in (Q.shape, K.shape, K.shape))
    places = {n: array(np.asarray(x)) if isinstance(x, list) else x for n, x in places.items()}
    options = {"is_causal": True, "score_mod": mods.alibi(4), **places}
    theirs = d.attention(**d.from_polyattn(q, k, v, **options))
    meant = np.asarray(attention(q, k, v, **options))
    assert np.abs(np.asarray(d.result_of(theirs, 4)) - meant).max() <= bound(q, k, v, 0.36)
    plain = np.asarray(attention(q, k, v, is_causal=True, score_mod=mods.alibi(4), query_offset=0))
    assert np.abs(plain - meant).max() > bound(q, k, v, 0.36)
