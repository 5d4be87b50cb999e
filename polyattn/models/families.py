"""Today's language models as configurations of `polyattn.layers`: one function for each family, from its config.

    model, format = language_model(hf_model.config)                 # or the dict of a config.json
    params = weights.from_format(model, weights.read(hf_model), format)

A family is what its config says, and no more: what is not written here is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from polyattn import mods
from polyattn.calls import shown
from polyattn.layers import (
    MLP,
    EncoderBlock,
    GatedDeltaNet,
    KimiDeltaAttention,
    LanguageModel,
    LatentAttention,
    MixtureOfExperts,
    MultiHeadAttention,
)
from polyattn.models.config import GATED, WHO, Config
from polyattn.rotary import Rotary

__all__ = ["FAMILIES", "Family", "language_model"]


class Family(NamedTuple):
    """A model, and the format of `polyattn.weights` that its weights are in."""

    model: LanguageModel
    format: str


def _llama(c: Config) -> Family:
    """Llama (arXiv:2302.13971, 2407.21783), Mistral (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388), SmolLM2."""
    more: dict[str, Any] = {}
    kind = c.whole["model_type"]
    if kind == "qwen3":
        more["qk_norm"] = c.head_norm(c.width)
    if kind == "qwen2":
        more |= {"qkv_bias": True, "out_bias": False}
    windowed = kind == "mistral" and c.get("sliding_window") is not None
    kinds = c.layer_types("sliding_attention" if windowed else "full_attention")
    return Family(c.model(tuple(c.block(c.attention(k, **more), c.mlp()) for k in kinds)), "llama")


def _smollm3(c: Config) -> Family:
    """SmolLM3: Llama, in which every fourth layer turns nothing (NoPE, arXiv:2305.19466)."""
    kinds = zip(c.layer_types("full_attention"), c.no_rope_layers, strict=True)
    attention = (c.attention(kind, **({} if turns else {"rotary": None})) for kind, turns in kinds)
    return Family(c.model(tuple(c.block(layer, c.mlp()) for layer in attention)), "llama")


def _phi3(c: Config) -> Family:
    """Phi-3 (arXiv:2404.14219): Llama with q, k, v and gate and input in one matrix each."""
    kind = "full_attention" if c.get("sliding_window") is None else "sliding_attention"
    return Family(c.model((c.block(c.attention(kind), c.mlp()),)), "phi3")


def _olmo2(c: Config) -> Family:
    """OLMo 2 (arXiv:2501.00656): norms of the branches, and of all heads of q and of k together."""
    heads, kv_heads = c.num_attention_heads, c.get("num_key_value_heads", c.num_attention_heads)
    norms = tuple(c.head_norm(n * c.width) for n in (heads, kv_heads))
    block = EncoderBlock(c.attention(qk_norm=norms), c.mlp(), None, norm_first=True, branch_norm=c.norm)
    return Family(c.model((block,)), "olmo2")


def _gemma(c: Config) -> Family:
    """Gemma 2 and 3 (arXiv:2408.00118, 2503.19786): windows in turns, norms before and after, scores and logits capped."""
    cap = c.get("attn_logit_softcapping")
    more: dict[str, Any] = {
        "scale": c.query_pre_attn_scalar**-0.5,
        "score_mod": None if cap is None else mods.softcap(cap),
    }
    third = c.whole["model_type"] == "gemma3_text"
    if third:
        more["qk_norm"] = c.head_norm(c.width)

    def attention(kind: str) -> MultiHeadAttention:
        rotary = Rotary.from_config(c.whole, layer_type=kind if third else None, head_dim=c.width)
        return c.attention(kind, rotary=rotary, **more)

    blocks = tuple(
        EncoderBlock(attention(kind), c.mlp("hidden_activation"), c.norm, norm_first=True, branch_norm=c.norm)
        for kind in c.layer_types("full_attention")
    )
    whole = {"embedding_scale": math.sqrt(c.hidden_size), "logits_cap": c.get("final_logit_softcapping")}
    return Family(c.model(blocks, **whole), "gemma")


def _gpt_oss(c: Config) -> Family:
    """gpt-oss (arXiv:2508.10925): sinks, windows in turns, YaRN, experts with biases and a gate that is clipped."""
    if (c.get("swiglu_alpha", 1.702), c.get("swiglu_limit", 7.0)) != (1.702, 7.0):
        raise ValueError(
            f"{WHO}: expected swiglu_alpha 1.702 and swiglu_limit 7.0, got {c.get('swiglu_alpha')} and "
            f"{c.get('swiglu_limit')}; compose the model of polyattn.layers"
        )
    experts = MixtureOfExperts(
        c.hidden_size,
        c.intermediate_size,
        num_experts=c.num_local_experts,
        top_k=c.num_experts_per_tok,
        activation="clipped_swiglu",
        shared=None,
        use_bias=True,
        router_bias=True,
    )
    blocks = tuple(
        c.block(c.attention(kind, sinks=True), experts) for kind in c.layer_types("full_attention")
    )
    return Family(c.model(blocks), "gpt_oss")


def _experts_of_deepseek(c: Config, *, normalized: bool, shared: int, groups: int) -> MixtureOfExperts:
    if c.hidden_act not in GATED:
        raise ValueError(
            f"{WHO}: expected hidden_act among {', '.join(GATED)}, got {c.hidden_act!r}; compose the model of polyattn.layers"
        )
    return MixtureOfExperts(
        c.hidden_size,
        c.moe_intermediate_size,
        num_experts=c.get("n_routed_experts", c.get("num_experts")),
        top_k=c.get("num_experts_per_tok", c.get("num_experts_per_token")),
        activation=GATED[c.hidden_act],
        shared=c.mlp(width=c.moe_intermediate_size * shared),
        scores="sigmoid",
        normalized=normalized,
        scale=c.routed_scaling_factor,
        correction=True,
        groups=groups,
        top_groups=c.topk_group,
    )


def _latent(c: Config, rotary: Rotary | None) -> LatentAttention:
    if c.get("attention_bias", False):
        raise ValueError(f"{WHO}: expected attention_bias False, got True; LatentAttention has no biases")
    scaling = None if rotary is None else rotary.scaling
    factor = getattr(scaling, "score_factor", 1.0)
    return LatentAttention(
        c.hidden_size,
        c.num_attention_heads,
        kv_lora_rank=c.kv_lora_rank,
        qk_nope_head_dim=c.qk_nope_head_dim,
        qk_rope_head_dim=c.qk_rope_head_dim,
        v_head_dim=c.v_head_dim,
        epsilon=1e-6,
        q_lora_rank=c.get("q_lora_rank"),
        rotary=rotary,
        scale=factor / math.sqrt(c.qk_nope_head_dim + c.qk_rope_head_dim),
        is_causal=True,
    )


def _deepseek(c: Config) -> Family:
    """DeepSeek-V3 (arXiv:2412.19437): latent attention; dense layers first, then experts."""
    attention = _latent(c, Rotary.from_config(c.whole, head_dim=c.qk_rope_head_dim))
    dense, sparse = c.first_k_dense_replace, None
    if dense < c.depth:
        sparse = _experts_of_deepseek(
            c, normalized=bool(c.norm_topk_prob), shared=c.n_shared_experts, groups=c.n_group
        )
    blocks = tuple(c.block(attention, sparse if sparse and i >= dense else c.mlp()) for i in range(c.depth))
    return Family(c.model(blocks), "deepseek")


def _qwen3_next(c: Config) -> Family:
    """Qwen3-Next: gated delta nets, every fourth layer gated attention that turns a quarter of a head; experts."""
    softmax = c.attention(
        qk_norm=c.head_norm(c.width),
        output_gate="entry",
        rotary=Rotary.from_config(c.whole, head_dim=c.width),
    )
    delta = GatedDeltaNet(
        c.hidden_size,
        c.linear_num_key_heads,
        head_dim=c.linear_key_head_dim,
        num_value_heads=c.linear_num_value_heads,
        value_dim=c.linear_value_head_dim,
        kernel_size=c.linear_conv_kernel_dim,
        epsilon=c.rms_norm_eps,
    )

    def mlp(i: int) -> MLP | MixtureOfExperts:
        if i in c.get("mlp_only_layers", []) or (i + 1) % c.decoder_sparse_step or not c.num_experts:
            return c.mlp()
        return MixtureOfExperts(
            c.hidden_size,
            c.moe_intermediate_size,
            num_experts=c.num_experts,
            top_k=c.num_experts_per_tok,
            activation="swiglu",
            shared=c.mlp(width=c.shared_expert_intermediate_size),
            shared_gate=True,
            normalized=bool(c.norm_topk_prob),
        )

    kinds = c.layer_types("full_attention")
    blocks = (c.block(softmax if k == "full_attention" else delta, mlp(i)) for i, k in enumerate(kinds))
    return Family(c.model(tuple(blocks)), "qwen3_next")


def _kimi_linear(c: Config) -> Family:
    """Kimi Linear (arXiv:2510.26692): delta attention with a decay for every entry, latent attention without positions."""
    softmax = _latent(c, None)
    delta = KimiDeltaAttention(
        c.hidden_size,
        c.linear_num_heads,
        head_dim=c.linear_head_dim,
        kernel_size=c.linear_conv_kernel_dim,
        epsilon=c.rms_norm_eps,
    )
    experts = _experts_of_deepseek(
        c, normalized=bool(c.moe_renormalize), shared=c.num_shared_experts, groups=c.num_expert_group
    )
    kinds = zip(c.layer_types("full_attention"), c.mlp_layer_types, strict=True)
    blocks = tuple(
        c.block(softmax if kind == "full_attention" else delta, experts if mlp == "sparse" else c.mlp())
        for kind, mlp in kinds
    )
    return Family(c.model(blocks), "kimi_linear")


#: model_type of a config -> what makes its model.
FAMILIES: Mapping[str, Callable[[Config], Family]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "smollm3": _smollm3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek,
    "qwen3_next": _qwen3_next,
    "kimi_linear": _kimi_linear,
}


def language_model(config: Mapping[str, Any] | Any) -> Family:
    """The model that a Hugging Face config describes, the object or the dict of its config.json, and its format.

    ValueError for a model_type that is not in `FAMILIES`, an entry that is missing, or one with another meaning here.

    >>> config = {"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "hidden_act": "silu",
    ...           "num_hidden_layers": 2, "num_attention_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    >>> model, format = language_model(config)
    >>> model.trunk.depth, model.shapes()["trunk"]["block_1"]["mlp"]["w_gate"], format
    (2, (8, 16), 'llama')
    """
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise TypeError(
            f"{WHO}: expected a config of transformers, or the dict of a config.json, got {shown(config)}; pass model.config"
        )
    found = Config(config)
    kind = found.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{WHO}: expected a model_type among {', '.join(FAMILIES)}, got {shown(kind)}; compose the model of polyattn.layers"
        )
    return FAMILIES[kind](found)
