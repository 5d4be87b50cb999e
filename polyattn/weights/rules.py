"""One array of another library and those of ours that it holds: the same, transposed, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer, MultiHeadAttention, Parameter

__all__ = ["Rule", "gpt2_attention", "packed", "same", "separate", "shapes", "torch_attention", "turned"]


class Rule(NamedTuple):
    """One array of theirs, and those of ours that it holds."""

    theirs: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]
    load: Callable[[Array], tuple[Array, ...]]
    dump: Callable[..., Array]


def same(theirs: str, ours: str, shape: tuple[int, ...], as_shape: tuple[int, ...] | None = None) -> Rule:
    """The same numbers in the same order; theirs of another shape if `as_shape` is given."""
    target = shape if as_shape is None else as_shape
    return Rule(theirs, target, (ours,), lambda x: (_reshape(x, shape),), lambda x: _reshape(x, target))


def turned(theirs: str, ours: str, shape: tuple[int, ...], inputs: int = 1) -> Rule:
    """Ours (in..., out...) with `inputs` input axes, theirs the transposed matrix (out, in)."""
    rows, columns = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return Rule(
        theirs,
        (columns, rows),
        (ours,),
        lambda x: (_reshape(_transpose(x), shape),),
        lambda x: _transpose(_reshape(x, (rows, columns))),
    )


def packed(theirs: str, rules: Sequence[Rule], axis: int) -> Rule:
    """The arrays of several rules, equally large, one after the other along an axis."""
    shape = list(rules[0].shape)
    size = shape[axis]
    shape[axis] *= len(rules)

    def load(x: Array) -> tuple[Array, ...]:
        places = (slice(i * size, (i + 1) * size) for i in range(len(rules)))
        pieces = (x[(slice(None),) * axis + (place, ...)] for place in places)
        return tuple(y for rule, piece in zip(rules, pieces, strict=True) for y in rule.load(piece))

    def dump(*xs: Array) -> Array:
        parts = tuple(rule.dump(x) for rule, x in zip(rules, xs, strict=True))
        return backend_of(xs[0]).xp.concat(parts, axis=axis)

    return Rule(theirs, tuple(shape), tuple(name for rule in rules for name in rule.ours), load, dump)


def shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a layer itself, without those of its parts."""
    return {name: p.shape for name, p in layer.parameters().items() if isinstance(p, Parameter)}


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
            theirs = name_of[ours[2:]] + (weight if ours[0] == "w" else bias)
            if not transposed:
                found.append(same(theirs, ours, shape))
            elif ours[0] == "w":
                found.append(turned(theirs, ours, shape, inputs=2 if ours == "w_o" else 1))
            else:
                found.append(same(theirs, ours, shape, (math.prod(shape),)))
        return found

    return rules


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
    )


def _reshape(x: Array, shape: tuple[int, ...]) -> Array:
    return backend_of(x).xp.reshape(x, shape)


def _transpose(x: Array) -> Array:
    return backend_of(x).xp.matrix_transpose(x)
