"""Facts of polyattn's own layers, with their params."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyattn import layers
from polyattn.parity.components.facts.record import Facts, Number, floats
from polyattn.parity.components.facts.torch_attention import rotary_numbers
from polyattn.truth.spec import Floats

__all__ = ["own_facts"]

#: Names of activations -> those of facts.
_FUNCTIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "silu": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
}


def own_facts(layer: Any, params: Mapping[str, Any]) -> Facts:
    """Facts of a `polyattn.layers.Layer`; its numbers alone where params are empty."""
    if isinstance(layer, layers.LayerNorm | layers.RMSNorm):
        numbers: dict[str, Number] = {
            "eps": float(layer.epsilon),
            "subtracts_mean": isinstance(layer, layers.LayerNorm),
            "weight_plus_one": False,
        }
        return Facts("norm", _named(params, scale="weight", bias="bias"), numbers)
    if isinstance(layer, layers.Linear):
        return Facts("linear", _named(params, w="weight", b="bias"))
    if isinstance(layer, layers.Embedding):
        return Facts("embedding", _named(params, table="weight"))
    if isinstance(layer, layers.MLP):
        names = {
            f"{ours}_{n}": f"{theirs}.{kind}"
            for n, theirs in (("in", "up"), ("gate", "gate"), ("out", "down"))
            for ours, kind in (("w", "weight"), ("b", "bias"))
        }
        known = _FUNCTIONS.get(layer.activation)
        return Facts("other", _named(params, **names), {"function": known}) if known else Facts("other")
    if isinstance(layer, layers.MultiHeadAttention):
        return _attention(layer, params)
    return Facts("other")


def _named(params: Mapping[str, Any], **names: str) -> dict[str, Floats]:
    return {theirs: floats(params[ours]) for ours, theirs in names.items() if ours in params}


def _attention(layer: layers.MultiHeadAttention, params: Mapping[str, Any]) -> Facts:
    plain = layer.output_gate is None and not layer.tied_kv and layer.v_norm is None and layer.own_kv
    if not plain or layer.normalizer != "softmax" or layer.score_mod is not None:
        return Facts("other")
    found = dict[str, Floats]()
    for name in "qkvo":
        if f"w_{name}" in params:
            w = floats(params[f"w_{name}"])
            found[f"{name}.weight"] = w.reshape(-1, w.shape[2]) if name == "o" else w.reshape(len(w), -1)
        if f"b_{name}" in params:
            found[f"{name}.bias"] = floats(params[f"b_{name}"]).ravel()
    if "sinks" in params:
        found["sinks"] = floats(params["sinks"])
    width = layer.width
    numbers: dict[str, Number] = {
        "heads": layer.num_heads,
        "kv_heads": layer.kv_heads,
        "head_dim": width,
        "scale": float(np.sqrt(1 / width)) if layer.scale is None else float(layer.scale),
        "is_causal": layer.is_causal,
    }
    if layer.mask is not None:
        if layer.window is None:
            return Facts("other")
        numbers["window"] = layer.window
    if layer.rotary is not None:
        numbers |= rotary_numbers(layer.rotary)
    for name, norm in layer.head_norms.items():
        told = own_facts(norm, params.get(name, {}))
        found |= {f"{name}.{n}": x for n, x in told.arrays.items()}
        numbers |= {f"qk_norm_{n}": x for n, x in told.numbers.items()}
    return Facts("attention", found, numbers)
