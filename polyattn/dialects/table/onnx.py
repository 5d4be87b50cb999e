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


DIALECTS = (
    _opset(23, _ONNX),
    _opset(24, _ONNX, _NONPAD),
    _opset(25, claims(_ONNX, tested={"window": "neighbours"}), _NONPAD, _SIDES),
)
