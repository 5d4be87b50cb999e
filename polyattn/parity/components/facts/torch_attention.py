"""Facts of attention modules of PyTorch and transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn.parity.components.facts.record import Facts, Number, floats
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["attention_facts", "fused_parts", "rotary_numbers"]

_APART = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv")
_OUT = ("o_proj", "out_proj", "o", "c_proj", "out_lin", "dense", "wo", "to_out")

Read = Callable[[Any], Facts]


def attention_facts(module: Any, read: Read) -> Facts:
    """Facts of an attention module; "other" where its projections are not found. read: that of linear maps and norms."""
    if hasattr(module, "in_proj_weight") and hasattr(module, "out_proj"):
        return _of_torch(module)
    children = dict(module.named_children())
    numbers = _numbers(module)
    found = _apart(children, read)
    if found is None:
        found = _together(children, numbers, read)
    if found is None or "heads" not in numbers:
        return Facts("other")
    if (out := next((children[n] for n in _OUT if n in children), None)) is not None and (
        told := read(out)
    ).kind == "linear":
        found |= {f"o.{n}": x for n, x in told.arrays.items()}
    heads = int(numbers["heads"])
    width = int(numbers.setdefault("head_dim", found["q.weight"].shape[1] // heads))
    if found["q.weight"].shape[1] != heads * width or found["k.weight"].shape[1] % width:
        return Facts("other")  # a gate, a latent, or a query twice as wide: not this formula
    numbers["kv_heads"] = found["k.weight"].shape[1] // width
    numbers.setdefault("scale", width**-0.5)
    if not _norms(children, found, numbers, read):
        return Facts("other")
    _extras(module, children, found, numbers)
    return Facts("attention", found, numbers)


def _of_torch(module: Any) -> Facts:
    """torch.nn.MultiheadAttention."""
    if module.bias_k is not None or module.add_zero_attn:
        return Facts("other")
    if module.in_proj_weight is not None:
        weights = np.split(floats(module.in_proj_weight), 3)
    else:
        weights = [floats(getattr(module, f"{n}_proj_weight")) for n in "qkv"]
    arrays = {f"{n}.weight": np.ascontiguousarray(w.T) for n, w in zip("qkv", weights, strict=True)}
    if module.in_proj_bias is not None:
        arrays |= {
            f"{n}.bias": b for n, b in zip("qkv", np.split(floats(module.in_proj_bias), 3), strict=True)
        }
    arrays["o.weight"] = np.ascontiguousarray(floats(module.out_proj.weight).T)
    if module.out_proj.bias is not None:
        arrays["o.bias"] = floats(module.out_proj.bias)
    width = int(module.head_dim)
    heads = int(module.num_heads)
    numbers: dict[str, Number] = {"heads": heads, "kv_heads": heads, "head_dim": width, "scale": width**-0.5}
    return Facts("attention", arrays, numbers | {"batch_first": bool(module.batch_first)})


def _apart(children: dict[str, Any], read: Read) -> dict[str, Floats] | None:
    for names in _APART:
        if all(name in children for name in names):
            parts = [read(children[name]) for name in names]
            if all(part.kind == "linear" for part in parts):
                return {
                    f"{n}.{k}": x
                    for n, part in zip("qkv", parts, strict=True)
                    for k, x in part.arrays.items()
                }
    return None


def _together(children: dict[str, Any], numbers: dict[str, Number], read: Read) -> dict[str, Floats] | None:
    """q, k and v out of one matrix; per head where the name is that of GPT-NeoX and BLOOM."""
    name = next((n for n in _FUSED if n in children), None)
    if name is None or "heads" not in numbers or (told := read(children[name])).kind != "linear":
        return None
    heads, kv = int(numbers["heads"]), int(numbers.get("kv_heads", numbers["heads"]))
    total = told.arrays["weight"].shape[1]
    width = int(numbers.get("head_dim", total // (heads + 2 * kv)))
    if total != (heads + 2 * kv) * width:
        return None
    found = dict[str, Floats]()
    for kind, x in told.arrays.items():
        parts = fused_parts(x, heads, kv, width, by_head=name == "query_key_value")
        found |= {f"{n}.{kind}": part for n, part in zip("qkv", parts, strict=True)}
    return found


def fused_parts(x: Floats, heads: int, kv: int, width: int, *, by_head: bool) -> list[Floats]:
    """q, k and v (..., heads width) out of (..., all): side by side, or for each kv head its queries, key and value."""
    group = heads // kv
    if not by_head:
        return [np.ascontiguousarray(p) for p in np.split(x, [heads * width, (heads + kv) * width], -1)]
    parts = x.reshape(*x.shape[:-1], kv, group + 2, width)
    cuts = np.split(parts, [group, group + 1], -2)
    return [p.reshape(*x.shape[:-1], -1) for p in cuts]


def _first(module: Any, *names: str) -> Any:
    """The first attribute that is there and not None, of the module or of its config."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            if owner is not None and (found := getattr(owner, name, None)) is not None:
                return found
    return None


def _numbers(module: Any) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for ours, names in (
        ("heads", ("num_heads", "n_heads", "num_attention_heads", "n_head")),
        ("kv_heads", ("num_key_value_heads", "num_kv_heads", "n_kv_heads")),
        ("head_dim", ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")),
    ):
        if isinstance(value := _first(module, *names), int):
            found[ours] = value
    for ours, name in (("layer", "layer_idx"), ("softcap", "attn_logit_softcapping")):
        if isinstance(value := getattr(module, name, None), int | float) and not isinstance(value, bool):
            found[ours] = value
    if isinstance(
        scale := next((s for n in ("scaling", "scale") if (s := getattr(module, n, None)) is not None), None),
        float,
    ):
        found["scale"] = scale
    if isinstance(causal := getattr(module, "is_causal", None), bool):
        found["is_causal"] = causal
    owner = module if hasattr(module, "sliding_window") else getattr(module, "config", None)
    window = getattr(owner, "sliding_window", None)
    if isinstance(window, int) and window > 0:
        found["window"] = window
    return found | _rotary(module)


def _rotary(module: Any) -> dict[str, Number]:
    """The rotary of a config, where the module is given angles."""
    config = getattr(module, "config", None)
    if config is None or "position_embeddings" not in inspect.signature(module.forward).parameters:
        return {}
    told = getattr(config, "rope_parameters", None)
    kind = getattr(module, "layer_type", None)
    by_layer = isinstance(told, dict) and told and all(isinstance(x, dict) for x in told.values())
    try:
        rotary = Rotary.from_config(config, layer_type=kind if by_layer else None)
    except (ValueError, TypeError, KeyError):
        return {}  # of a kind that is not known here: the angles come with the inputs
    return rotary_numbers(rotary)


def rotary_numbers(rotary: Rotary) -> dict[str, Number]:
    """A rotary as numbers; scaling as it writes itself."""
    found: dict[str, Number] = {"rotary_base": float(rotary.base), "rotary_interleaved": rotary.interleaved}
    if rotary.width is not None:
        found["rotary_width"] = rotary.width
    if rotary.scaling is not None:
        found["rotary_scaling"] = repr(rotary.scaling)
    return {} if rotary.sections is not None else found


def _norms(
    children: dict[str, Any], found: dict[str, Floats], numbers: dict[str, Number], read: Read
) -> bool:
    """Adds the norms of queries and keys; False where there is one that is not understood."""
    pairs = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
    for names in pairs:
        for ours, theirs in zip(("q_norm", "k_norm"), names, strict=True):
            if theirs not in children:
                continue
            told = read(children[theirs])
            if told.kind != "norm":
                return False
            found |= {f"{ours}.{n}": x for n, x in told.arrays.items()}
            numbers |= {f"qk_norm_{n}": x for n, x in told.numbers.items()}
    return True


def _extras(
    module: Any, children: dict[str, Any], found: dict[str, Floats], numbers: dict[str, Number]
) -> None:
    """Sinks, and the learned relative positions of T5."""
    if (sinks := getattr(module, "sinks", None)) is not None and hasattr(sinks, "detach"):
        found["sinks"] = floats(sinks)
    if (table := children.get("relative_attention_bias")) is not None:
        found["relative_bias.weight"] = floats(table.weight)
        numbers["relative_max_distance"] = int(module.relative_attention_max_distance)
        numbers["relative_bidirectional"] = not module.is_decoder
