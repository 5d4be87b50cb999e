"""How other libraries name, transpose and pack the same weights: one table for each, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from polyattn.arrays import Array, backend_of
from polyattn.layers import (
    MLP,
    Decoder,
    Encoder,
    EncoderBlock,
    EncoderDecoderAttention,
    Layer,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    Params,
    RMSNorm,
)
from polyattn.weights.tree import check_names, check_params, flatten, unflatten


class Rule(NamedTuple):
    """One array of theirs, and those of ours that it holds."""

    theirs: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    load: Callable[[Array], tuple[Array, ...]]
    dump: Callable[..., Array]


Rules = list[Rule]


def from_format(
    layer: Layer, tensors: Mapping[str, Array], format: str, *, prefix: str = ""
) -> dict[str, Any]:
    """The params of `layer` from the named arrays of another library, in the library these are arrays of.

    format: "torch" (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer and their
    stacks), "flax" (nnx), "keras", "equinox", "gpt2", "llama" (also Qwen and Mistral), "bert" (the last three
    as Hugging Face names them). prefix: only names that begin with it count, without it. Every name must be
    used and every parameter found: a ValueError lists what is not. `polyattn.weights.read(module)` gives
    the tensors of a module.

    >>> import numpy as np
    >>> from polyattn.layers import LayerNorm
    >>> from_format(LayerNorm(2, epsilon=1e-5), {"weight": np.ones(2), "bias": np.zeros(2)}, "torch")
    {'scale': array([1., 1.]), 'bias': array([0., 0.])}
    """
    rules = _rules("from_format", layer, format)
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
    rules = _rules("to_format", layer, format)
    check_params(f"polyattn.weights.to_format({layer.name.rpartition('.')[2]}, {format!r})", layer, params)
    flat = flatten(params)
    return {prefix + rule.theirs: rule.dump(*(flat[name] for name in rule.ours)) for rule in rules}


@dataclass(frozen=True)
class Format:
    """What a library calls the parts of each layer; an empty table where it has no such layer."""

    attention: Callable[[MultiHeadAttention], Rules]
    norm: Mapping[str, str]  # ours -> theirs
    rms_norm: Mapping[str, str] = field(default_factory=dict)  # where it is not as norm
    qk_norm: Mapping[str, str] = field(default_factory=dict)  # part -> prefix
    linear: Mapping[str, str] = field(default_factory=dict)
    mlp: Mapping[str, str] = field(default_factory=dict)
    encoder: Mapping[str, str] = field(default_factory=dict)  # part -> prefix
    decoder: Mapping[str, str] = field(default_factory=dict)
    stack: tuple[str, str] = ("", "")  # prefix of a block, prefix of the norm
    transposed: bool = True  # weights are (out, in)


def _rules(function: str, layer: Layer, name: str) -> Rules:
    if name not in FORMATS:
        raise ValueError(
            f"polyattn.weights.{function}: expected a format among {', '.join(FORMATS)}, got {name!r}"
        )
    try:
        return _of(FORMATS[name], layer)
    except LookupError as error:
        raise ValueError(
            f"polyattn.weights.{function}: expected a layer that {name!r} has, got {error}"
        ) from None


def _of(f: Format, layer: Layer) -> Rules:
    """The rules of a layer in a format, by its kind."""
    if isinstance(layer, MultiHeadAttention):
        if layer.qk_norm is None:
            return f.attention(layer)
        if not f.qk_norm:
            raise LookupError(f"{layer} with qk_norm")
        norms = (_part(f, layer.qk_norm, ours, theirs) for ours, theirs in f.qk_norm.items())
        return [*f.attention(layer), *(rule for norm in norms for rule in norm)]
    if isinstance(layer, LayerNorm | RMSNorm):
        names = f.rms_norm if f.rms_norm and isinstance(layer, RMSNorm) else f.norm
        return [_same(names[name], name, (layer.dim,)) for name in layer.parameters()]
    if isinstance(layer, Linear | MLP):
        names = f.mlp if isinstance(layer, MLP) else f.linear
        if missing := [name for name in layer.parameters() if name not in names]:
            raise LookupError(f"{layer} with {', '.join(missing)}")
        return [
            (_turned if len(p.shape) == 2 and f.transposed else _same)(names[name], name, p.shape)
            for name, p in layer.parameters().items()
        ]
    if isinstance(layer, Encoder | Decoder) and f.stack[0]:
        if layer.final_norm is not None and not f.stack[1]:
            raise LookupError(f"{layer} with final_norm")
        norm = [] if layer.final_norm is None else _part(f, layer.final_norm, "norm", f.stack[1])
        blocks = (_part(f, layer.block, f"block_{i}", f.stack[0].format(i)) for i in range(layer.depth))
        return [*(rule for block in blocks for rule in block), *norm]
    prefixes = (
        f.encoder
        if isinstance(layer, EncoderBlock)
        else f.decoder
        if isinstance(layer, EncoderDecoderAttention)
        else {}
    )
    parts = layer.parameters()
    if not prefixes or parts.keys() != prefixes.keys():
        raise LookupError(str(layer))
    return [rule for name, part in parts.items() for rule in _part(f, part, name, prefixes[name])]  # type: ignore[arg-type]


def _part(f: Format, layer: Layer, ours: str, theirs: str) -> Rules:
    """The rules of a part of a layer, with the prefixes of both sides."""
    return [
        rule._replace(theirs=theirs + rule.theirs, ours=tuple(f"{ours}.{name}" for name in rule.ours))
        for rule in _of(f, layer)
    ]


# one array


def _same(theirs: str, ours: str, shape: tuple[int, ...], as_shape: tuple[int, ...] | None = None) -> Rule:
    """The same numbers in the same order; theirs of another shape if `as_shape` is given."""
    target = shape if as_shape is None else as_shape
    return Rule(theirs, target, (ours,), lambda x: (_reshape(x, shape),), lambda x: _reshape(x, target))


def _turned(theirs: str, ours: str, shape: tuple[int, ...], inputs: int = 1) -> Rule:
    """Ours (in..., out...) with `inputs` input axes, theirs the transposed matrix (out, in)."""
    rows, columns = _product(shape[:inputs]), _product(shape[inputs:])
    return Rule(
        theirs,
        (columns, rows),
        (ours,),
        lambda x: (_reshape(_transpose(x), shape),),
        lambda x: _transpose(_reshape(x, (rows, columns))),
    )


def _reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return backend_of(x).xp.reshape(x, shape)


def _transpose(x: Array) -> Array:
    return backend_of(x).xp.matrix_transpose(x)


def _product(numbers: Sequence[int]) -> int:
    product = 1
    for n in numbers:
        product *= n
    return product


# attention


def _separate(
    names: Mapping[str, str], weight: str, bias: str, transposed: bool
) -> Callable[[MultiHeadAttention], Rules]:
    """Four linear maps with names of their own; flat (H D) where transposed, else with explicit heads."""

    def rules(layer: MultiHeadAttention) -> Rules:
        found: Rules = []
        for ours, parameter in layer.parameters().items():
            if not ours.startswith(("w_", "b_")):
                continue
            shape = parameter.shape  # type: ignore[union-attr]
            theirs = names[ours[2:]] + (weight if ours[0] == "w" else bias)
            if not transposed:
                found.append(_same(theirs, ours, shape))
            elif ours[0] == "w":
                found.append(_turned(theirs, ours, shape, inputs=2 if ours == "w_o" else 1))
            else:
                found.append(_same(theirs, ours, shape, (_product(shape),)))
        return found

    return rules


def _torch(layer: MultiHeadAttention) -> Rules:
    """torch.nn.MultiheadAttention: one matrix for q, k and v unless their inputs differ in width."""
    e, parameters = layer.embed_dim, layer.parameters()
    if (
        layer.num_heads * layer.width != e
        or layer.kv_heads != layer.num_heads
        or not layer.output_projection
        or layer.qkv_bias != layer.out_bias
    ):
        raise LookupError(
            f"{layer}, where torch.nn.MultiheadAttention has as many kv heads as heads, of width embed_dim / num_heads, "
            "an output projection, and a bias everywhere or nowhere"
        )
    heads = (e, layer.num_heads, layer.width)
    w, b = ("w_q", "w_k", "w_v"), ("b_q", "b_k", "b_v")
    if layer.source_dim == e:
        packed = Rule(
            "in_proj_weight",
            (3 * e, e),
            w,
            lambda x: tuple(_reshape(_transpose(x[i * e : (i + 1) * e, ...]), heads) for i in range(3)),
            lambda *xs: _concat([_transpose(_reshape(x, (e, e))) for x in xs], 0),
        )
        rules = [packed]
    else:
        rules = [_turned(f"{name[2:]}_proj_weight", name, parameters[name].shape) for name in w]  # type: ignore[union-attr]
    if layer.qkv_bias:
        rules.append(
            Rule(
                "in_proj_bias",
                (3 * e,),
                b,
                lambda x: tuple(_reshape(x[i * e : (i + 1) * e], heads[1:]) for i in range(3)),
                lambda *xs: _concat([_reshape(x, (e,)) for x in xs], 0),
            )
        )
    rules.append(_turned("out_proj.weight", "w_o", parameters["w_o"].shape, inputs=2))  # type: ignore[union-attr]
    return [*rules, _same("out_proj.bias", "b_o", (e,))] if layer.out_bias else rules


def _gpt2(layer: MultiHeadAttention) -> Rules:
    """transformers' GPT2Attention: q, k and v side by side in a matrix that is not transposed (Conv1D)."""
    e = layer.embed_dim
    if (
        layer.num_heads * layer.width != e
        or layer.kv_heads != layer.num_heads
        or layer.source_dim != e
        or not (layer.output_projection and layer.qkv_bias and layer.out_bias)
    ):
        raise LookupError(
            f"{layer}, where GPT-2 has as many kv heads as heads, of width embed_dim / num_heads, an output projection, "
            "and a bias everywhere"
        )
    heads = (layer.num_heads, layer.width)
    return [
        Rule(
            "c_attn.weight",
            (e, 3 * e),
            ("w_q", "w_k", "w_v"),
            lambda x: tuple(_reshape(x[:, i * e : (i + 1) * e], (e, *heads)) for i in range(3)),
            lambda *xs: _concat([_reshape(x, (e, e)) for x in xs], 1),
        ),
        Rule(
            "c_attn.bias",
            (3 * e,),
            ("b_q", "b_k", "b_v"),
            lambda x: tuple(_reshape(x[i * e : (i + 1) * e], heads) for i in range(3)),
            lambda *xs: _concat([_reshape(x, (e,)) for x in xs], 0),
        ),
        _same("c_proj.weight", "w_o", (*heads, e), (e, e)),
        _same("c_proj.bias", "b_o", (e,)),
    ]


def _concat(xs: Sequence[Array], axis: int) -> Array:
    return backend_of(xs[0]).xp.concat(tuple(xs), axis=axis)


_AFFINE = {"scale": "weight", "bias": "bias"}
_LINEAR = {"w": "weight", "b": "bias"}

#: The formats that are known, by name.
FORMATS: Mapping[str, Format] = {
    "torch": Format(
        _torch,
        _AFFINE,
        linear=_LINEAR,
        mlp={
            "w_in": "linear1.weight",
            "b_in": "linear1.bias",
            "w_out": "linear2.weight",
            "b_out": "linear2.bias",
        },
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
        _separate({"q": "query", "k": "key", "v": "value", "o": "out"}, ".kernel", ".bias", False),
        {"scale": "scale", "bias": "bias"},
        qk_norm={"q_norm": "query_ln.", "k_norm": "key_ln."},
        linear={"w": "kernel", "b": "bias"},
        transposed=False,
    ),
    "keras": Format(
        _separate(
            {"q": "query", "k": "key", "v": "value", "o": "attention_output"}, "/kernel", "/bias", False
        ),
        {"scale": "gamma", "bias": "beta"},
        rms_norm={"scale": "scale"},
        linear={"w": "kernel", "b": "bias"},
        transposed=False,
    ),
    "equinox": Format(
        _separate(
            {"q": "query_proj", "k": "key_proj", "v": "value_proj", "o": "output_proj"},
            ".weight",
            ".bias",
            True,
        ),
        _AFFINE,
        linear=_LINEAR,
    ),
    "gpt2": Format(
        _gpt2,
        _AFFINE,
        linear=_LINEAR,
        mlp={"w_in": "c_fc.weight", "b_in": "c_fc.bias", "w_out": "c_proj.weight", "b_out": "c_proj.bias"},
        encoder={"attention": "attn.", "norm_1": "ln_1.", "mlp": "mlp.", "norm_2": "ln_2."},
        stack=("h.{}.", "ln_f."),
        transposed=False,
    ),
    "llama": Format(
        _separate({"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}, ".weight", ".bias", True),
        _AFFINE,
        qk_norm={"q_norm": "q_norm.", "k_norm": "k_norm."},
        linear=_LINEAR,
        mlp={
            "w_in": "up_proj.weight",
            "w_gate": "gate_proj.weight",
            "w_out": "down_proj.weight",
            "b_in": "up_proj.bias",
            "b_gate": "gate_proj.bias",
            "b_out": "down_proj.bias",
        },
        encoder={
            "attention": "self_attn.",
            "norm_1": "input_layernorm.",
            "mlp": "mlp.",
            "norm_2": "post_attention_layernorm.",
        },
        stack=("layers.{}.", "norm."),
    ),
    "bert": Format(
        _separate(
            {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"},
            ".weight",
            ".bias",
            True,
        ),
        _AFFINE,
        linear=_LINEAR,
        mlp={
            "w_in": "intermediate.dense.weight",
            "b_in": "intermediate.dense.bias",
            "w_out": "output.dense.weight",
            "b_out": "output.dense.bias",
        },
        encoder={
            "attention": "attention.",
            "norm_1": "attention.output.LayerNorm.",
            "mlp": "",
            "norm_2": "output.LayerNorm.",
        },
        stack=("layer.{}.", ""),
    ),
}
