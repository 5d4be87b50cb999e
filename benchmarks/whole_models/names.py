"""Which part of a model is which of its port, as `compare_models` is told: "*" is the number of a layer."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.whole_models import ports

__all__ = ["NAMES", "in_all_layers"]


def _inside(theirs: str, ours: str, parts: str) -> dict[str, str]:
    """Parts of a part, "their name: our name" or one name for both, and the part itself."""
    found = {theirs: ours}
    for part in parts.split(", "):
        one, _, other = part.partition(": ")
        found[f"{theirs}.{one}"] = f"{ours}.{other or one}"
    return found


_ATTENTION = "q_proj: q, k_proj: k, v_proj: v, o_proj: o"
_GATED = "gate_proj: gate, up_proj: up, down_proj: down, act_fn: act"
_GATED_T5 = "wi_0: gate, wi_1: up, wo: down, act"

#: architecture -> name in the model -> name in the port
NAMES: dict[str, dict[str, str]] = {
    "llama": {
        "model.embed_tokens": "embed",
        "model.norm": "norm",
        "lm_head": "head",
        **_inside("model.layers.*", "blocks.*", "input_layernorm: norm1, post_attention_layernorm: norm2"),
        **_inside("model.layers.*.self_attn", "blocks.*.attn", _ATTENTION),
        **_inside("model.layers.*.mlp", "blocks.*.mlp", _GATED),
    },
    "gpt2": {
        "transformer.wte": "words",
        "transformer.wpe": "places",
        "transformer.ln_f": "norm",
        "lm_head": "head",
        **_inside("transformer.h.*", "blocks.*", "ln_1: norm1, ln_2: norm2"),
        **_inside("transformer.h.*.attn", "blocks.*.attn", "c_attn: qkv, c_proj: o"),
        **_inside("transformer.h.*.mlp", "blocks.*.mlp", "c_fc: up, act, c_proj: down"),
    },
    "bert": {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "places",
        "embeddings.token_type_embeddings": "kinds",
        "embeddings.LayerNorm": "norm",
        "pooler.dense": "pool",
        "pooler.activation": "act",
        "encoder.layer.*": "blocks.*",
        "encoder.layer.*.attention.self.query": "blocks.*.attn.q",
        "encoder.layer.*.attention.self.key": "blocks.*.attn.k",
        "encoder.layer.*.attention.self.value": "blocks.*.attn.v",
        "encoder.layer.*.attention.output.dense": "blocks.*.attn.o",
        "encoder.layer.*.attention.output.LayerNorm": "blocks.*.norm1",
        "encoder.layer.*.intermediate.dense": "blocks.*.mlp.up",
        "encoder.layer.*.intermediate.intermediate_act_fn": "blocks.*.mlp.act",
        "encoder.layer.*.output.dense": "blocks.*.mlp.down",
        "encoder.layer.*.output.LayerNorm": "blocks.*.norm2",
    },
    "t5": {
        "shared": "embed",
        "encoder.final_layer_norm": "norm",
        "decoder.final_layer_norm": "norm2",
        **_inside("encoder.block.*", "blocks.*", "layer.0.layer_norm: norm1, layer.1.layer_norm: norm2"),
        **_inside("encoder.block.*.layer.0.SelfAttention", "blocks.*.attn", "q, k, v, o"),
        **_inside("encoder.block.*.layer.1.DenseReluDense", "blocks.*.mlp", _GATED_T5),
        **_inside(
            "decoder.block.*",
            "blocks2.*",
            "layer.0.layer_norm: norm1, layer.1.layer_norm: norm2, layer.2.layer_norm: norm3",
        ),
        **_inside("decoder.block.*.layer.0.SelfAttention", "blocks2.*.attn", "q, k, v, o"),
        **_inside("decoder.block.*.layer.1.EncDecAttention", "blocks2.*.cross", "q, k, v, o"),
        **_inside("decoder.block.*.layer.2.DenseReluDense", "blocks2.*.mlp", _GATED_T5),
    },
    "vit": {
        "embeddings.patch_embeddings": "patches",
        "layernorm": "norm",
        "pooler.dense": "pool",
        "pooler.activation": "act",
        **_inside("layers.*", "blocks.*", "layernorm_before: norm1, layernorm_after: norm2"),
        **_inside("layers.*.attention", "blocks.*.attn", _ATTENTION),
        **_inside("layers.*.mlp", "blocks.*.mlp", "fc1: up, activation_fn: act, fc2: down"),
    },
    "retention": {
        "embed_tokens": "embed",
        "final_norm": "norm",
        "lm_head": "head",
        **_inside("layers.*", "blocks.*", "retention_norm: norm1, ffn_norm: norm2"),
        **_inside("layers.*.retention", "blocks.*.attn", "q, k, v, g: gate, o"),
        "layers.*.fc1": "blocks.*.mlp.up",
        "layers.*.activation": "blocks.*.mlp.act",
        "layers.*.fc2": "blocks.*.mlp.down",
    },
}


def in_all_layers(names: Mapping[str, str]) -> dict[str, str]:
    """The names with every number of a layer."""
    return {
        theirs.replace("*", str(i)): ours.replace("*", str(i))
        for theirs, ours in names.items()
        for i in range(ports.LAYERS)
    }
