"""Experts as Hugging Face's transformers stacks them."""

from __future__ import annotations

from collections.abc import Callable

from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer, MixtureOfExperts
from polyattn.weights.rules import Rule, same, shapes, turned

__all__ = ["deepseek_experts", "gpt_oss_experts", "qwen3_next_experts"]


def gpt_oss_experts(layer: Layer) -> list[Rule]:
    """GptOssMLP: gate and input side by side, entry by entry, nothing transposed."""
    own = _shapes(layer, shared=False)
    pairs = [_pair("experts.gate_up_proj", own, "w_gate", "w_in", transposed=False, interleaved=True)]
    if "b_in" in own:
        pairs.append(
            _pair("experts.gate_up_proj_bias", own, "b_gate", "b_in", transposed=False, interleaved=True)
        )
        pairs.append(same("experts.down_proj_bias", "b_out", own["b_out"]))
    router = turned("router.weight", "w_router", own["w_router"])
    biased = [same("router.bias", "b_router", own["b_router"])] if "b_router" in own else []
    return [*pairs, same("experts.down_proj", "w_out", own["w_out"]), router, *biased]


def qwen3_next_experts(layer: Layer) -> list[Rule]:
    """Qwen3NextSparseMoeBlock, without the shared MLP, which is a part."""
    own = _shapes(layer, shared=True)
    gate = [turned("shared_expert_gate.weight", "w_shared", own["w_shared"])] if "w_shared" in own else []
    return [*_stacked(own), turned("gate.weight", "w_router", own["w_router"]), *gate]


def deepseek_experts(layer: Layer) -> list[Rule]:
    """DeepseekV3MoE and KimiLinearMoE, without the shared MLP, which is a part."""
    own = _shapes(layer, shared=True)
    correction = (
        [same("gate.e_score_correction_bias", "correction", own["correction"])] if "correction" in own else []
    )
    return [*_stacked(own), turned("gate.weight", "w_router", own["w_router"]), *correction]


def _shapes(layer: Layer, *, shared: bool) -> dict[str, tuple[int, ...]]:
    if not isinstance(layer, MixtureOfExperts) or (layer.shared is not None) != shared:
        raise LookupError(f"{layer}, where {'an MLP that every token asks' if shared else 'none'} is shared")
    own = shapes(layer)
    if "w_gate" not in own or ("b_in" in own and shared):
        raise LookupError(f"{layer}, where experts have a gate{' and no bias' if shared else ''}")
    return own


def _stacked(own: dict[str, tuple[int, ...]]) -> list[Rule]:
    experts, hidden, embed = own["w_out"]
    down = Rule("experts.down_proj", (experts, embed, hidden), ("w_out",), lambda x: (_turn(x),), _turn)
    return [_pair("experts.gate_up_proj", own, "w_gate", "w_in", transposed=True, interleaved=False), down]


def _pair(
    theirs: str,
    own: dict[str, tuple[int, ...]],
    first: str,
    second: str,
    *,
    transposed: bool,
    interleaved: bool,
) -> Rule:
    """Two arrays of ours in one of theirs, side by side along the last axis, or in turns."""
    *lead, width = own[first]
    whole = (*lead, 2 * width)
    turn: Callable[[Array], Array] = _turn if transposed else lambda x: x

    def load(x: Array) -> tuple[Array, ...]:
        x = turn(x)
        return (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :width], x[..., width:])

    def dump(a: Array, b: Array) -> Array:
        xp = backend_of(a).xp
        return turn(
            xp.reshape(xp.stack((a, b), axis=-1), whole) if interleaved else xp.concat((a, b), axis=-1)
        )

    shape = (*lead[:-1], 2 * width, lead[-1]) if transposed else whole
    return Rule(theirs, shape, (first, second), load, dump)


def _turn(x: Array) -> Array:
    return backend_of(x).xp.matrix_transpose(x)
