"""The projections of attention as other libraries keep them: apart, side by side, by groups of heads."""

from __future__ import annotations

import math
from collections.abc import Callable

from polyattn.layers import LatentAttention, Layer, MultiHeadAttention, MultiHeadCrossAttention
from polyattn.weights.rules import Rule, by_group, packed, picked, same, shapes, turned

__all__ = [
    "ctranslate2_attention",
    "fused",
    "gated",
    "gpt2_attention",
    "latent",
    "none_such",
    "separate",
    "torch_attention",
]


def none_such(layer: Layer) -> list[Rule]:
    """Where a format has no layer of a kind, or none that is ours."""
    raise LookupError(str(layer))


def separate(
    names: str, weight: str, bias: str, transposed: bool
) -> Callable[[MultiHeadAttention], list[Rule]]:
    """Four linear maps, named in the order q, k, v, o; flat (H D) where transposed, else with explicit heads."""
    name_of = dict(zip("qkvo", names.split(), strict=True))

    def rules(layer: MultiHeadAttention) -> list[Rule]:
        found = []
        for ours, shape in shapes(layer).items():
            if not ours.startswith(("w_", "b_")):
                continue
            if ours[2:] not in name_of:
                raise LookupError(f"{layer} with {ours}")
            theirs = name_of[ours[2:]] + (weight if ours[0] == "w" else bias)
            if not transposed:
                found.append(same(theirs, ours, shape))
            elif ours[0] == "w":
                found.append(turned(theirs, ours, shape, inputs=2 if ours == "w_o" else 1))
            else:
                found.append(same(theirs, ours, shape, (math.prod(shape),)))
        return found

    return rules


def fused(qkv: str, out: str, *, side_by_side: bool = False) -> Callable[[MultiHeadAttention], list[Rule]]:
    """One matrix for q, k and v: for each kv head its query heads, its key, its value; or all q, then all k, all v.

    GPT-NeoX, BLOOM, Falcon; Phi-3.
    """

    def rules(layer: MultiHeadAttention) -> list[Rule]:
        own = shapes(layer)
        if (
            layer.tied_kv
            or layer.shares_kv
            or layer.output_gate
            or not layer.output_projection
            or layer.source_dim != layer.embed_dim
        ):
            raise LookupError(f"{layer}, where q, k and v come from x alone, by one matrix, without a gate")
        groups = 1 if side_by_side else layer.kv_heads
        found = [
            by_group(f"{qkv}.weight", picked(own, "w_q w_k w_v"), groups),
            turned(f"{out}.weight", "w_o", own["w_o"], inputs=2),
        ]
        if layer.qkv_bias:
            found.append(by_group(f"{qkv}.bias", picked(own, "b_q b_k b_v"), groups))
        return [*found, same(f"{out}.bias", "b_o", own["b_o"])] if layer.out_bias else found

    return rules


def ctranslate2_attention(layer: MultiHeadAttention) -> list[Rule]:
    """Linear maps by number: q, k and v in one and the output; where the keys are of a context, q, then k and v."""
    own = shapes(layer)
    if (
        not (_plain_heads(layer) and layer.qkv_bias and layer.out_bias)
        or layer.tied_kv
        or layer.output_gate
        or layer.source_dim != layer.embed_dim
    ):
        raise LookupError(
            f"{layer}, where CTranslate2 has as many kv heads as heads, of width embed_dim / num_heads, no gate, and a bias "
            "everywhere"
        )
    across = isinstance(layer, MultiHeadCrossAttention)
    last = 2 if across else 1
    found = [
        turned(f"linear_{last}/weight", "w_o", own["w_o"], inputs=2),
        same(f"linear_{last}/bias", "b_o", own["b_o"]),
    ]
    for i, names in enumerate(("q", "kv") if across else ("qkv",)):
        for kind, array in (("w", "weight"), ("b", "bias")):
            ours = picked(own, " ".join(f"{kind}_{name}" for name in names))
            found.append(by_group(f"linear_{i}/{array}", ours, 1))
    return found


def gated(layer: MultiHeadAttention) -> list[Rule]:
    """Qwen3NextAttention: each head of q_proj has its query and its gate."""
    own = shapes(layer)
    if layer.output_gate != "entry" or layer.qkv_bias or layer.out_bias or layer.shares_kv:
        raise LookupError(f"{layer}, where Qwen3-Next has a gate for every entry of a head, and no bias")
    plain = [turned(f"{name}_proj.weight", f"w_{name}", own[f"w_{name}"]) for name in "kv"]
    out = turned("o_proj.weight", "w_o", own["w_o"], inputs=2)
    return [by_group("q_proj.weight", picked(own, "w_q w_g"), layer.num_heads), *plain, out]


def latent(layer: Layer) -> list[Rule]:
    """DeepseekV3Attention: the rotated part beside the latent, and in each head beside the other part."""
    if not isinstance(layer, LatentAttention):
        raise LookupError(str(layer))
    own, heads = shapes(layer), layer.num_heads
    parts = layer.shapes()
    query = "q_proj.weight" if layer.q_lora_rank is None else "q_b_proj.weight"
    found = [
        by_group("kv_a_proj_with_mqa.weight", picked(own, "w_dkv w_kr"), 1),
        same("kv_a_layernorm.weight", "kv_norm.scale", parts["kv_norm"]["scale"]),
        by_group("kv_b_proj.weight", picked(own, "w_uk w_uv"), heads),
        by_group(query, picked(own, "w_uq w_qr"), heads),
        turned("o_proj.weight", "w_o", own["w_o"], inputs=2),
    ]
    if layer.q_lora_rank is None:
        return found
    down = turned("q_a_proj.weight", "w_dq", own["w_dq"])
    return [*found, down, same("q_a_layernorm.weight", "q_norm.scale", parts["q_norm"]["scale"])]


def torch_attention(layer: MultiHeadAttention) -> list[Rule]:
    """torch.nn.MultiheadAttention: one matrix for q, k and v unless their inputs differ in width."""
    if not _plain_heads(layer) or layer.qkv_bias != layer.out_bias:
        raise LookupError(
            f"{layer}, where torch.nn.MultiheadAttention has as many kv heads as heads, of width embed_dim / num_heads, "
            "an output projection, and a bias everywhere or nowhere"
        )
    e, own = layer.embed_dim, shapes(layer)
    if layer.source_dim == e:
        rules = [packed("in_proj_weight", [turned("", f"w_{n}", own[f"w_{n}"]) for n in "qkv"], 0)]
    else:
        rules = [turned(f"{n}_proj_weight", f"w_{n}", own[f"w_{n}"]) for n in "qkv"]
    if layer.qkv_bias:
        rules.append(packed("in_proj_bias", [same("", f"b_{n}", own[f"b_{n}"], (e,)) for n in "qkv"], 0))
    rules.append(turned("out_proj.weight", "w_o", own["w_o"], inputs=2))
    return [*rules, same("out_proj.bias", "b_o", (e,))] if layer.out_bias else rules


def gpt2_attention(layer: MultiHeadAttention) -> list[Rule]:
    """transformers' GPT2Attention: q, k and v side by side in a matrix that is not transposed (Conv1D)."""
    e, own = layer.embed_dim, shapes(layer)
    if not _plain_heads(layer) or layer.source_dim != e or not (layer.qkv_bias and layer.out_bias):
        raise LookupError(
            f"{layer}, where GPT-2 has as many kv heads as heads, of width embed_dim / num_heads, an output projection, "
            "and a bias everywhere"
        )
    return [
        packed("c_attn.weight", [same("", f"w_{n}", own[f"w_{n}"], (e, e)) for n in "qkv"], 1),
        packed("c_attn.bias", [same("", f"b_{n}", own[f"b_{n}"], (e,)) for n in "qkv"], 0),
        same("c_proj.weight", "w_o", own["w_o"], (e, e)),
        same("c_proj.bias", "b_o", (e,)),
    ]


def _plain_heads(layer: MultiHeadAttention) -> bool:
    """As many kv heads as heads, which together are as wide as x, and an output projection."""
    return (
        layer.num_heads * layer.width == layer.embed_dim
        and layer.kv_heads == layer.num_heads
        and layer.output_projection
        and layer.own_kv
    )
