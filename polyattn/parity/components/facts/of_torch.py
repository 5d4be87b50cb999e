"""Facts of modules of PyTorch, those of transformers among them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn.parity.components.facts.probing import function_of, norm_facts
from polyattn.parity.components.facts.record import Facts, Number, floats
from polyattn.parity.components.facts.torch_attention import attention_facts
from polyattn.truth.spec import Floats

__all__ = ["torch_facts"]

#: The names that MLPs go by, gate first; a gate is not there in each.
_MLPS = (
    ("gate_proj", "up_proj", "down_proj"),  # Llama and its descendants
    ("wi_0", "wi_1", "wo"),  # T5 with a gate
    ("", "wi", "wo"),  # T5
    ("", "c_fc", "c_proj"),  # GPT-2
    ("", "fc1", "fc2"),  # ViT, CLIP, OPT
    ("", "dense_h_to_4h", "dense_4h_to_h"),  # GPT-NeoX
    ("w1", "w3", "w2"),  # Meta's Llama
)
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation", "intermediate_act_fn")


def torch_facts(module: Any) -> Facts:
    """Facts of a torch.nn.Module."""
    names = {base.__name__ for base in type(module).__mro__}
    name = type(module).__name__
    own = {n: p for n, p in module.named_parameters(recurse=False) if p is not None}
    children = dict(module.named_children())
    weight = own.get("weight")
    if names & {"Linear", "Conv1D"} and weight is not None and weight.ndim == 2 and not children:
        return _linear(own, transposed="Linear" in names)
    if "Embedding" in names and weight is not None and weight.ndim == 2 and "EmbeddingBag" not in names:
        return _embedding(module, weight)
    if not children and name.lower().endswith("norm") and not hasattr(module, "running_mean"):
        return _norm(module, own)
    if "Attention" in name:
        return attention_facts(module, torch_facts)
    if (patches := _patches(module, children)) is not None:
        return patches
    if children:
        return _mlp(children, module)
    if not own and _elementwise(module):
        found = function_of(_caller(module))
        return Facts("other") if found is None else Facts("activation", {}, {"function": found})
    return Facts("other")


def _linear(own: dict[str, Any], transposed: bool) -> Facts:
    weight = floats(own["weight"])
    arrays = {"weight": np.ascontiguousarray(weight.T) if transposed else weight}
    if "bias" in own:
        arrays["bias"] = floats(own["bias"])
    return Facts("linear", arrays)


def _patches(module: Any, children: dict[str, Any]) -> Facts | None:
    """A convolution that cuts an image into patches that neither overlap nor leave gaps, or what holds that alone."""
    held = [child for child in children.values() if any(True for _ in child.parameters())]
    if children:
        own = any(True for _ in module.parameters(recurse=False))
        module = held[0] if len(held) == 1 and not own else None
    if module is None or type(module).__name__ != "Conv2d" or module.kernel_size != module.stride:
        return None
    plain = module.groups == 1 and tuple(module.dilation) == (1, 1) and module.padding in ((0, 0), "valid")
    if not plain:
        return None
    arrays = {"patches.weight": floats(module.weight)}
    if module.bias is not None:
        arrays["patches.bias"] = floats(module.bias)
    return Facts("other", arrays)


def _embedding(module: Any, weight: Any) -> Facts:
    numbers: dict[str, Number] = {}
    if isinstance(getattr(module, "padding_idx", None), int):
        numbers["padding_idx"] = module.padding_idx
    if isinstance(offset := getattr(module, "offset", None), int):  # learned positions of OPT and BART
        numbers["offset"] = offset
    for name in ("scalar_embed_scale", "embed_scale"):
        if (scale := getattr(module, name, None)) is not None:
            numbers["scale"] = float(floats(scale) if hasattr(scale, "detach") else scale)
            break
    return Facts("embedding", {"weight": floats(weight)}, numbers)


def _norm(module: Any, own: dict[str, Any]) -> Facts:
    eps = next(
        (e for n in ("variance_epsilon", "eps", "epsilon") if (e := getattr(module, n, None)) is not None),
        None,
    )
    weight, bias = (None if own.get(n) is None else own[n] for n in ("weight", "bias"))
    shape = tuple(getattr(module, "normalized_shape", ())) or (() if weight is None else tuple(weight.shape))
    if len(shape) != 1 or any(p.ndim != 1 for p in own.values()) or own.keys() - {"weight", "bias"}:
        return Facts("other")
    dtype = "float32" if weight is None else str(weight.dtype).removeprefix("torch.")
    if eps is None:
        if type(module).__name__ != "RMSNorm" or weight is None:
            return Facts("other")
        eps = sys.modules["torch"].finfo(weight.dtype).eps  # what torch.nn.RMSNorm takes then
    arrays = [None if a is None else floats(a) for a in (weight, bias)]
    return norm_facts(_caller(module, weight), arrays[0], arrays[1], float(eps), dtype, shape[0])


def _elementwise(module: Any) -> bool:
    """Whether it is one of the modules that are activation functions."""
    home = type(module).__module__
    return home.endswith((".modules.activation", "transformers.activations"))


def _caller(module: Any, like: Any = None) -> Callable[[Floats], Floats]:
    """The module on NumPy, past its hooks, in the state that it is in."""
    torch = sys.modules["torch"]

    def call(x: Floats) -> Floats:
        given = torch.from_numpy(np.array(x))
        if like is not None:
            given = given.to(like.device, like.dtype)
        with torch.no_grad():
            try:
                return floats(module.forward(given))
            except (TypeError, ValueError, RuntimeError, AttributeError):
                return np.zeros(0)  # it takes something else: no answer to compare

    return call


def _mlp(children: dict[str, Any], module: Any) -> Facts:
    """Of an MLP its weights; nothing of another block."""
    if {"gate_up_proj", "down_proj"} <= children.keys():  # Phi-3: both in one, the gate first
        both, down = (torch_facts(children[name]) for name in ("gate_up_proj", "down_proj"))
        if both.kind == down.kind == "linear" and not any("bias" in part.arrays for part in (both, down)):
            gate, up = np.split(both.arrays["weight"], 2, 1)
            arrays = {"gate.weight": gate, "up.weight": up, "down.weight": down.arrays["weight"]}
            return Facts("other", arrays, _activation(module))
    for gate_name, up_name, down_name in _MLPS:
        wanted = {"up": up_name, "down": down_name} | ({"gate": gate_name} if gate_name else {})
        if not all(name in children for name in wanted.values()):
            continue
        rest = (part for name, part in children.items() if name not in wanted.values())
        if any(p is not None for part in rest for p in part.parameters()):
            return Facts("other")  # a whole layer, of which this is a part
        parts = {ours: torch_facts(children[theirs]) for ours, theirs in wanted.items()}
        if any(part.kind != "linear" for part in parts.values()):
            continue
        arrays = {f"{ours}.{n}": x for ours, part in parts.items() for n, x in part.arrays.items()}
        return Facts("other", arrays, _activation(module))
    return Facts("other")


def _activation(module: Any) -> dict[str, Number]:
    """The function of the activation that a module holds."""
    for name in _ACTIVATIONS:
        if (act := getattr(module, name, None)) is not None and hasattr(act, "forward"):
            return {n: x for n, x in torch_facts(act).numbers.items() if n == "function"}
    return {}
