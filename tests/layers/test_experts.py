"""A mixture of experts is the sum that its formula says, however many tokens ask, on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shared.running import LIBRARIES, applied, drawn, normal

from polyattn import layers
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.rounding import noise

Floats = np.ndarray[Any, Any]
MLP = layers.MLP(6, 5, activation="swiglu", use_bias=False)
ROOM = 4.0  # as eta has it


def silu(x: Any) -> Any:
    return x / (1.0 + np.exp(-x))


def clipped(gate: Any, up: Any) -> Any:
    gate = gate + np.minimum(7.0 - gate, 0.0)
    up = up + np.minimum(7.0 - up, 0.0) + np.maximum(-7.0 - up, 0.0)
    return gate / (1.0 + np.exp(-1.702 * gate)) * (up + 1.0)


def one_token(layer: layers.MixtureOfExperts, p: Any, x: Any) -> Any:
    """The formula for one token (E,), an expert at a time."""
    logits = np.stack([(p["w_router"][:, e] * x).sum() for e in range(layer.num_experts)])
    logits = logits + p.get("b_router", 0.0)
    p_of = 1.0 / (1.0 + np.exp(-logits))
    if layer.scores == "softmax":
        p_of = np.exp(logits) / np.exp(logits).sum()
    ranked = np.asarray(p_of + p.get("correction", 0.0), np.float64)
    groups = ranked.reshape(layer.groups, -1)
    two = np.sort(groups, axis=1)[:, -2:].sum(1)
    allowed = [set(np.argsort(-two, kind="stable")[: layer.top_groups])][0]
    members = groups.shape[1]
    order = [e for e in np.argsort(-ranked, kind="stable") if layer.groups == 1 or e // members in allowed]
    asked = order[: layer.top_k]
    total = sum(p_of[e] for e in asked) if layer.normalized else 1.0
    out: Any = 0.0
    for e in asked:
        up, gate = (x @ p[f"w_{n}"][e] + (p[f"b_{n}"][e] if layer.use_bias else 0.0) for n in ("in", "gate"))
        hidden = clipped(gate, up) if layer.activation == "clipped_swiglu" else silu(gate) * up
        y = hidden @ p["w_out"][e] + (p["b_out"][e] if layer.use_bias else 0.0)
        out = out + layer.scale * p_of[e] / total * y
    if layer.shared is not None:
        s = p["shared"]
        everyone = (silu(x @ s["w_gate"]) * (x @ s["w_in"])) @ s["w_out"]
        out = out + (everyone / (1.0 + np.exp(-(x @ p["w_shared"]))) if layer.shared_gate else everyone)
    return out


def formula(layer: layers.MixtureOfExperts, p: Any, x: Any) -> Any:
    tokens = x.reshape(-1, x.shape[-1])
    return np.stack([one_token(layer, p, token) for token in tokens]).reshape(x.shape)


def mixture(**changes: Any) -> layers.MixtureOfExperts:
    own: dict[str, Any] = {"num_experts": 6, "top_k": 2, "activation": "swiglu", "shared": None}
    return layers.MixtureOfExperts(6, 4, **(own | changes))


KINDS = {
    "softmax": mixture(),
    "not normalized": mixture(normalized=False, scale=1.5),
    "gpt-oss": mixture(activation="clipped_swiglu", use_bias=True, router_bias=True),
    "Qwen3-Next": mixture(shared=MLP, shared_gate=True),
    "DeepSeek-V3": mixture(
        shared=MLP, scores="sigmoid", correction=True, groups=3, top_groups=2, scale=2.5, top_k=3
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def off(layer: layers.MixtureOfExperts, found: Floats, p: Any, x: Floats, dtype: str) -> float:
    def f(number: Any) -> Any:
        return formula(layer, {n: number(w) if not isinstance(w, dict) else {m: number(v) for m, v in w.items()} for n, w in p.items()}, number(x))  # fmt: skip

    unit = noise(f) * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]
    return float(np.abs(found - formula(layer, p, x)).max() / unit)


@every_kind
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 1, 6)], ids=["many tokens", "one token"])
def test_it_is_the_sum_of_the_experts_that_are_asked(kind: str, library: str, shape: tuple[int, ...]) -> None:
    layer = KINDS[kind]
    params, x = drawn(layer), normal(*shape)
    assert off(layer, applied(library, layer, params, x), params, x, "float32") <= ROOM


@every_kind
def test_a_token_asks_the_same_experts_alone_as_among_many(kind: str) -> None:
    layer = KINDS[kind]
    params, x = drawn(layer, seed=3), normal(1, 7, 6)
    alone = np.concatenate([layer(params, x[:, i : i + 1]) for i in range(7)], axis=1)
    assert off(layer, alone, params, x, "float64") <= ROOM
    assert off(layer, layer(params, x), params, x, "float64") <= ROOM


@every_kind
def test_gradients_are_those_of_differences(kind: str) -> None:
    from polyattn_autograd import value_and_grad

    layer = KINDS[kind]
    params, x, along = drawn(layer), normal(1, 5, 6), normal(1, 5, 6, seed=9)

    def loss(p: Any, x: Any) -> Any:
        return np.sum(layer(p, x) * along)

    _, found = value_and_grad(loss)(params, x)
    step = 2.0**-18
    for name in ("w_router", "w_in", "w_out"):
        for index in ((0, 1), (2, 3)) if name == "w_router" else ((0, 1, 2), (4, 2, 3)):
            there, back = (params | {name: params[name].copy()} for _ in range(2))
            there[name][index] += step
            back[name][index] -= step
            slope = (loss(there, x) - loss(back, x)) / (2 * step)
            assert abs(found[name][index] - slope) <= 2.0**-20 * max(1.0, abs(slope)), (name, index)


def test_a_correction_chooses_and_does_not_weigh() -> None:
    layer = mixture(correction=True, top_k=1)
    params, x = drawn(layer), normal(1, 4, 6)
    params["correction"] = np.where(np.arange(6) == 4, 100.0, 0.0)
    alone = mixture(num_experts=1, top_k=1)
    only = {n: w[4:5] for n, w in params.items() if n[2:] in ("in", "gate", "out")} | {
        "w_router": np.zeros((6, 1))
    }
    assert np.abs(layer(params, x) - alone(only, x)).max() <= 2.0**-45


REFUSED = {
    "top_k": ({"top_k": 7}, "expected top_k of at most 6, the experts that may be asked, got 7; a token cannot ask one twice"),
    "groups": ({"groups": 4}, "expected groups of equally many experts, two at least, of which top_groups are asked, got 6 experts, groups=4 and top_groups=1; change one of them"),
    "a group of one": ({"groups": 6}, "expected groups of equally many experts, two at least, of which top_groups are asked, got 6 experts, groups=6 and top_groups=1; change one of them"),
    "a gate of nothing": ({"shared_gate": True}, "expected a shared MLP with shared_gate, got None; leave the gate out"),
    "activation": ({"activation": "tanh"}, "expected activation among relu, gelu, gelu_tanh, silu, swiglu, geglu, geglu_tanh, clipped_swiglu, got 'tanh'; take the one that the model was trained with"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_mixture_that_cannot_be_is_refused_in_a_sentence(name: str) -> None:
    changes, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        mixture(**changes)
    assert str(caught.value) == f"polyattn.layers.MixtureOfExperts: {sentence}"
