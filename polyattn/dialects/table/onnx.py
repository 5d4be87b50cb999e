"""Dialects of ONNX."""

from __future__ import annotations

from polyattn.dialects.questions import USUAL
from polyattn.dialects.record import claims
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

_ONNX_INPUTS = "Q: query, K: key, V: value, attn_mask: mask = None, past_key: past_key = None, past_value: past_value = None"
_ONNX_ATTRIBUTES = (
    "is_causal: causal = 0, kv_num_heads: kv_heads = None, q_num_heads: heads = None, "
    "qk_matmul_output_mode: free = 0, scale: scale = None, softcap: softcap = 0.0, softmax_precision: free = None"
)

DIALECTS = (
    Dialect(
        name="onnx.23",
        what="ONNX Attention, opset 23",
        package="onnx",
        version="1.23.2, reference implementation",
        signature=f"{_ONNX_INPUTS}, *, {_ONNX_ATTRIBUTES}",
        answers=_ONNX,
    ),
    Dialect(
        name="onnx.24",
        what="ONNX Attention, opset 24",
        package="onnx",
        version="1.23.2, reference implementation",
        signature=f"{_ONNX_INPUTS}, nonpad_kv_seqlen: nonpad = None, *, {_ONNX_ATTRIBUTES}",
        answers=_ONNX,
    ),
    Dialect(
        name="onnx.25",
        what="ONNX Attention, opset 25",
        package="onnx",
        version="1.23.2, reference implementation",
        signature=f"{_ONNX_INPUTS}, nonpad_kv_seqlen: nonpad = None, *, {_ONNX_ATTRIBUTES}, "
        "left_window_size: left = -1, right_window_size: right = -1",
        answers=claims(_ONNX, tested={"window": "neighbours"}),
    ),
)
