"""Facts of layers of Keras, on whichever library it runs."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from polyattn.parity.components.facts.probing import function_of
from polyattn.parity.components.facts.record import Facts, Number
from polyattn.truth.spec import Floats

__all__ = ["keras_facts"]


def keras_facts(layer: Any) -> Facts:
    """Facts of a Keras layer; "other" before it is built."""
    name = type(layer).__name__
    if name == "Activation" or name in ("ReLU", "GELU", "SiLU"):
        found = function_of(lambda x: _numpy(layer.call(sys.modules["keras"].ops.convert_to_tensor(x))))
        return Facts("other") if found is None else Facts("activation", {}, {"function": found})
    if not getattr(layer, "built", False):
        return Facts("other")
    if name == "Dense":
        plain = function_of(lambda x: _numpy(layer.activation(sys.modules["keras"].ops.convert_to_tensor(x))))
        kernel = _numpy(layer.kernel)
        return (
            Facts("linear", _pair(kernel, layer.bias))
            if plain == "identity" and kernel.ndim == 2
            else Facts("other")
        )
    if name in ("LayerNormalization", "RMSNormalization"):
        return _norm(layer, name)
    if name == "Embedding":
        return Facts("embedding", {"weight": _numpy(layer.embeddings)})
    if name in ("MultiHeadAttention", "GroupedQueryAttention", "GroupQueryAttention"):
        return _attention(layer)
    return Facts("other")


def _numpy(x: Any) -> Floats:
    found: Floats = np.array(sys.modules["keras"].ops.convert_to_numpy(x))
    return found.astype(np.float32) if found.dtype.name in ("bfloat16", "float16") else found


def _pair(weight: Any, bias: Any) -> dict[str, Floats]:
    found = {"weight": weight if isinstance(weight, np.ndarray) else _numpy(weight)}
    return found if bias is None else found | {"bias": _numpy(bias).ravel()}


def _norm(layer: Any, name: str) -> Facts:
    rms = name == "RMSNormalization"
    axis = layer.axis if isinstance(layer.axis, int) else list(layer.axis)
    weight = layer.scale if rms else layer.gamma
    bias = None if rms else layer.beta
    arrays = {n: _numpy(a) for n, a in (("weight", weight), ("bias", bias)) if a is not None}
    rank = len(layer._build_shapes_dict["input_shape"]) if getattr(layer, "_build_shapes_dict", None) else 0
    last = axis in (-1, [-1]) or (rank and axis in (rank - 1, [rank - 1]))
    # LayerNormalization with rms_scaling divides by the root of a variance about the mean: neither of the two.
    if not last or getattr(layer, "rms_scaling", False):
        return Facts("other")
    return Facts(
        "norm", arrays, {"eps": float(layer.epsilon), "subtracts_mean": not rms, "weight_plus_one": False}
    )


def _attention(layer: Any) -> Facts:
    dense: dict[str, Any] = {
        n: getattr(layer, f"_{full}_dense", None)
        for n, full in zip("qkvo", ("query", "key", "value", "output"), strict=True)
    }
    gate = getattr(layer, "_use_gate", False) or getattr(layer, "use_gate", False)
    if gate or any(d is None for d in dense.values()):
        return Facts("other")
    found, kernels = dict[str, Floats](), {n: _numpy(d.kernel) for n, d in dense.items()}
    if any(k.ndim != 3 for k in kernels.values()):
        return Facts("other")
    for n, kernel in kernels.items():
        shape = (-1, kernel.shape[2]) if n == "o" else (len(kernel), -1)
        bias = getattr(dense[n], "bias", None)
        found |= {f"{n}.{k}": x for k, x in _pair(kernel.reshape(shape), bias).items()}
    heads, width, kv = kernels["q"].shape[1], kernels["q"].shape[2], kernels["k"].shape[1]
    numbers: dict[str, Number] = {"heads": heads, "kv_heads": kv, "head_dim": width, "scale": width**-0.5}
    window = getattr(layer, "_sliding_window", getattr(layer, "sliding_window", None))
    return Facts("attention", found, numbers | ({"window": window} if isinstance(window, int) else {}))
