"""Recurrent layers as Hugging Face's transformers names and packs them."""

from __future__ import annotations

import math

from polyattn.layers import (
    GatedDeltaNet,
    KimiDeltaAttention,
    Layer,
    LightningAttention,
    RecurrentLayer,
)
from polyattn.weights.rules import Rule, Shapes, by_group, picked, same, shapes, turned

__all__ = ["kimi_linear", "minimax", "qwen3_next"]


def qwen3_next(layer: Layer) -> list[Rule]:
    """Qwen3NextGatedDeltaNet: per head of keys, the query, the key, the values and gates that belong to it."""
    if not isinstance(layer, GatedDeltaNet):
        raise LookupError(str(layer))
    own = shapes(layer)
    return [
        by_group("in_proj_qkvz.weight", picked(own, "w_q w_k w_v w_gate"), layer.num_heads),
        by_group("in_proj_ba.weight", picked(own, "w_beta w_decay"), layer.num_heads),
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
        by_group("qkv_proj.weight", picked(own, "w_q w_k w_v"), layer.num_heads),
        turned("output_gate.weight", "w_gate", own["w_gate"]),
        *_output(layer, own, "norm.weight", "out_proj.weight"),
    ]


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
