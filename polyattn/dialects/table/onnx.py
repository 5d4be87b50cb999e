"""Dialects of ONNX."""

from __future__ import annotations

from collections.abc import Mapping

from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import Claim, claims
from polyattn.dialects.translate import Dialect

__all__ = ["DIALECTS"]

_ONNX = claims(
    tested=USUAL
    | {
        "causal": "first rows, last with a cache",
        "softcap": "before the bias",
        "no keys": "refused",
    },
    notes={
        "softcap": "opset 23 was published with the cap after the mask, and corrected",
        "float64": "not with a scale: the attribute is a float32, and so is the root that is taken of it",
        "window": "an earlier draft of opset 25 counted the token itself",
    },
)

_INPUTS = "Q: query, K: key, V: value, attn_mask: mask = None, past_key: past_key = None, past_value: past_value = None"
_ATTRIBUTES = (
    "is_causal: causal = 0, kv_num_heads: kv_heads = None, q_num_heads: heads = None, "
    "qk_matmul_output_mode: free = 0, scale: scale = None, softcap: softcap = 0.0, softmax_precision: free = None"
)
_NONPAD = ", nonpad_kv_seqlen: nonpad = None"
_SIDES = ", left_window_size: left = -1, right_window_size: right = -1"


def _opset(opset: int, answers: Mapping[str, Claim], inputs: str = "", attributes: str = "") -> Dialect:
    return Dialect(
        name=f"onnx.{opset}",
        what=f"ONNX Attention, opset {opset}",
        package="onnx",
        version="1.23.2, reference implementation",
        signature=f"{_INPUTS}{inputs}, *, {_ATTRIBUTES}{attributes}",
        answers=answers,
    )


_GROUPED = claims(
    _ONNX,
    tested={
        "layout": "BL(HD)",
        "bool mask": "refused",
        "float mask": "refused",
        "empty row": "0 if causal",
        "empty bias row": "0 if causal",
        "bias": "bias",
        "causal": "last rows",
        "mask and causal": "no mask",
        "window": "with itself",
        "value width": "same",
        "sinks": "given",
        "float64": "no float64",
    },
    notes={
        "causal": "on unless causal=0; keys beyond the queries are a cache",
        "window": "of causal calls; earlier versions did not count the token itself",
        "sinks": "head_sink; smooth_softmax=1 is one of logit 0",
    },
)

DIALECTS = (
    _opset(23, _ONNX),
    _opset(24, _ONNX, _NONPAD),
    _opset(25, claims(_ONNX, tested={"window": "neighbours"}), _NONPAD, _SIDES),
    Dialect(
        name="onnxruntime.gqa",
        what="com.microsoft.GroupQueryAttention",
        package="onnxruntime",
        version="1.31.1, on the CPU",
        signature="query: query, key: key, value: value, past_key: past_key = None, past_value: past_value = None, "
        "seqlens_k: last_key = None, total_sequence_length: total = None, cos_cache: fixed = None, "
        "sin_cache: fixed = None, position_ids: free = None, attention_bias: bias = None, head_sink: sinks = None, "
        "k_scale: fixed = None, v_scale: fixed = None, q_norm_weight: fixed = None, k_norm_weight: fixed = None, *, "
        "num_heads: heads, kv_num_heads: kv_heads, causal: causal = 1, do_rotary: fixed = 0, "
        "k_quant_type: fixed = 'NONE', kv_cache_bit_width: free = 0, local_window_size: window = -1, "
        "qk_norm_epsilon: free = 0.000001, qk_output: free = 0, rotary_interleaved: free = 0, scale: scale = None, "
        "sliding_window_cache: fixed = 0, smooth_softmax: zero_sink = 0, softcap: softcap = 0.0, "
        "v_quant_type: fixed = 'NONE'",
        caches=True,
        answers=_GROUPED,
        notes=(
            "seqlens_k is the number of keys less one; total_sequence_length the largest number of keys.",
            "Widths must be multiples of 8, those of values too.",
            "Several queries beside a cache are refused unless there is one batch item.",
            "present_key and present_value are not given back here.",
        ),
    ),
)
