"""The attention operators of ONNX on arrays of any library, by their own signatures.

    Y, present_key, present_value, _ = polyattn.onnx.attention(Q, K, V, is_causal=1, opset=24)

Inputs come in the order of the operator, None for one that is left out; attributes are keywords, with the
names and defaults of ONNX; `opset` chooses the version, as the opset of a model does. This is mathematics on
`polyattn.attention`, `polyattn.rotary` and `polyattn.linear`: it imports neither onnx nor an array library.
"""

from collections.abc import Callable, Mapping
from typing import Any

from polyattn.onnx._attention import AttentionOutputs, attention
from polyattn.onnx.graph import export
from polyattn.onnx.linear import LinearAttentionOutputs, linear_attention
from polyattn.onnx.rotary import rotary_embedding
from polyattn.onnx.scatter import tensor_scatter
from polyattn.onnx.signatures import NEWEST, SIGNATURES, Attribute, Signature

#: The operators by the names they have in a graph.
OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Attention": attention,
    "LinearAttention": linear_attention,
    "RotaryEmbedding": rotary_embedding,
    "TensorScatter": tensor_scatter,
}

__all__ = [
    "NEWEST",
    "OPERATORS",
    "SIGNATURES",
    "AttentionOutputs",
    "Attribute",
    "LinearAttentionOutputs",
    "Signature",
    "attention",
    "export",
    "linear_attention",
    "rotary_embedding",
    "tensor_scatter",
]
