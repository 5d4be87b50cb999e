"""The operator LinearAttention."""

from __future__ import annotations

from typing import NamedTuple, TypedDict, Unpack

from polyattn.arrays import Array
from polyattn.linear import attend
from polyattn.onnx.heads import join_heads, split_heads
from polyattn.onnx.signatures import NEWEST, arguments

_WHO = "polyattn.onnx.linear_attention"
_RULES = ("linear", "gated", "delta", "gated_delta")


__all__ = ["LinearAttentionAttributes", "LinearAttentionOutputs", "linear_attention"]


class LinearAttentionAttributes(TypedDict, total=False):
    """The attributes of LinearAttention."""

    chunk_size: int  # how many tokens at once; does not change the result
    kv_num_heads: int
    q_num_heads: int
    scale: float  # 0 = 1/sqrt(width of a head of query)
    update_rule: str  # "linear", "gated", "delta" or "gated_delta"


class LinearAttentionOutputs(NamedTuple):
    """The outputs of LinearAttention in their order."""

    output: Array  # (B, T, Hq * E)
    present_state: Array  # (B, Hkv, D, E) of the dtype of past_state, or of query without it


def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    opset: int = NEWEST,
    **attributes: Unpack[LinearAttentionAttributes],
) -> LinearAttentionOutputs:
    """LinearAttention of ONNX, opset 27: `polyattn.linear.linear_attention` with heads side by side.

    query (B, T, Hq * D), key (B, T, Hkv * D), value (B, T, Hkv * E); past_state (B, Hkv, D, E), zeros where left
    out; decay, a logarithm, (B, T, Hkv * D) or (B, T, Hkv), and beta (B, T, Hkv) or (B, T, 1) where update_rule
    has them, and only there. q_num_heads and kv_num_heads must be given.

    Source: the definition of the operator, onnx 1.23.

    >>> import numpy as np
    >>> x = np.array([[[1.0], [2.0]]])
    >>> linear_attention(x, x, x, q_num_heads=1, kv_num_heads=1, update_rule="linear").output
    array([[[ 1.],
            [10.]]])
    """
    given = {
        "query": query,
        "key": key,
        "value": value,
        "past_state": past_state,
        "decay": decay,
        "beta": beta,
    }
    backend, a = arguments(_WHO, "LinearAttention", opset, given, attributes)
    xp, rule, heads = backend.xp, a["update_rule"], a["kv_num_heads"]
    if rule not in _RULES:
        raise ValueError(
            f"{_WHO}: expected update_rule to be one of {', '.join(_RULES)}, got {rule!r}; the operator has no other"
        )
    for name, x, uses in (("decay", decay, "gated" in rule), ("beta", beta, "delta" in rule)):
        if uses != (x is not None):
            raise ValueError(
                f"{_WHO}: expected {name} {'with' if uses else 'without'} update_rule {rule!r}, got "
                f"{'none' if x is None else 'it'}; "
                + ("the rule is made of it" if uses else "the rule would not use it")
            )
    shape = tuple(query.shape)
    for name, x in given.items():
        if x is not None and name != "past_state" and (x.ndim != 3 or tuple(x.shape[:2]) != shape[:2]):
            raise ValueError(
                f"{_WHO}: expected {name} of rank 3 (B, T, ...) with the B and T of query, {shape}, got "
                f"{tuple(x.shape)}; heads lie side by side in the last axis"
            )
    q = split_heads(_WHO, "query", backend, query, a["q_num_heads"])
    k = split_heads(_WHO, "key", backend, key, heads)
    v = split_heads(_WHO, "value", backend, value, heads)
    if decay is not None:
        if decay.shape[2] not in (heads, heads * k.shape[3]):
            raise ValueError(
                f"{_WHO}: expected decay with {heads} in the last axis, one per head, or {heads * k.shape[3]}, one per "
                f"entry of key, got {decay.shape[2]}; reshape it"
            )
        decay = split_heads(_WHO, "decay", backend, decay, heads)
    if beta is not None:
        if beta.shape[2] not in (heads, 1):
            raise ValueError(
                f"{_WHO}: expected beta with {heads} in the last axis, one per head, or 1 for all, got "
                f"{beta.shape[2]}; reshape it"
            )
        beta = xp.permute_dims(beta, (0, 2, 1))[..., None]
    arrays = {"query": q, "key": k, "value": v, "decay": decay, "beta": beta, "state": past_state}
    out, state = attend(_WHO, arrays, a["scale"] or None, a["chunk_size"])
    state_dtype = query.dtype if past_state is None else past_state.dtype
    return LinearAttentionOutputs(join_heads(backend, out), backend.astype(state, state_dtype))
