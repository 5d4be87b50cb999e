"""How other libraries name, transpose and pack the same weights: one table for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from polyattn.layers import LatentAttention, Layer, MixtureOfExperts, MultiHeadAttention, RecurrentLayer
from polyattn.weights.mixtures import deepseek_experts, gpt_oss_experts, qwen3_next_experts
from polyattn.weights.projections import (
    ctranslate2_attention,
    fused,
    gated,
    gpt2_attention,
    latent,
    separate,
    torch_attention,
)
from polyattn.weights.recurrent import kimi_linear, minimax, qwen3_next
from polyattn.weights.rules import Rule

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """What a library calls the parts of each layer; an empty table where it has no such layer."""

    attention: Callable[[MultiHeadAttention], list[Rule]]
    norm: Mapping[str, str]  # ours -> theirs
    rms_norm: Mapping[str, str] = field(default_factory=dict)  # where it is not as norm
    head_norms: Mapping[str, str] = field(default_factory=dict)  # part -> prefix
    sinks: str | None = None
    linear: Mapping[str, str] = field(default_factory=dict)
    embedding: str = ""
    mlp: Mapping[str, str] = field(default_factory=dict)
    encoder: Mapping[str, str] = field(default_factory=dict)  # part -> prefix
    parts: Mapping[type[Layer], str] = field(
        default_factory=dict
    )  # kind of a part -> prefix, if it has one of its own
    decoder: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[type[Layer], Callable[[Layer], list[Rule]]] = field(default_factory=dict)  # by kind
    experts: Mapping[str, str] = field(default_factory=dict)  # part -> prefix
    stack: tuple[str, str] = ("", "")  # prefix of a block, prefix of the norm
    language: Mapping[str, str] = field(default_factory=dict)  # part -> prefix
    transposed: bool = True  # weights are (out, in)
    above_one: bool = False  # scales of RMS norms are kept as what they are above 1
    fused_mlp: str = ""  # gate and input in one matrix


def _affine(names: Mapping[str, str], separator: str = ".") -> dict[str, str]:
    """The names of the arrays of linear maps, from those of the maps."""
    arrays = (("w", "weight"), ("b", "bias"))
    return {
        f"{kind}_{ours}": f"{theirs}{separator}{array}"
        for ours, theirs in names.items()
        for kind, array in arrays
    }


_NORM = {"scale": "weight", "bias": "bias"}
_LINEAR = {"w": "weight", "b": "bias"}

#: As Llama has them, and most that came after it.
_LLAMA = Format(
    separate("q_proj k_proj v_proj o_proj", ".weight", ".bias", True),
    _NORM,
    embedding="weight",
    head_norms={"q_norm": "q_norm.", "k_norm": "k_norm."},
    sinks="sinks",
    linear=_LINEAR,
    mlp=_affine({"in": "up_proj", "gate": "gate_proj", "out": "down_proj"}),
    encoder={
        "attention": "self_attn.",
        "norm_1": "input_layernorm.",
        "mlp": "mlp.",
        "norm_2": "post_attention_layernorm.",
    },
    stack=("layers.{}.", "norm."),
    language={"embedding": "model.embed_tokens.", "trunk": "model.", "head": "lm_head."},
)
#: Blocks whose branches are normalised before they are added, and those that normalise twice.
_BRANCHES = {
    "attention": "self_attn.",
    "branch_norm_1": "post_attention_layernorm.",
    "mlp": "mlp.",
    "branch_norm_2": "post_feedforward_layernorm.",
}
_SANDWICH = {"norm_1": "input_layernorm.", "norm_2": "pre_feedforward_layernorm."}


#: The formats that are known, by name.
FORMATS: Mapping[str, Format] = {
    "torch": Format(
        torch_attention,
        _NORM,
        embedding="weight",
        linear=_LINEAR,
        mlp=_affine({"in": "linear1", "out": "linear2"}),
        encoder={"attention": "self_attn.", "norm_1": "norm1.", "mlp": "", "norm_2": "norm2."},
        decoder={
            "self_attention": "self_attn.",
            "norm_1": "norm1.",
            "cross_attention": "multihead_attn.",
            "norm_2": "norm2.",
            "mlp": "",
            "norm_3": "norm3.",
        },
        stack=("layers.{}.", "norm."),
    ),
    "flax": Format(
        separate("query key value out", ".kernel", ".bias", False),
        {"scale": "scale", "bias": "bias"},
        embedding="embedding",
        head_norms={"q_norm": "query_ln.", "k_norm": "key_ln."},
        linear={"w": "kernel", "b": "bias"},
        transposed=False,
    ),
    "keras": Format(
        separate("query key value attention_output", "/kernel", "/bias", False),
        {"scale": "gamma", "bias": "beta"},
        rms_norm={"scale": "scale"},
        linear={"w": "kernel", "b": "bias"},
        transposed=False,
    ),
    "equinox": Format(
        separate("query_proj key_proj value_proj output_proj", ".weight", ".bias", True),
        _NORM,
        linear=_LINEAR,
    ),
    "gpt2": Format(
        gpt2_attention,
        _NORM,
        linear=_LINEAR,
        mlp=_affine({"in": "c_fc", "out": "c_proj"}),
        encoder={"attention": "attn.", "norm_1": "ln_1.", "mlp": "mlp.", "norm_2": "ln_2."},
        stack=("h.{}.", "ln_f."),
        transposed=False,
    ),
    "llama": _LLAMA,
    "olmo2": replace(_LLAMA, encoder=_BRANCHES),
    "gemma": replace(_LLAMA, encoder=_BRANCHES | _SANDWICH, above_one=True),
    "phi3": replace(
        _LLAMA, attention=fused("qkv_proj", "o_proj", side_by_side=True), fused_mlp="gate_up_proj.weight"
    ),
    "gpt_oss": replace(_LLAMA, others={MixtureOfExperts: gpt_oss_experts}),
    "deepseek": replace(
        _LLAMA,
        others={LatentAttention: latent, MixtureOfExperts: deepseek_experts},
        experts={"shared": "shared_experts."},
    ),
    "qwen3_next": replace(
        _LLAMA,
        attention=gated,
        others={RecurrentLayer: qwen3_next, MixtureOfExperts: qwen3_next_experts},
        experts={"shared": "shared_expert."},
        parts={RecurrentLayer: "linear_attn."},
        above_one=True,
    ),
    "kimi_linear": replace(
        _LLAMA,
        others={LatentAttention: latent, RecurrentLayer: kimi_linear, MixtureOfExperts: deepseek_experts},
        experts={"shared": "shared_experts."},
    ),
    "gguf": Format(
        separate("attn_q attn_k attn_v attn_output", ".weight", ".bias", True),
        _NORM,
        embedding="weight",
        head_norms={"q_norm": "attn_q_norm.", "k_norm": "attn_k_norm."},
        linear=_LINEAR,
        mlp=_affine({"in": "ffn_up", "gate": "ffn_gate", "out": "ffn_down"}),
        encoder={"attention": "", "norm_1": "attn_norm.", "mlp": "", "norm_2": "ffn_norm."},
        stack=("blk.{}.", "output_norm."),
        language={"embedding": "token_embd.", "trunk": "", "head": "output."},
    ),
    "ctranslate2": Format(
        ctranslate2_attention,
        {"scale": "gamma", "bias": "beta"},
        embedding="weight",
        mlp=_affine({"in": "linear_0", "out": "linear_1"}, "/"),
        encoder={
            "attention": "self_attention/",
            "norm_1": "self_attention/layer_norm/",
            "mlp": "ffn/",
            "norm_2": "ffn/layer_norm/",
        },
        decoder={
            "self_attention": "self_attention/",
            "norm_1": "self_attention/layer_norm/",
            "cross_attention": "attention/",
            "norm_2": "attention/layer_norm/",
            "mlp": "ffn/",
            "norm_3": "ffn/layer_norm/",
        },
        stack=("layer_{}/", "layer_norm/"),
    ),
    "bert": Format(
        separate("self.query self.key self.value output.dense", ".weight", ".bias", True),
        _NORM,
        linear=_LINEAR,
        mlp=_affine({"in": "intermediate.dense", "out": "output.dense"}),
        encoder={
            "attention": "attention.",
            "norm_1": "attention.output.LayerNorm.",
            "mlp": "",
            "norm_2": "output.LayerNorm.",
        },
        stack=("layer.{}.", ""),
    ),
    "minimax": Format(
        separate("q_proj k_proj v_proj o_proj", ".weight", ".bias", True),
        _NORM,
        linear=_LINEAR,
        others={RecurrentLayer: minimax},
    ),
    "gpt_neox": Format(
        fused("query_key_value", "dense"),
        _NORM,
        linear=_LINEAR,
        mlp=_affine({"in": "dense_h_to_4h", "out": "dense_4h_to_h"}),
    ),
}
