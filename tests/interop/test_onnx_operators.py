"""The operators of `polyattn.onnx` are those of onnx: every node case of the installed package, on every library."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import onnx.defs
import pytest
import torch
from shared.onnx_nodes import BOTH, Node, computed, etas, judge, nodes
from shared.running import LIBRARIES, Floats, bench_of, normal

from polyattn import onnx as ops
from polyattn.arrays import backend_of
from polyattn.parity import ACCEPTANCE
from polyattn.rotary import Rotary, angles
from polyattn.testing import StrictBench
from polyattn.truth.definition import Judged
from polyattn.truth.measure import eta

NODES = {node.name: node for node in nodes()}

#: These are in float16 or bfloat16, and array-api-strict has the dtypes of the standard and no others.
NOT_ON_STRICT = {
    "test_attention_24_qk_matmul_output_mode3_softmax_precision",
    "test_attention_3d_causal_bf16",
    "test_attention_4d_attn_mask_causal_bf16",
    "test_attention_4d_causal_bf16",
    "test_attention_4d_causal_fp16",
    "test_attention_4d_causal_padded_kv_bf16",
    "test_attention_4d_fp16",
    "test_attention_4d_gqa_causal_nonpad_decode_fp16",
    "test_attention_4d_gqa_with_past_and_present_fp16",
    "test_attention_4d_padded_kv_bf16",
    "test_attention_local_window_ext_cache_float16_mask",
    "test_linear_attention_fp16",
}

#: What a case of onnx names but does not test: its result is the same without.
UNTESTED = {
    ("test_attention_4d_attn_mask_bool", "attn_mask"): "all True",
    ("test_attention_4d_attn_mask_bool_4d", "attn_mask"): "all True",
    ("test_attention_local_window_rank1_boolean_mask", "attn_mask"): "hides what the window hides",
    ("test_attention_4d_gqa_causal_nonpad_decode", "is_causal"): "one query, at the end",
    ("test_attention_4d_gqa_causal_nonpad_decode_fp16", "is_causal"): "one query, at the end",
    ("test_attention_causal_boolmask_nan_robustness", "is_causal"): "the mask hides more",
    ("test_attention_24_qk_matmul_output_mode3_softmax_precision", "softmax_precision"): "ours anyway",
    ("test_attention_local_window_gqa_rank4_mask", "softmax_precision"): "onnx rounds to float32 again",
    ("test_attention_local_window_default", "left_window_size"): "the default",
    ("test_attention_local_window_default", "right_window_size"): "the default",
    ("test_attention_local_window_ext_cache_float16_mask", "left_window_size"): "all values are 1",
    ("test_attention_local_window_ext_cache_float16_mask", "is_causal"): "all values are 1",
    ("test_attention_local_window_ext_cache_float16_mask", "attn_mask"): "all values are 1",
    ("test_attention_local_window_ext_cache_float16_mask", "nonpad_kv_seqlen"): "all values are 1",
    ("test_linear_attention_no_past_explicit_zeros", "past_state"): "zeros",
    ("test_tensorscatter", "mode"): "the default",
}


def converter(library: str) -> Callable[[Floats], Any]:
    like = bench_of(library).array(np.zeros(1), "float32")
    return lambda x: backend_of(like).from_numpy(x, like)


def numpied(x: Any) -> Floats:
    values: Floats = backend_of(x).to_numpy(x)
    return values


# the node cases of onnx


def test_the_cases_are_all_there() -> None:
    assert Counter(node.operator for node in NODES.values()) == {
        "Attention": 93,
        "RotaryEmbedding": 8,
        "LinearAttention": 14,
        "TensorScatter": 3,
    }
    assert {node.opset for node in NODES.values()} == {23, 24, 25, 27}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_node_gives_what_onnx_expects(library: str, name: str) -> None:
    node = NODES[name]
    if library == "strict" and name in NOT_ON_STRICT:
        with pytest.raises(TypeError):
            converter(library)(node.inputs[0])
        return
    with jax.enable_x64(node.asks_for_float64):
        results = [numpied(x) for x in computed(node, converter(library))]
    for result, expected in zip(results, node.expected, strict=True):
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert etas(node, results)[1] <= BOTH


def test_what_cannot_run_on_strict_is_what_is_in_half_precision() -> None:
    assert {name for name, node in NODES.items() if node.is_half} == NOT_ON_STRICT
    assert not hasattr(array_api_strict, "float16")
    assert not hasattr(array_api_strict, "bfloat16")


def test_the_operators_stay_on_their_device_and_within_the_standard() -> None:
    bench = StrictBench("device1")
    with array_api_strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
        for name in NODES.keys() - NOT_ON_STRICT:
            results = computed(NODES[name], bench.array)
            assert {x.device for x in results} == {bench.device}
            assert etas(NODES[name], [bench.numpy(x) for x in results])[1] <= BOTH


def test_the_bound_notices_whatever_a_node_is_robbed_of() -> None:
    unnoticed, noticed = set(), 0
    for name, node in NODES.items():
        names = ops.SIGNATURES[node.operator][-1].inputs
        robbed = {
            attribute: replace(node, attributes={k: x for k, x in node.attributes.items() if k != attribute})
            for attribute in set(node.attributes) - {"q_num_heads", "kv_num_heads", "num_heads"}
        }
        for i in range(3, len(node.inputs)):
            if node.inputs[i] is not None:
                robbed[names[i]] = replace(
                    node, inputs=tuple(None if i == k else x for k, x in enumerate(node.inputs))
                )
        for what, changed in robbed.items():
            try:
                results = computed(changed, lambda x: x)
            except ValueError:  # the node makes no sense without
                continue
            same_shapes = [x.shape for x in results] == [x.shape for x in node.expected]
            if same_shapes and etas(node, results)[1] <= BOTH:
                unnoticed.add((name, what))
            else:
                noticed += 1
    assert unnoticed == set(UNTESTED)
    assert noticed > 100


# signatures


@pytest.mark.parametrize("operator", ops.OPERATORS)
def test_signatures_are_those_of_the_schemas(operator: str) -> None:
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", operator)]
    schemas.sort(key=lambda schema: schema.since_version)
    kinds = {
        onnx.defs.OpSchema.AttrType.INT: int,
        onnx.defs.OpSchema.AttrType.FLOAT: float,
        onnx.defs.OpSchema.AttrType.STRING: str,
    }

    def default(attribute: Any) -> Any:
        if not attribute.default_value.name:
            return None
        value = onnx.helper.get_attribute_value(attribute.default_value)
        return value.decode() if isinstance(value, bytes) else value

    assert ops.SIGNATURES[operator] == tuple(
        ops.Signature(
            since=schema.since_version,
            inputs=tuple(x.name for x in schema.inputs),
            required=schema.min_input,
            outputs=tuple(x.name for x in schema.outputs),
            attributes={
                name: ops.Attribute(kinds[a.type], default(a), a.required)
                for name, a in schema.attributes.items()
            },
        )
        for schema in schemas
    )
    assert onnx.defs.onnx_opset_version() == ops.NEWEST


def test_importing_the_operators_imports_neither_onnx_nor_a_framework() -> None:
    code = "import sys, polyattn.onnx; print({'numpy', 'jax', 'torch', 'onnx'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# Attention, beyond the cases

Q, K, V = normal(2, 4, 3, 8), normal(2, 2, 5, 8, seed=1), normal(2, 2, 5, 6, seed=2)


def true(*inputs: Any, opset: int = 25, output: str = "Y", **attributes: Any) -> Judged:
    """What Attention should give, by the reading of the operators that judges the cases."""
    return judge(Node("", "Attention", opset, inputs, attributes, (output,), (), None))[0]


def test_a_cache_of_the_operator_and_one_of_the_caller_give_the_same() -> None:
    """Three tokens, then two, then one: with past and present, and with TensorScatter and a number of keys."""
    q, k, v = normal(2, 4, 6, 8), normal(2, 2, 6, 8, seed=1), normal(2, 2, 6, 4, seed=2)
    whole = true(q, k, v, is_causal=1)
    past_key, past_value = k[:, :, :0], v[:, :, :0]
    key_cache, value_cache = np.zeros((2, 2, 9, 8)), np.zeros((2, 2, 9, 4))
    for start, stop in ((0, 3), (3, 5), (5, 6)):
        q_new, k_new, v_new = (x[:, :, start:stop] for x in (q, k, v))
        inner = ops.attention(q_new, k_new, v_new, None, past_key, past_value, is_causal=1, opset=23)
        past_key, past_value = inner.present_key, inner.present_value
        at = np.array([start, start])
        key_cache = ops.tensor_scatter(key_cache, k_new, at)
        value_cache = ops.tensor_scatter(value_cache, v_new, at)
        count = at + (stop - start)
        outer = ops.attention(q_new, key_cache, value_cache, nonpad_kv_seqlen=count, is_causal=1, opset=24)
        assert (outer.present_key, outer.present_value) == (None, None)
        rows = whole.moved(itemgetter(np.s_[:, :, start:stop]))
        assert eta(inner.Y, rows, "float64") <= ACCEPTANCE
        assert eta(outer.Y, rows, "float64") <= ACCEPTANCE


def test_a_short_mask_hides_what_it_does_not_reach() -> None:
    short = normal(3, 4)
    padded = np.concatenate((short, np.full((3, 1), -np.inf)), axis=1)
    np.testing.assert_array_equal(ops.attention(Q, K, V, short).Y, ops.attention(Q, K, V, padded).Y)
    bools = short > 0
    padded = np.concatenate((bools, np.zeros((3, 1), bool)), axis=1)
    np.testing.assert_array_equal(ops.attention(Q, K, V, bools).Y, ops.attention(Q, K, V, padded).Y)


def test_a_mask_of_one_column_is_for_all_keys_in_opset_23_and_for_the_first_key_from_24_on() -> None:
    column = np.array([[True], [False], [True]])
    old, new = (ops.attention(Q, K, V, column, opset=opset).Y for opset in (23, 24))
    np.testing.assert_array_equal(old, ops.attention(Q, K, V, np.broadcast_to(column, (3, 5))).Y)
    np.testing.assert_array_equal(new[:, :, 0], np.repeat(V[:, :, 0], 2, axis=1))
    assert not np.any(new[:, :, 1])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_numbers_in_a_mask_are_added_whatever_their_dtype(dtype: Any) -> None:
    mask = np.arange(15).reshape(3, 5) % 4
    added = ops.attention(Q, K, V, mask.astype(dtype)).Y
    np.testing.assert_array_equal(added, ops.attention(Q, K, V, mask.astype(np.float64)).Y)
    assert np.abs(added - ops.attention(Q, K, V, mask != 0).Y).max() > 0.1


def test_values_may_have_another_dtype_than_queries() -> None:
    q, k = (x.astype(np.float16) for x in (Q, K))
    out = ops.attention(q, k, V.astype(np.float32), outputs=4)
    assert [x.dtype.name for x in out] == ["float16", "float16", "float32", "float16"]
    wide = ops.attention(q.astype(np.float32), k.astype(np.float32), V.astype(np.float32)).Y
    np.testing.assert_array_equal(out.Y, wide.astype(np.float16))


def test_double_softmax_precision_is_float64_throughout() -> None:
    q, k, v = (x.astype(np.float32) for x in (Q, K, V))
    out = ops.attention(q, k, v, softmax_precision=11).Y
    np.testing.assert_array_equal(out, ops.attention(Q, K, V).Y.astype(np.float32))
    assert np.abs(out - ops.attention(q, k, v).Y).max() > 0
    for narrower in (1, 10, 16):
        np.testing.assert_array_equal(
            ops.attention(q, k, v, softmax_precision=narrower).Y, ops.attention(q, k, v).Y
        )


def test_scores_before_the_mask_show_hidden_keys_too() -> None:
    mask = np.zeros((3, 5), bool)
    raw, capped, masked, weights = (
        ops.attention(Q, K, V, mask, outputs=4, qk_matmul_output_mode=mode, softcap=0.5).qk_matmul_output
        for mode in range(4)
    )
    assert eta(raw, true(Q, K, V, mask, output="qk_matmul_output"), "float64") <= ACCEPTANCE
    np.testing.assert_array_equal(capped, np.tanh(raw / 0.5) * 0.5)
    assert np.all(masked == -np.inf)
    assert not np.any(weights)


def test_the_operators_run_under_a_compiler_and_are_differentiable() -> None:
    count, mask, ids = np.array([3, 5], np.int32), normal(3, 5), np.zeros((2, 3), np.int32)

    def loss(q: Any, k: Any, v: Any, count: Any, mask: Any) -> Any:
        cache = ops.tensor_scatter(k, k[:, :, :1], count - 1)
        table = jnp.zeros((7, 4)), jnp.ones((7, 4))  # of quarter turns
        turned = ops.rotary_embedding(q, *table, jnp.asarray(ids))
        out = ops.attention(turned, cache, v, mask, nonpad_kv_seqlen=count, is_causal=1)
        return out.Y.sum(), out.Y

    q, k, v, bias = (jnp.asarray(x, jnp.float32) for x in (Q, K, V, mask))
    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(q, k, v, jnp.asarray(count), bias)
    assert np.isfinite(gradient).all()
    assert np.any(gradient)
    turned, cache = np.concatenate((-Q[..., 4:], Q[..., :4]), axis=-1), K.copy()
    cache[[0, 1], :, count - 1] = K[:, :, 0]
    known = true(turned, cache, V, mask, None, None, count, is_causal=1)
    assert eta(np.asarray(out, np.float64), known, "float32") <= ACCEPTANCE


# RotaryEmbedding and TensorScatter, beyond the cases


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding_with_the_tables_of_rotary_is_rotary(interleaved: int) -> None:
    positions = np.array([[0, 3, 1], [5, 5, 2]])
    table = angles(np.arange(6)[:, None], Rotary().frequencies(4), np.float64)
    got = ops.rotary_embedding(
        Q, np.cos(table), np.sin(table), positions, rotary_embedding_dim=4, interleaved=interleaved
    )
    np.testing.assert_array_equal(got, Rotary(width=4, interleaved=interleaved == 1)(Q, positions))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter_writes_each_batch_item_where_it_says(library: str, mode: str) -> None:
    rng = np.random.default_rng(0)
    starts = np.array([0, 2, 1] if mode == "linear" else [-1, 7, 2])
    for axis in (1, 2, -1):
        shape, new = [3, 4, 4, 4], [3, 4, 4, 4]
        new[axis] = 2
        cache, update = rng.integers(0, 99, shape), rng.integers(100, 199, new)
        expected = np.moveaxis(cache.copy(), axis, 1)
        for b in range(3):
            for i in range(2):
                expected[b, (starts[b] + i) % 4] = np.moveaxis(update, axis, 1)[b, i]
        convert = converter(library)
        given = convert(cache)
        got = ops.tensor_scatter(given, convert(update), convert(starts), axis=axis, mode=mode)
        np.testing.assert_array_equal(np.moveaxis(numpied(got), axis, 1), expected)
        np.testing.assert_array_equal(numpied(given), cache)


def test_tensor_scatter_holds_any_dtype() -> None:
    for dtype in (bool, np.uint8, np.complex64, np.float16):
        cache, update = np.zeros((1, 3, 1), dtype), np.ones((1, 1, 1), dtype)
        got = ops.tensor_scatter(cache, update, np.array([1]))
        assert got.dtype == dtype
        assert got.ravel().tolist() == [0, 1, 0]
    empty = np.zeros((1, 3, 1))
    np.testing.assert_array_equal(ops.tensor_scatter(empty, empty[:, :0]), empty)


# refusals

PACKED = np.zeros((2, 3, 8))
ONES = np.ones((2, 3, 4))
LENGTHS = np.array([3, 5])
BITS = np.ones((3, 4), bool)
ATT, ROT, LIN, SCA = ops.attention, ops.rotary_embedding, ops.linear_attention, ops.tensor_scatter

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unknown attribute": (lambda: ATT(Q, K, V, causal=1), TypeError, "attention: expected attributes of Attention of opset 28 (is_causal, kv_num_heads, left_window_size, q_num_heads, qk_matmul_output_mode, right_window_size, scale, softcap, softmax_precision), got 'causal'; no version of it has that"),
    "attribute of a later opset": (lambda: ATT(Q, K, V, opset=24, left_window_size=1), TypeError, "attention: expected attributes of Attention of opset 24 (is_causal, kv_num_heads, q_num_heads, qk_matmul_output_mode, scale, softcap, softmax_precision), got 'left_window_size'; it came with opset 25"),
    "input of a later opset": (lambda: ATT(Q, K, V, nonpad_kv_seqlen=LENGTHS, opset=23), ValueError, "attention: expected only inputs of Attention of opset 23 (Q, K, V, attn_mask, past_key, past_value), got nonpad_kv_seqlen; it came with opset 24"),
    "opset without Attention": (lambda: ATT(Q, K, V, opset=22), ValueError, "attention: expected an opset from 23, where Attention came, to 28, the newest that is known here, got 22"),
    "opset without TensorScatter": (lambda: SCA(Q, Q, opset=23), ValueError, "tensor_scatter: expected an opset from 24, where TensorScatter came, to 28, the newest that is known here, got 23"),
    "opset without LinearAttention": (lambda: LIN(PACKED, PACKED, PACKED, opset=26, q_num_heads=1, kv_num_heads=1), ValueError, "linear_attention: expected an opset from 27"),
    "unknown opset": (lambda: ROT(Q, ONES, ONES, opset=29), ValueError, "rotary_embedding: expected an opset from 23, where RotaryEmbedding came, to 28, the newest that is known here, got 29"),
    "attribute of the wrong kind": (lambda: ATT(Q, K, V, is_causal="yes"), TypeError, "attention: expected is_causal to be a Python int, got 'yes'"),
    "no array": (lambda: ATT(Q, K, V, 1.0), TypeError, "attention: expected attn_mask to be an array, got float"),
    "missing input": (lambda: ATT(Q, None, V), TypeError, "attention: expected the input K, got None; Attention cannot do without it"),
    "two libraries": (lambda: ATT(Q, torch.tensor(K), V), TypeError, "attention: expected all inputs in one library, got numpy and, for K, torch"),
    "two dtypes": (lambda: ATT(Q, K.astype(np.float32), V), TypeError, "attention: expected K of the dtype of Q, float64, got float32"),
    "integers": (lambda: ATT(Q.astype(int), K.astype(int), V), TypeError, "attention: expected Q of a real floating dtype, got int64"),
    "mask shorter than the keys": (lambda: ATT(Q, K, V, BITS, opset=23), ValueError, "attention: expected attn_mask to broadcast to the scores (B, Hq, L, P + S) = (2, 4, 3, 5), got shape (3, 4); from opset 24 on it may be shorter than the keys"),
    "mask shorter than the keys that are there": (lambda: ATT(Q, K, V, BITS, nonpad_kv_seqlen=LENGTHS), ValueError, "attention: expected attn_mask to broadcast to the scores (B, Hq, L, P + S) = (2, 4, 3, 5), got shape (3, 4); it must reach all 5 keys that nonpad_kv_seqlen says are there"),
    "mask longer than the keys": (lambda: ATT(Q, K, V, np.ones((3, 6))), ValueError, "attention: expected attn_mask to broadcast to the scores (B, Hq, L, P + S) = (2, 4, 3, 5), got shape (3, 6); it has more columns than there are keys"),
    "mask of rank 3 over the batch": (lambda: ATT(Q, K, V, np.ones((2, 3, 5))), ValueError, "attention: expected attn_mask to broadcast to the scores (B, Hq, L, P + S) = (2, 4, 3, 5), got shape (2, 3, 5); axes are counted from the last one: rank 3 is (heads, queries, keys)"),
    "mask of rank 0": (lambda: ATT(Q, K, V, np.array(1.0)), ValueError, "attention: expected attn_mask to broadcast"),
    "complex mask": (lambda: ATT(Q, K, V, np.ones((3, 5), complex)), TypeError, "attention: expected attn_mask of bools or real numbers, got complex128"),
    "rank 2": (lambda: ATT(Q[0, 0], K[0, 0], V[0, 0]), ValueError, "attention: expected Q, K and V all of rank 4 (B, H, L, D), or all of rank 3 (B, L, H * D), got (3, 8), (5, 8), (5, 6)"),
    "rank 3 beside rank 4": (lambda: ATT(PACKED, K, V), ValueError, "attention: expected Q, K and V all of rank 4"),
    "rank 3 without heads": (lambda: ATT(PACKED, PACKED, PACKED), ValueError, "attention: expected a number of heads that divides 8, the last axis of Q, which has rank 3, got None"),
    "heads that do not divide": (lambda: ATT(PACKED, PACKED, PACKED, q_num_heads=4, kv_num_heads=3), ValueError, "attention: expected a number of heads that divides 8, the last axis of K, which has rank 3, got 3"),
    "heads with rank 4": (lambda: ATT(Q, K, V, q_num_heads=4), ValueError, "attention: expected no q_num_heads with inputs of rank 4, which have 4 heads there, got 4"),
    "other heads with rank 4": (lambda: ATT(Q, K, V, kv_num_heads=4, opset=23), ValueError, "attention: expected no kv_num_heads with inputs of rank 4, which have 2 heads there, got 4"),
    "half a past": (lambda: ATT(Q, K, V, None, K), ValueError, "attention: expected past_key and past_value together and without nonpad_kv_seqlen, got past_key"),
    "heads": (lambda: ATT(Q, K[:, [0, 1, 1]], V[:, [0, 1, 1]]), ValueError, "attention: expected a number of query heads that is a multiple of the number of key heads, got query (2, 4, 3, 8), key (2, 3, 5, 8)"),
    "two caches": (lambda: ATT(Q, K, V, None, K, V, LENGTHS), ValueError, "attention: expected past_key and past_value together and without nonpad_kv_seqlen, got past_key, past_value, nonpad_kv_seqlen"),
    "past of other heads": (lambda: ATT(Q, K, V, None, Q, V), ValueError, "attention: expected past_key of shape (2, 2, P, 8), got (2, 4, 3, 8)"),
    "lengths": (lambda: ATT(Q, K, V, nonpad_kv_seqlen=LENGTHS[:1]), ValueError, "attention: expected nonpad_kv_seqlen of integers and of shape (2,), a number of keys per batch item, got int64 of shape (1,)"),
    "more keys than there are": (lambda: ATT(Q, K, V, nonpad_kv_seqlen=LENGTHS + 1), ValueError, "attention: expected nonpad_kv_seqlen from 0 to 5, the number of keys, got [4, 6]"),
    "mode": (lambda: ATT(Q, K, V, qk_matmul_output_mode=4), ValueError, "attention: expected qk_matmul_output_mode 0, 1, 2 or 3, got 4"),
    "outputs": (lambda: ATT(Q, K, V, outputs=5), ValueError, "attention: expected 1 to 4 outputs, got 5"),
    "window": (lambda: ATT(Q, K, V, left_window_size=-2), ValueError, "attention: expected left_window_size of -1 or more, got -2; -1 leaves that side open"),
    "softmax_precision": (lambda: ATT(Q, K, V, softmax_precision=7), ValueError, "attention: expected softmax_precision of 1 (float32), 10 (float16), 11 (float64), 16 (bfloat16), got 7"),
    "softmax_precision that is not there": (lambda: ATT(*map(jnp.asarray, (Q, K, V)), softmax_precision=11), ValueError, "attention: expected a library with float64 for softmax_precision = 11 (float64), got jax without it"),
    "rank of X": (lambda: ROT(Q[0, 0], ONES, ONES), ValueError, "rotary_embedding: expected X of rank 4 (B, H, L, D) or 3 (B, L, H * D), got (3, 8)"),
    "num_heads": (lambda: ROT(PACKED, ONES, ONES), ValueError, "rotary_embedding: expected a number of heads that divides 8, the last axis of X, which has rank 3, got None"),
    "other num_heads": (lambda: ROT(Q, ONES, ONES, num_heads=3), ValueError, "rotary_embedding: expected no num_heads with X of rank 4, which has 4 heads, got 3"),
    "odd width": (lambda: ROT(Q, ONES, ONES, rotary_embedding_dim=5), ValueError, "rotary_embedding: expected an even rotary_embedding_dim of at most 8, the width of a head, got 5"),
    "table without positions": (lambda: ROT(Q, ONES[0], ONES[0]), ValueError, "rotary_embedding: expected cos_cache of shape (B, L, width/2) = (2, 3, 4), got (3, 4)"),
    "rows with positions": (lambda: ROT(Q, ONES, ONES, np.zeros((2, 3), int)), ValueError, "rotary_embedding: expected cos_cache of shape (positions, width/2) = (2, 4), got (2, 3, 4)"),
    "position_ids": (lambda: ROT(Q, ONES[0], ONES[0], np.zeros(3, int)), ValueError, "rotary_embedding: expected position_ids of integers and of shape (2, 3), got int64 of shape (3,)"),
    "positions beyond the table": (lambda: ROT(Q, ONES[0], ONES[0], np.full((2, 3), 3)), ValueError, "rotary_embedding: expected position_ids from 0 to 2, the last row of cos_cache, got 3 to 3"),
    "dtype of a table": (lambda: ROT(Q, ONES, ONES.astype(np.float32)), TypeError, "rotary_embedding: expected sin_cache of the dtype of X, float64, got float32"),
    "update_rule": (lambda: LIN(PACKED, PACKED, PACKED, q_num_heads=2, kv_num_heads=2, update_rule="retention"), ValueError, "linear_attention: expected update_rule to be one of linear, gated, delta, gated_delta, got 'retention'"),
    "no heads": (lambda: LIN(PACKED, PACKED, PACKED, update_rule="linear"), TypeError, "linear_attention: expected the attribute kv_num_heads, got none; it has no default"),
    "rule without its decay": (lambda: LIN(PACKED, PACKED, PACKED, q_num_heads=2, kv_num_heads=2), ValueError, "linear_attention: expected decay with update_rule 'gated_delta', got none"),
    "rule with a decay": (lambda: LIN(PACKED, PACKED, PACKED, None, PACKED, q_num_heads=2, kv_num_heads=2, update_rule="linear"), ValueError, "linear_attention: expected decay without update_rule 'linear', got it"),
    "rank of query": (lambda: LIN(Q, Q, Q, q_num_heads=4, kv_num_heads=4, update_rule="linear"), ValueError, "linear_attention: expected query of rank 3 (B, T, ...)"),
    "width of decay": (lambda: LIN(PACKED, PACKED, PACKED, None, PACKED[..., :3], q_num_heads=2, kv_num_heads=2, update_rule="gated"), ValueError, "linear_attention: expected decay with 2 in the last axis, one per head, or 8, one per entry of key, got 3"),
    "shape of past_state": (lambda: LIN(PACKED, PACKED, PACKED, Q, q_num_heads=2, kv_num_heads=2, update_rule="linear"), ValueError, "linear_attention: expected state of shape (2, 2, 4, 4), got (2, 4, 3, 8)"),
    "width of beta": (lambda: LIN(PACKED, PACKED, PACKED, beta=PACKED, q_num_heads=2, kv_num_heads=2, update_rule="delta"), ValueError, "linear_attention: expected beta with 2 in the last axis, one per head, or 1 for all, got 8"),
    "axis of the batch": (lambda: SCA(Q, Q, axis=0), ValueError, "tensor_scatter: expected an axis of past_cache, of shape (2, 4, 3, 8), other than the first, which is the batch, got 0"),
    "scatter mode": (lambda: SCA(Q, Q, mode="ring"), ValueError, "tensor_scatter: expected mode 'linear' or 'circular', got 'ring'"),
    "update too long": (lambda: SCA(Q, np.zeros((2, 4, 4, 8))), ValueError, "tensor_scatter: expected update of the shape of past_cache, (2, 4, 3, 8), with at most 3 at axis 2, got (2, 4, 4, 8)"),
    "update that does not fit": (lambda: SCA(Q, Q[:, :, :2], np.array([0, 2])), ValueError, "tensor_scatter: expected write_indices from 0 to 1, where 2 tokens fit into 3, got [0, 2]"),
    "write_indices": (lambda: SCA(Q, Q, np.zeros(3, int)), ValueError, "tensor_scatter: expected write_indices of integers and of shape (2,), got int64 of shape (3,)"),
    "dtype of update": (lambda: SCA(Q, Q.astype(int)), TypeError, "tensor_scatter: expected update of the dtype of past_cache, float64, got int64"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_in_a_sentence(what: str) -> None:
    call, kind, sentence = REFUSED[what]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(f"polyattn.onnx.{sentence}")


def test_what_attention_itself_refuses_stays_refused() -> None:
    with pytest.raises(ValueError, match="a number of query heads that is a multiple"):
        ops.attention(Q[:, :3], K, V)
