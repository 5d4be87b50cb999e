"""Weights as another library names, transposes and packs them, read in both directions by its table."""

from __future__ import annotations

from collections.abc import Mapping
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
from polyattn.weights.formats import FORMATS, Format
from polyattn.weights.projections import none_such
from polyattn.weights.rules import Rule, above_one, by_group, picked, same, shapes, turned
from polyattn.weights.tree import check_names, check_params, flatten, unflatten

__all__ = ["from_format", "to_format"]


def from_format(
    layer: Layer, tensors: Mapping[str, Array], format: str, *, prefix: str = ""
) -> dict[str, Any]:
    """The params of `layer` from the named arrays of another library, in the library these are arrays of.

    format: one of `FORMATS`: "torch" (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer and
    their stacks), "flax" (nnx), "keras", "equinox"; "gguf" (Llama as llama.cpp names it), "ctranslate2"; the others are families as
    Hugging Face names their weights, "llama" for all that are named as Llama's are. prefix: only names that begin with it
    count, without it. Every name must be used and every parameter found: a ValueError lists what is not.
    `polyattn.weights.read(module)` gives the tensors of a module.

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
