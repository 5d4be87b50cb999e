"""How other libraries name, transpose and pack the same weights: one table for each, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polyattn.arrays import Array
from polyattn.layers import (
    MLP,
    Decoder,
    Embedding,
    Encoder,
    EncoderBlock,
    EncoderDecoderAttention,
    LanguageModel,
    LatentAttention,
    Layer,
    LayerNorm,
    Linear,
    MixtureOfExperts,
    MultiHeadAttention,
    Params,
    RecurrentLayer,
    RMSNorm,
)
from polyattn.weights.mixtures import deepseek_experts, gpt_oss_experts, qwen3_next_experts
from polyattn.weights.projections import (
    ctranslate2_attention,
    fused,
    gated,
    gpt2_attention,
    latent,
    none_such,
    separate,
    torch_attention,
)
from polyattn.weights.recurrent import kimi_linear, minimax, qwen3_next
from polyattn.weights.rules import Rule, above_one, by_group, picked, same, shapes, turned
from polyattn.weights.tree import check_names, check_params, flatten, unflatten

__all__ = ["FORMATS", "Format", "from_format", "to_format"]


def from_format(
    layer: Layer, tensors: Mapping[str, Array], format: str, *, prefix: str = ""
) -> dict[str, Any]:
    """The params of `layer` from the named arrays of another library, in the library these are arrays of.

    format: "torch" (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer and their
    stacks), "flax" (nnx), "keras", "equinox", "gpt2", "llama" (also Qwen, Mistral, the attention of GPT-OSS), "bert" (the
    last three as Hugging Face names them), and its recurrent layers "qwen3_next", "kimi_linear", "minimax"; "gguf" (Llama
    as llama.cpp names it), "ctranslate2". prefix: only names that begin with it count, without it. Every name must be
    used and every parameter found: a ValueError lists what is not. `polyattn.weights.read(module)` gives
    the tensors of a module.

    >>> import numpy as np
    >>> from polyattn.layers import LayerNorm
    >>> from_format(LayerNorm(2, epsilon=1e-5), {"weight": np.ones(2), "bias": np.zeros(2)}, "torch")
    {'scale': array([1., 1.]), 'bias': array([0., 0.])}
    """
    rules = _rules("polyattn.weights.from_format", layer, format)
    given = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    where = f"polyattn.weights.from_format({layer.name.rpartition('.')[2]}, {format!r})"
    check_names(where, given, {rule.theirs: rule.shape for rule in rules})
    flat: dict[str, Array] = {}
    for rule in rules:
        flat |= dict(zip(rule.ours, rule.load(given[rule.theirs]), strict=True))
    params = unflatten(flat)
    check_params(where, layer, params)
    return params


def to_format(layer: Layer, params: Params, format: str, *, prefix: str = "") -> dict[str, Array]:
    """The inverse of `from_format`: named arrays as another library has them.

    >>> import numpy as np
    >>> from polyattn.layers import RMSNorm
    >>> to_format(RMSNorm(2, epsilon=1e-5), {"scale": np.ones(2)}, "llama", prefix="norm.")
    {'norm.weight': array([1., 1.])}
    """
    rules = _rules("polyattn.weights.to_format", layer, format)
    check_params(f"polyattn.weights.to_format({layer.name.rpartition('.')[2]}, {format!r})", layer, params)
    flat = flatten(params)
    return {prefix + rule.theirs: rule.dump(*(flat[name] for name in rule.ours)) for rule in rules}


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


def _rules(who: str, layer: Layer, name: str) -> list[Rule]:
    if name not in FORMATS:
        raise ValueError(
            f"{who}: expected a format among {', '.join(FORMATS)}, got {name!r}; take one of these, or give the "
            "arrays the names and shapes of layer.shapes()"
        )
    try:
        return _of(FORMATS[name], layer)
    except LookupError as error:
        raise ValueError(
            f"{who}: expected a layer that {name!r} has, got {error}; configure the layer so, or take another format"
        ) from None


def _of(f: Format, layer: Layer) -> list[Rule]:
    """The rules of a layer in a format, by its kind."""
    if isinstance(layer, MultiHeadAttention):
        rules = f.attention(layer)
        if layer.sinks:
            if f.sinks is None:
                raise LookupError(f"{layer} with sinks")
            rules.append(same(f.sinks, "sinks", (layer.num_heads,)))
        for ours, norm in layer.head_norms.items():
            if ours not in f.head_norms:
                raise LookupError(f"{layer} with {'qk_norm' if ours != 'v_norm' else ours}")
            rules += _part(f, norm, ours, f.head_norms[ours])
        return rules
    if isinstance(layer, LatentAttention | MixtureOfExperts | RecurrentLayer):
        rules = next((make for kind, make in f.others.items() if isinstance(layer, kind)), none_such)(layer)
        if not isinstance(layer, MixtureOfExperts) or layer.shared is None:
            return rules
        return [*rules, *_part(f, layer.shared, "shared", f.experts["shared"])]
    if isinstance(layer, LayerNorm | RMSNorm):
        names = f.rms_norm if f.rms_norm and isinstance(layer, RMSNorm) else f.norm
        if not names:
            raise LookupError(str(layer))
        found = [same(names[name], name, shape) for name, shape in shapes(layer).items()]
        return [above_one(rule) for rule in found] if f.above_one and isinstance(layer, RMSNorm) else found
    if isinstance(layer, Linear | MLP):
        names = f.mlp if isinstance(layer, MLP) else f.linear
        own = shapes(layer)
        if f.fused_mlp and "w_gate" in own and isinstance(layer, MLP) and not layer.use_bias:
            down = turned(names["w_out"], "w_out", own["w_out"])
            return [by_group(f.fused_mlp, picked(own, "w_gate w_in"), 1), down]
        if missing := [name for name in layer.parameters() if name not in names]:
            raise LookupError(f"{layer} with {', '.join(missing)}")
        return [
            (turned if len(shape) == 2 and f.transposed else same)(names[name], name, shape)
            for name, shape in shapes(layer).items()
        ]
    if isinstance(layer, Encoder | Decoder) and f.stack[0]:
        if layer.final_norm is not None and not f.stack[1]:
            raise LookupError(f"{layer} with final_norm")
        last = [] if layer.final_norm is None else _part(f, layer.final_norm, "norm", f.stack[1])
        blocks = (_part(f, block, f"block_{i}", f.stack[0].format(i)) for i, block in enumerate(layer.blocks))
        return [*(rule for block in blocks for rule in block), *last]
    if isinstance(layer, Embedding) and f.embedding:
        return [same(f.embedding, "table", (layer.size, layer.dim))]
    kinds = ((EncoderBlock, f.encoder), (EncoderDecoderAttention, f.decoder), (LanguageModel, f.language))
    prefixes = next((names for kind, names in kinds if isinstance(layer, kind)), {})
    parts = layer.parameters()
    optional = {"head"} if isinstance(layer, LanguageModel) else set()
    if not prefixes or not prefixes.keys() - optional <= parts.keys() <= prefixes.keys():
        raise LookupError(str(layer))
    every: list[Rule] = []
    for name, part in parts.items():
        special = [prefix for kind, prefix in f.parts.items() if isinstance(part, kind)]
        every += _part(f, part, name, *special or [prefixes[name]])  # type: ignore[arg-type]
    return every


def _part(f: Format, layer: Layer, ours: str, theirs: str) -> list[Rule]:
    """The rules of a part of a layer, with the prefixes of both sides."""
    return [
        rule._replace(theirs=theirs + rule.theirs, ours=tuple(f"{ours}.{name}" for name in rule.ours))
        for rule in _of(f, layer)
    ]


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
