"""Recurrent layers as Hugging Face's transformers names and packs them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from polyattn.arrays import Array, backend_of
from polyattn.layers import (
    GatedDeltaNet,
    KimiDeltaAttention,
    Layer,
    LightningAttention,
    RecurrentLayer,
)
from polyattn.weights.rules import Rule, same, shapes, turned

__all__ = ["kimi_linear", "minimax", "none_such", "qwen3_next"]

Shapes = Mapping[str, tuple[int, ...]]


def qwen3_next(layer: Layer) -> list[Rule]:
    """Qwen3NextGatedDeltaNet: per head of keys, the query, the key, the values and gates that belong to it."""
    if not isinstance(layer, GatedDeltaNet):
        raise LookupError(str(layer))
    own = shapes(layer)
    return [
        by_group("in_proj_qkvz.weight", _picked(own, "w_q w_k w_v w_gate"), layer.num_heads),
        by_group("in_proj_ba.weight", _picked(own, "w_beta w_decay"), layer.num_heads),
        _convolution(own),
        same("A_log", "a_log", own["a_log"]),
        same("dt_bias", "dt_bias", own["dt_bias"]),
        *_output(layer, own, "norm.weight", "out_proj.weight"),
    ]


def kimi_linear(layer: Layer) -> list[Rule]:
    """KimiLinearDeltaAttention."""
    if not isinstance(layer, KimiDeltaAttention):
        raise LookupError(str(layer))
    own = shapes(layer)
    maps = {
        "w_q": "q_proj",
        "w_k": "k_proj",
        "w_v": "v_proj",
        "w_beta": "b_proj",
        "w_decay_in": "forget_gate.f_a_proj",
        "w_decay_out": "forget_gate.f_b_proj",
        "w_gate_in": "g_a_proj",
        "w_gate_out": "g_b_proj",
    }
    return [
        *(turned(f"{theirs}.weight", ours, own[ours]) for ours, theirs in maps.items()),
        _convolution(own),
        same("forget_gate.A_log", "a_log", own["a_log"], (1, 1, *own["a_log"], 1)),
        same("forget_gate.dt_bias", "dt_bias", own["dt_bias"], (math.prod(own["dt_bias"]),)),
        *_output(layer, own, "o_norm.weight", "o_proj.weight"),
    ]


def minimax(layer: Layer) -> list[Rule]:
    """MiniMaxLightningAttention, without its buffers: they are the slopes, worked out."""
    if not isinstance(layer, LightningAttention):
        raise LookupError(str(layer))
    own = shapes(layer)
    return [
        by_group("qkv_proj.weight", _picked(own, "w_q w_k w_v"), layer.num_heads),
        turned("output_gate.weight", "w_gate", own["w_gate"]),
        *_output(layer, own, "norm.weight", "out_proj.weight"),
    ]


def none_such(layer: Layer) -> list[Rule]:
    """Where a format has no layer of a kind, or none that is ours."""
    raise LookupError(str(layer))


def by_group(theirs: str, ours: Shapes, groups: int) -> Rule:
    """Ours (in, out...), theirs one matrix (out, in) in which each of the groups has its part of each."""
    sizes = [math.prod(shape[1:]) // groups for shape in ours.values()]
    inputs = next(iter(ours.values()))[0]

    def load(x: Array) -> tuple[Array, ...]:
        xp = backend_of(x).xp
        x, found, start = xp.reshape(x, (groups, sum(sizes), inputs)), [], 0
        for size, shape in zip(sizes, ours.values(), strict=True):
            part = xp.reshape(x[:, start : start + size, :], (groups * size, inputs))
            found.append(xp.reshape(xp.matrix_transpose(part), shape))
            start += size
        return tuple(found)

    def dump(*xs: Array) -> Array:
        xp = backend_of(xs[0]).xp
        parts = [
            xp.reshape(xp.matrix_transpose(xp.reshape(x, (inputs, groups * size))), (groups, size, inputs))
            for x, size in zip(xs, sizes, strict=True)
        ]
        return xp.reshape(xp.concat(parts, axis=1), (groups * sum(sizes), inputs))

    return Rule(theirs, (groups * sum(sizes), inputs), tuple(ours), load, dump)


def _picked(own: Shapes, names: str) -> dict[str, tuple[int, ...]]:
    return {name: own[name] for name in names.split()}


def _convolution(own: Shapes) -> Rule:
    """torch.nn.Conv1d with a group for each channel: (channels, 1, k)."""
    taps, channels = own["conv"]
    rule = turned("conv1d.weight", "conv", own["conv"])
    return rule._replace(
        shape=(channels, 1, taps),
        load=lambda x: rule.load(x[:, 0, :]),
        dump=lambda x: rule.dump(x)[:, None, :],
    )


def _output(layer: RecurrentLayer, own: Shapes, norm: str, w_o: str) -> list[Rule]:
    scale = layer.shapes()["norm"]["scale"]
    return [same(norm, "norm.scale", scale), turned(w_o, "w_o", own["w_o"], inputs=2)]
