"""Facts of modules of Flax (nnx, and linen bound to its variables) and of Equinox."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn.parity.components.facts.record import Facts, Number, floats
from polyattn.truth.spec import Floats

__all__ = ["equinox_facts", "linen_facts", "nnx_facts"]

_NORMS = {"LayerNorm": True, "RMSNorm": False}  # whether the mean is subtracted


def nnx_facts(module: Any) -> Facts:
    """Facts of an nnx.Module."""
    name = type(module).__name__

    def held(part: Any, array: str) -> Floats | None:
        x = getattr(part, array, None)
        return None if x is None or _value(x) is None else floats(_value(x))

    if name in ("Linear", "LinearGeneral", "Einsum"):
        return _linear(held(module, "kernel"), held(module, "bias")) if name == "Linear" else Facts("other")
    if name in _NORMS:
        plain = getattr(module, "reduction_axes", -1) in (-1, (-1,)) and getattr(
            module, "feature_axes", -1
        ) in (-1, (-1,))
        return _norm(held(module, "scale"), held(module, "bias"), module.epsilon, _NORMS[name], plain)
    if name == "Embed":
        table = held(module, "embedding")
        return Facts("other") if table is None else Facts("embedding", {"weight": table})
    if name == "MultiHeadAttention":
        parts = {
            ours: (held(p, "kernel"), held(p, "bias"))
            for ours, p in zip("qkvo", (module.query, module.key, module.value, module.out), strict=True)
        }
        norms = {
            ours: nnx_facts(n)
            for ours, n in (("q_norm", module.query_ln), ("k_norm", module.key_ln))
            if _value(n) is not None
        }
        return _attention(parts, norms)
    return Facts("other")


def linen_facts(module: Any) -> Facts:
    """Facts of a linen module bound to its variables; "other" without them."""
    params = dict(module.variables.get("params", {})) if module.scope is not None else {}
    name = type(module).__name__

    def held(name: str, of: Any = params) -> Floats | None:
        return floats(of[name]) if name in of else None

    if name == "Dense":
        return _linear(held("kernel"), held("bias"))
    if name in _NORMS and params:
        plain = module.reduction_axes in (-1, (-1,)) and module.feature_axes in (-1, (-1,))
        return _norm(held("scale"), held("bias"), module.epsilon, _NORMS[name], plain)
    if name == "Embed" and params:
        return Facts("embedding", {"weight": floats(params["embedding"])})
    if (
        name in ("MultiHeadAttention", "MultiHeadDotProductAttention", "SelfAttention")
        and {"query", "out"} <= params.keys()
    ):
        parts = {
            ours: (held("kernel", params[n]), held("bias", params[n]))
            for ours, n in zip("qkvo", ("query", "key", "value", "out"), strict=True)
        }
        norms = {
            ours: _norm(
                held("scale", params[n]), held("bias", params[n]), 1e-6, True, True
            )  # as linen makes them
            for ours, n in (("q_norm", "query_ln"), ("k_norm", "key_ln"))
            if n in params
        }
        return _attention(parts, norms)
    return Facts("other")


def equinox_facts(module: Any) -> Facts:
    """Facts of a module of Equinox."""
    name = type(module).__name__
    weight, bias = (getattr(module, n, None) for n in ("weight", "bias"))
    arrays = [None if a is None else floats(a) for a in (weight, bias)]
    if name == "Linear" and arrays[0] is not None and arrays[0].ndim == 2:
        return _linear(np.ascontiguousarray(arrays[0].T), arrays[1])
    if name in _NORMS:
        return _norm(arrays[0], arrays[1], module.eps, _NORMS[name], len(module.shape) == 1)
    if name == "Embedding" and arrays[0] is not None:
        return Facts("embedding", {"weight": arrays[0]})
    if name == "MultiheadAttention":
        maps = (module.query_proj, module.key_proj, module.value_proj, module.output_proj)
        told = {ours: equinox_facts(part) for ours, part in zip("qkvo", maps, strict=True)}
        if any(part.kind != "linear" for part in told.values()) or module.qk_size != module.vo_size:
            return Facts("other")
        found = {f"{ours}.{n}": x for ours, part in told.items() for n, x in part.arrays.items()}
        return Facts("attention", found, _heads(module.num_heads, module.num_heads, module.qk_size))
    return Facts("other")


def _value(x: Any) -> Any:
    """What a variable, or a static None, holds."""
    return getattr(x, "value", x) if type(x).__name__ in ("Data", "Static") else x


def _linear(kernel: Floats | None, bias: Floats | None) -> Facts:
    if kernel is None or kernel.ndim != 2:
        return Facts("other")
    return Facts("linear", {"weight": kernel} | ({} if bias is None else {"bias": bias}))


def _norm(weight: Floats | None, bias: Floats | None, eps: float, centred: bool, plain: bool) -> Facts:
    if not plain:
        return Facts("other")
    arrays = {n: a for n, a in (("weight", weight), ("bias", bias)) if a is not None}
    return Facts("norm", arrays, {"eps": float(eps), "subtracts_mean": centred, "weight_plus_one": False})


def _heads(heads: int, kv: int, width: int) -> dict[str, Number]:
    return {"heads": heads, "kv_heads": kv, "head_dim": width, "scale": width**-0.5}


def _attention(parts: dict[str, tuple[Floats | None, Floats | None]], norms: dict[str, Facts]) -> Facts:
    """From kernels (E, H, D) and (H, D, E)."""
    found, kernels = dict[str, Floats](), dict[str, Floats]()
    for name, (kernel, bias) in parts.items():
        if kernel is None or kernel.ndim != 3:
            return Facts("other")
        kernels[name] = kernel
        found[f"{name}.weight"] = (
            kernel.reshape(-1, kernel.shape[2]) if name == "o" else kernel.reshape(len(kernel), -1)
        )
        if bias is not None:
            found[f"{name}.bias"] = bias.ravel()
    _, heads, width = kernels["q"].shape
    numbers = _heads(heads, kernels["k"].shape[1], width)
    for ours, told in norms.items():
        found |= {f"{ours}.{n}": x for n, x in told.arrays.items()}
        numbers |= {f"qk_norm_{n}": x for n, x in told.numbers.items()}
    return Facts("attention", found, numbers)
