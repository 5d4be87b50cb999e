"""`diagnose`: planted defects are named, right outputs are not accused, and every sentence it can say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from shared.running import LIBRARIES, bench_of

from polyattn import attention, masks, mods
from polyattn.parity import Diagnosis, diagnose
from polyattn.rotary import Rotary

Floats = np.ndarray[Any, Any]
DTYPES = ("float32", "bfloat16")
RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(3, 2, 4, 20, 16))


def said(d: Diagnosis) -> str:
    """What it says, without the figures that depend on the machine."""
    text = re.sub(r"; fitted numbers beside \d+ of \d+ changes were not tried", "", str(d))
    return re.sub(r"\d+ explanations", "_ explanations", re.sub(r"eta (inf|[\d.e+-]*\d)", "eta _", text))


# sentences


def test_a_right_output_matches_the_contract() -> None:
    d = diagnose(attention(Q, K, V), Q, K, V)
    assert d.agrees
    assert (d.findings, d.alike, d.rounded, d.profile) == ((), (), None, None)
    assert said(d) == "matches the contract (as stated: eta _, accepted up to 4)"


def test_a_single_cause_is_a_sentence() -> None:
    d = diagnose(attention(Q, K, V, is_causal=True, scale=1.0), Q, K, V, is_causal=True)
    assert not d.agrees
    assert d.findings[0].settings.changes() == {"scale": "1"}
    assert said(d) == "matches scale = 1 (scores not divided): eta _; as stated: eta _"


def test_two_causes_are_joined() -> None:
    d = diagnose(attention(Q, K, V), Q, K, V, is_causal=True, scale=0.4)
    assert said(d) == (
        "matches scale = 1/sqrt(16) (the default, not the scale that was asked for) and causal mask ignored: eta _; "
        "as stated: eta _"
    )
    assert said(diagnose(attention(Q, K, V), Q, K, V, is_causal=True, scale=0.4, pairs=False)) == (
        "no known convention explains this (as stated: eta _; _ explanations tried)\n"
        "  wrong: all batch items; all heads; all rows, shrinking with the row"
    )


def test_causes_that_cannot_be_told_apart_stand_side_by_side() -> None:
    d = diagnose(attention(Q, K, V, scale=1 / 16), Q, K, V)
    assert [finding.settings.changes() for finding in d.alike] == [{"scale": "1/D"}]
    assert said(d) == (
        "matches scale 0.25 applied twice: eta _; as stated: eta _\n"
        "  or, the same on these inputs: scale = 1/16 (no square root)"
    )


def test_what_is_not_known_is_said_to_be_so() -> None:
    d = diagnose(attention(Q, K, V) * RNG.uniform(0.9, 1.1, size=Q.shape), Q, K, V)
    assert d.findings == ()
    assert d.tried > 300
    assert said(d) == (
        "no known convention explains this (as stated: eta _; _ explanations tried)\n"
        "  wrong: all batch items; all heads; all rows"
    )


def test_a_cause_that_holds_for_almost_all_rows_says_for_which_it_does_not() -> None:
    out = attention(Q, K, V, scale=1.0, is_causal=True)
    out[1, 2, 7:12] *= 1.001
    assert said(diagnose(out, Q, K, V, pairs=False, is_causal=True)) == (
        "matches scale = 1 (scores not divided): eta _; explains 155 of 160 rows; not: batch 1, head 2, rows 7-11; "
        "as stated: eta _"
    )
    out[1, 2, 7:12] = attention(Q, K, V)[1, 2, 7:12]
    assert said(diagnose(out, Q, K, V, pairs=False, is_causal=True)) == (
        "matches scale = 1 (scores not divided): eta _; explains 155 of 160 rows; not: batch 1, head 2, rows 7-11, "
        "where it is causal mask ignored (eta _); as stated: eta _"
    )
    out[:, :, :10] *= 1.001  # half of them is not almost all
    assert diagnose(out, Q, K, V, pairs=False, is_causal=True).findings == ()


def test_an_output_stored_in_16_bits_is_recognised() -> None:
    out = torch.tensor(attention(Q, K, V)).bfloat16().double()
    assert said(diagnose(out, Q, K, V)) == (
        "matches computed or stored in bfloat16: every number of the output is one of that: eta _; as stated: eta _"
    )
    d = diagnose(torch.tensor(attention(Q, K, V, scale=1.0)).half(), Q, K, V, dtype="float32")
    assert d.findings[0].settings.changes() == {"scale": "1", "precision": "float16 output"}
    assert said(d) == (
        "matches scale = 1 (scores not divided): eta _; as stated: eta _; the output holds float16 numbers"
    )


def test_products_in_bfloat16_are_recognised() -> None:
    def low(x: Floats) -> Floats:
        rounded: Floats = torch.tensor(x).bfloat16().double().numpy()
        return rounded

    s = low(Q) @ low(K).mT / 4
    w = np.exp(s - s.max(-1, keepdims=True))
    out = low(w / w.sum(-1, keepdims=True)) @ low(V)
    assert said(diagnose(out, Q, K, V)) == (
        "matches both matrix products in bfloat16: query, key, value and weights rounded: eta _; as stated: eta _"
    )


@pytest.mark.parametrize("length", [12, 40])
def test_dropout_left_on_is_recognised_and_its_rate_estimated(length: int) -> None:
    q, k, v = np.random.default_rng(1).normal(size=(3, 2, 4, length, 16))
    out = attention(q, k, v, dropout_rate=0.25, dropout_seed=3)
    (finding,) = diagnose(out, q, k, v).findings
    (sentence,) = finding.sentences
    rate = re.fullmatch(r"dropout of the weights left on \(rate about (0\.\d+)\)", sentence)
    assert rate is not None
    # Four standard deviations of the share of 2 * 4 * length^2 weights.
    assert abs(float(rate[1]) - 0.25) <= 0.005 + 4 * (0.25 * 0.75 / (8 * length**2)) ** 0.5


# every library, every layout


@pytest.mark.parametrize("library", LIBRARIES)
def test_arrays_of_every_library_are_understood(library: str) -> None:
    bench = bench_of(library)
    q, k, v, bias, sinks = (
        bench.array(x, "float32") for x in (Q, K, V, RNG.normal(size=(4, 20, 20)), np.ones(4))
    )
    mask = bench.array(RNG.random((2, 1, 20, 20)) < 0.7, "bool")
    meant = {"mask": masks.from_array(mask) & masks.window(4, 2), "bias": bias, "sinks": sinks}
    out = attention(q, k, v, **meant, score_mod=mods.softcap(2.0))
    assert diagnose(out, q, k, v, **meant, score_mod=mods.softcap(2.0)).agrees
    d = diagnose(attention(q, k, v, **meant), q, k, v, **meant, score_mod=mods.softcap(2.0))
    assert said(d) == "matches soft cap ignored: eta _; as stated: eta _"


def _heads_inside(x: Floats) -> Floats:
    return x.swapaxes(1, 2)


def _side_by_side(x: Floats) -> Floats:
    return x.swapaxes(1, 2).reshape(2, 20, 64)


@pytest.mark.parametrize(
    ("layout", "given"),
    [
        ("BHLD", lambda x: x),
        ("BHLD", _side_by_side),
        ("BLHD", _heads_inside),
        ("BLHD", _side_by_side),
    ],
)
def test_outputs_of_every_layout_are_understood(layout: str, given: Callable[[Floats], Floats]) -> None:
    q, k, v = (_heads_inside(x) if layout == "BLHD" else x for x in (Q, K, V))
    d = diagnose(given(attention(Q, K, V)), q, k, v, layout=layout)
    assert said(d) == "matches the contract (as stated: eta _, accepted up to 4)"
    assert not diagnose(given(attention(Q, K, V, is_causal=True)), q, k, v, layout=layout).agrees


def test_a_layout_that_was_mixed_up_is_named() -> None:
    wrong = attention(
        Q.reshape(2, 20, 4, 16), K.reshape(2, 20, 4, 16), V.reshape(2, 20, 4, 16), layout="BLHD"
    )
    d = diagnose(wrong.reshape(2, 4, 20, 16), Q, K, V)
    assert not d.agrees
    over_heads = attention(_heads_inside(Q), _heads_inside(K), _heads_inside(V))
    assert said(diagnose(_heads_inside(over_heads), Q, K, V)) == (
        "matches layout swapped: attention over the heads of a token instead of over tokens: eta _; as stated: eta _"
    )
    merged = attention(Q, K, V).reshape(2, 20, 64)
    assert said(diagnose(merged, Q, K, V)) == (
        "matches heads merged wrongly: (B, H, L, D) viewed as (B, L, H D) without a transpose: eta _; as stated: eta _"
    )


@pytest.mark.parametrize("rank", [2, 3])
def test_batch_and_heads_may_be_missing(rank: int) -> None:
    q, k, v = (x[(0,) * (4 - rank)] for x in (Q, K, V))
    assert diagnose(attention(q, k, v), q, k, v).agrees
    d = diagnose(attention(q, k, v, scale=1.0), q, k, v)
    assert said(d) == "matches scale = 1 (scores not divided): eta _; as stated: eta _"


def test_rotary_embedding_and_offset_are_part_of_what_was_meant() -> None:
    rotary = Rotary(interleaved=True)
    q = Q[:, :, :8]
    at, from_0 = np.arange(8) + 12, np.arange(8)
    meant: dict[str, Any] = {"query_offset": "end", "is_causal": True}
    right = attention(rotary(q, at), rotary(K, np.arange(20)), V, **meant)
    assert diagnose(right, q, K, V, rotary=rotary, **meant).agrees
    wrong = attention(rotary(q, from_0), rotary(K, np.arange(20)), V, **meant)
    assert said(diagnose(wrong, q, K, V, rotary=rotary, **meant)) == (
        "matches rotary positions of the queries start at 0 instead of query_offset: eta _; as stated: eta _"
    )
    assert said(diagnose(attention(q, K, V, is_causal=True, query_offset=0), q, K, V, **meant)) == (
        "matches causal mask aligned top-left (first query with first key): eta _; as stated: eta _"
    )


def test_conventions_of_real_libraries_are_named() -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (torch.tensor(x, dtype=torch.float32) for x in (Q[:, :, :12], K, V))
    out = sdpa(q, k, v, is_causal=True)
    assert said(diagnose(out, q, k, v, is_causal=True, query_offset="end")) == (
        "matches causal mask aligned top-left (first query with first key): eta _; as stated: eta _"
    )
    mask = torch.tensor(RNG.random((12, 20)) < 0.7)
    mask[3] = False
    assert diagnose(sdpa(q, k, v, attn_mask=mask), q, k, v, mask=mask).agrees
    assert said(diagnose(sdpa(q, k, v, attn_mask=mask.float()), q, k, v, mask=mask)) == (
        "matches mask added to the scores as 0 and 1, as a float mask is: eta _; as stated: eta _"
    )
    q, k, v = (jnp.asarray(x, jnp.float32).swapaxes(1, 2) for x in (Q[:, :, :12], K, V))
    out = jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(mask.numpy())[None, None])
    assert said(diagnose(out, q, k, v, mask=jnp.asarray(mask.numpy()), layout="BLHD")) == (
        "matches rows that see nothing get the mean of all values (finite mask constant): eta _; as stated: eta _"
    )
    # A window of one number means both sides there.
    out = jax.nn.dot_product_attention(q, k, v, local_window_size=2)
    assert said(diagnose(out, q, k, v, mask=masks.window(2, 0), query_offset=0, layout="BLHD")) == (
        "matches window applied on both sides: eta _; as stated: eta _"
    )


@pytest.mark.parametrize(
    ("meant", "hidden"),
    [
        ({"is_causal": True}, masks.causal()),
        ({"mask": masks.causal()}, masks.causal()),
        ({"mask": np.tril(np.ones((20, 20), bool))}, masks.causal()),
        ({"mask": masks.window(3, 2)}, masks.window(3, 2)),
        ({"is_causal": True, "mask": masks.window(3, None)}, masks.causal() & masks.window(3, None)),
    ],
)
def test_a_mask_is_found_inverted_or_added_however_it_was_said(meant: dict[str, Any], hidden: Any) -> None:
    inverted = attention(Q, K, V, mask=~hidden)
    assert said(diagnose(inverted, Q, K, V, **meant)) == (
        "matches mask polarity inverted: True was taken as 'ignore': eta _; as stated: eta _"
    )
    q, k, v = (torch.tensor(x, dtype=torch.float32) for x in (Q, K, V))
    as_float = torch.tensor(hidden.dense(20), dtype=torch.float32)
    added = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=as_float)
    assert said(diagnose(added, q, k, v, **meant)) == (
        "matches mask added to the scores as 0 and 1, as a float mask is: eta _; as stated: eta _"
    )


def test_a_mask_that_was_inverted_with_causality_is_told_from_one_without() -> None:
    mask = masks.from_array(RNG.random((20, 20)) < 0.7)
    whole = attention(Q, K, V, mask=~(mask & masks.causal()))
    assert said(diagnose(whole, Q, K, V, mask=mask, is_causal=True)) == (
        "matches polarity of the whole mask inverted, causality and window too: True was taken as 'ignore': "
        "eta _; as stated: eta _"
    )
    part = attention(Q, K, V, mask=~mask & masks.causal())
    assert said(diagnose(part, Q, K, V, mask=mask, is_causal=True)) == (
        "matches mask polarity inverted: True was taken as 'ignore': eta _; as stated: eta _"
    )


# outputs and arguments that are not as they should be


def test_rows_of_nan_are_diagnosed() -> None:
    mask = np.ones((20, 20), bool)
    mask[3] = False
    out = attention(Q, K, V, mask=mask)
    out[:, :, 3] = np.nan
    assert said(diagnose(out, Q, K, V, mask=mask)) == (
        "matches rows that see nothing are NaN: eta _; as stated: eta _; 128 of 2560 elements are NaN"
    )
    out = attention(Q, K, V, scale=1.0)
    out[0, 0, 0, :3] = np.nan
    assert said(diagnose(out, Q, K, V)) == (
        "matches scale = 1 (scores not divided): eta _; explains 159 of 160 rows; not: batch 0, head 0, row 0; as stated: "
        "eta _; 3 of 2560 elements are NaN"
    )
    out[0, 0, 0, :3] = np.inf
    assert str(diagnose(out, Q, K, V)).endswith("3 of 2560 elements are infinite")
    out = np.random.default_rng(1).normal(size=Q.shape)
    out[0, 0, 0, :3] = np.nan
    assert said(diagnose(out, Q, K, V, pairs=False)) == (
        "no known convention explains this (as stated: eta _; _ explanations tried); 3 of 2560 elements are NaN\n"
        "  wrong: all batch items; all heads; all rows"
    )


@pytest.mark.parametrize(
    ("changed", "kind", "sentence"),
    [
        (
            {"output": (Q, Q)},
            TypeError,
            "polyattn.parity.diagnose: expected output to be one array, got a tuple of 2; pass the one that holds the "
            "result of attention",
        ),
        (
            {"output": Q[:, :, :-1]},
            ValueError,
            "polyattn.parity.diagnose: expected output of shape (2, 4, 20, 16) or (2, 20, 64), got (2, 4, 19, 16); "
            "layout= says how heads and length lie",
        ),
        (
            {"output": Q.swapaxes(1, 2)},
            ValueError,
            "polyattn.parity.diagnose: expected output of shape (2, 4, 20, 16) or (2, 20, 64), got (2, 20, 4, 16); "
            "layout= says how heads and length lie",
        ),
        (
            {"output": np.ones(Q.shape, int)},
            TypeError,
            "polyattn.parity.diagnose: expected dtype among float64, float32, float16, bfloat16, got int64; pass dtype=",
        ),
        (
            {"dtype": "float8"},
            TypeError,
            "polyattn.parity.diagnose: expected dtype among float64, float32, float16, bfloat16, got float8; pass dtype=",
        ),
        (
            {"query": np.ones(Q.shape, int)},
            TypeError,
            "polyattn.parity.diagnose: expected query to be a real floating array, got int64; convert it",
        ),
        (
            {"query": Q[0, 0, 0]},
            ValueError,
            "polyattn.parity.diagnose: expected arrays of rank 2 to 4, got shape (16,); add axes",
        ),
        (
            {"query": Q[None]},
            ValueError,
            "polyattn.parity.diagnose: expected arrays of rank 2 to 4, got shape (1, 2, 4, 20, 16); join the leading axes",
        ),
        (
            {"key": K[..., :8]},
            ValueError,
            "polyattn.parity.diagnose: expected query (B, Hq, L, D), key (B, Hkv, S, D) and value (B, Hkv, S, E), got "
            "(2, 4, 20, 16), (2, 4, 20, 8) and (2, 4, 20, 16) (in layout BHLD); do they belong together?",
        ),
        (
            {"key": K[:, :3], "value": V[:, :3]},
            ValueError,
            "polyattn.parity.diagnose: expected Hkv to divide Hq, got 3 and 4; are the axes in order?",
        ),
        (
            {"layout": "HBLD"},
            ValueError,
            "polyattn.parity.diagnose: expected layout 'BHLD' or 'BLHD', got 'HBLD'; transpose the arrays",
        ),
        (
            {"mask": np.ones((20, 20))},
            TypeError,
            "polyattn.parity.diagnose: expected a bool mask, True = may attend, got float64; additive values are bias=",
        ),
        (
            {"scale": np.ones(4)},
            ValueError,
            "polyattn.parity.diagnose: expected scale to be a number, got one per head; ask head by head",
        ),
        (
            {"query_offset": np.zeros(3, int)},
            ValueError,
            "polyattn.parity.diagnose: expected query_offset to be an integer, 2 of them or 'end', got int64 of shape (3,); "
            "give the position of query row 0",
        ),
        (
            {"bias": np.ones((20, 20), bool)},
            TypeError,
            "polyattn.parity.diagnose: expected bias to be a real floating array, got bool; convert it",
        ),
        (
            {"dropout_rate": 0.1, "casual": True},
            TypeError,
            "polyattn.parity.diagnose: expected arguments of polyattn.attention that have conventions, rotary or embed_dim, got "
            "casual, dropout_rate; leave them out",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    changed: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    given = {"output": attention(Q, K, V), "query": Q, "key": K, "value": V} | changed
    with pytest.raises(kind) as caught:
        diagnose(**given)
    assert str(caught.value) == sentence
