"""Attention with planted causes, in plain NumPy: each is named from inputs and outputs alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polyattn.parity.components import Facts, explain
from polyattn.weights import half_to_interleaved

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
E, H, KV, D, L = 48, 6, 2, 8, 12
X = RNG.normal(size=(2, L, E))
ARRAYS = {
    name: RNG.normal(size=shape) / 5
    for name, shape in {
        "q.weight": (E, H * D),
        "k.weight": (E, KV * D),
        "v.weight": (E, KV * D),
        "o.weight": (H * D, E),
        "q.bias": (H * D,),
        "k.bias": (KV * D,),
        "v.bias": (KV * D,),
        "o.bias": (E,),
    }.items()
}
NORMS = {"q_norm.weight": RNG.normal(size=D) + 1.5, "k_norm.weight": RNG.normal(size=D) + 1.5}
NUMBERS: dict[str, Any] = {
    "heads": H,
    "kv_heads": KV,
    "head_dim": D,
    "scale": D**-0.5,
    "is_causal": True,
    "rotary_base": 10000.0,
}
UNIT = 3e-7


def rms(x: Floats, w: Floats | float, eps: float = 1e-6) -> Floats:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def turn(x: Floats, interleaved: bool = False) -> Floats:
    """(B, H, L, D) turned to positions 0, 1, ..."""
    angle = np.arange(x.shape[2])[:, None] * 10000.0 ** (-2 * np.arange(D // 2) / D)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : D // 2], x[..., D // 2 :])
    turned = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return np.stack(turned, -1).reshape(x.shape) if interleaved else np.concatenate(turned, -1)


def attend(
    w: dict[str, Floats] = ARRAYS, x: Floats = X, *, causal: bool = True, scale: float = D**-0.5, rotary: Any = turn, norm: Any = None,
    keys: Any = turn, tiled: bool = False, hidden: Floats | None = None, window: int | None = None,
) -> Floats:  # fmt: skip
    def heads(name: str) -> Floats:
        y = x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)
        y = y.reshape(*y.shape[:-1], -1, D)
        y = y if norm is None or name == "v" else norm(y, name)
        return y.swapaxes(1, 2)

    q, k, v = rotary(heads("q")), keys(heads("k")) if rotary is turn else rotary(heads("k")), heads("v")
    k, v = (np.tile(y, (1, H // KV, 1, 1)) if tiled else np.repeat(y, H // KV, 1) for y in (k, v))
    s = scale * q @ k.swapaxes(-1, -2)
    back = np.arange(L)[:, None] - np.arange(L)
    if causal:
        s = np.where(back >= 0, s, -np.inf)
    if window is not None:
        s = np.where(back < window, s, -np.inf)
    if hidden is not None:
        s = np.where(hidden[:, None, None, :], -np.inf, s)
    p = np.exp(s - s.max(-1, keepdims=True))
    out = (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2)
    out = out.reshape(*out.shape[:2], -1)
    return out if "o.weight" not in w else out @ w["o.weight"] + w.get("o.bias", 0.0)


def without(*names: str) -> dict[str, Floats]:
    return {n: x for n, x in ARRAYS.items() if n not in names}


def other(**arrays: Floats) -> dict[str, Floats]:
    return ARRAYS | {n.replace("_", "."): x for n, x in arrays.items()}


FACTS = Facts("attention", ARRAYS, NUMBERS)


def why(
    seen: Floats,
    expected: Floats | None = None,
    facts: Facts = FACTS,
    port: Facts | None = None,
    inputs: Any = (X,),
) -> str | None:
    right = attend() if expected is None else expected
    f32 = [y.astype(np.float32) for y in (right, seen)]
    return explain(facts, port, inputs, f32[0], f32[1], unit=UNIT)


def pairs(w: Floats) -> Floats:
    return np.asarray(half_to_interleaved(w.reshape(*w.shape[:-1], -1, D))).reshape(w.shape)


def identity(x: Floats) -> Floats:
    return x


Q, K, V, O = (ARRAYS[f"{n}.weight"] for n in "qkvo")  # noqa: E741


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (attend(without("q.bias")), "bias of the query projection missing"),
        (attend(without("o.bias")), "bias of the output projection missing"),
        (
            attend(without("q.bias", "k.bias", "v.bias")),
            "biases of the query, key, value projections missing",
        ),
        (attend(without("q.bias", "k.bias", "v.bias", "o.bias")), "all biases missing"),
        (attend(other(o_weight=O.T)), "weight of the output projection transposed"),
        (attend(other(q_weight=Q.T)), "weight of the query projection transposed"),
        (
            attend(other(k_weight=V, v_weight=K, k_bias=ARRAYS["v.bias"], v_bias=ARRAYS["k.bias"])),
            "key and value projections exchanged",
        ),
        (attend(without("o.weight", "o.bias")), "output projection left out"),
        (attend(tiled=True), "kv heads tiled: query head h reads kv head h % Hkv, not h // G"),
        (attend(rotary=identity), "rotary not applied"),
        (attend(keys=identity), "rotary on the queries alone"),
        (
            attend(rotary=lambda x: turn(x, True)),
            "rotary pairs of neighbours (0, 1), (2, 3), ..., not of halves",
        ),
        (
            attend(
                other(
                    q_weight=pairs(Q),
                    k_weight=pairs(K),
                    q_bias=pairs(ARRAYS["q.bias"]),
                    k_bias=pairs(ARRAYS["k.bias"]),
                )
            ),
            "columns of the query and key projection in rotary order of pairs, as Meta's Llama has it, and the rotation is not",
        ),
        (attend(causal=False), "causal mask ignored"),
        (attend(scale=1.0), "scale = 1 (scores not divided)"),
        (attend(scale=E**-0.5), "scale = 1/sqrt(48) (model width, not head width)"),
        (0.5 * attend(), "output multiplied by 0.5"),
        (attend(), None),
        (RNG.normal(size=X.shape), None),
    ],
)
def test_of_attention_the_planted_cause_is_said(seen: Floats, said: str | None) -> None:
    assert why(seen) == said


def test_norms_of_queries_and_keys_are_named() -> None:
    def normed(y: Floats, name: str, eps: float = 1e-6) -> Floats:
        return rms(y, NORMS[f"{name}_norm.weight"], eps)

    facts = replace(
        FACTS,
        arrays=ARRAYS | NORMS,
        numbers=NUMBERS
        | {"qk_norm_eps": 1e-6, "qk_norm_subtracts_mean": False, "qk_norm_weight_plus_one": False},
    )
    right = attend(norm=normed)
    assert why(attend(), right, facts) == "norm of queries and keys missing"
    assert (
        why(attend(norm=lambda y, n: normed(y, n, 1e-3)), right, facts)
        == "epsilon of the norm of queries and keys 0.001, not 1e-06"
    )
    plus = why(attend(norm=lambda y, n: rms(y, 1 + NORMS[f"{n}_norm.weight"])), right, facts)
    assert plus == "norm of queries and keys with 1 + weight for weight"
    assert (
        why(attend(norm=lambda y, n: normed(y, n) if n == "k" else y), right, facts)
        == "norm of queries missing"
    )


def test_packings_taken_apart_otherwise_are_named() -> None:
    arrays = {f"{n}.weight": RNG.normal(size=(E, E)) / 6 for n in "qkvo"}
    facts = Facts("attention", arrays, {"heads": H, "kv_heads": H, "head_dim": D, "scale": D**-0.5})

    def plain(w: dict[str, Floats]) -> Floats:
        q, k, v = ((X @ w[f"{n}.weight"]).reshape(2, L, H, D).swapaxes(1, 2) for n in "qkv")
        s = D**-0.5 * q @ k.swapaxes(-1, -2)
        p = np.exp(s - s.max(-1, keepdims=True))
        return (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(X.shape) @ w["o.weight"]

    thirds = np.concatenate([arrays[f"{n}.weight"] for n in "qkv"], 1)
    by_head = thirds.reshape(E, H, 3, D)
    wrong = arrays | {f"{n}.weight": by_head[:, :, i].reshape(E, E) for i, n in enumerate("qkv")}
    said = why(plain(wrong), plain(arrays), facts)
    assert said == "query, key and value packed side by side and taken apart head by head"


def test_masks_and_windows_among_the_inputs_are_read() -> None:
    hidden = np.zeros((2, L), bool)
    hidden[1, 9:] = True
    additive = np.where(hidden, np.float32(-3.4e38), np.float32(0))[:, None, None, :]
    inputs = (X, additive)
    facts = replace(FACTS, numbers=NUMBERS | {"is_causal": False})
    right = attend(causal=False, hidden=hidden)
    assert why(attend(causal=False), right, facts, inputs=inputs) == "mask ignored"
    banded = attend(window=4)
    windowed = replace(FACTS, numbers=NUMBERS | {"window": 4})
    assert why(attend(), banded, windowed) == "window ignored"
    said = why(attend(window=5), banded, windowed)
    assert said is not None
    assert "window off by one" in said


def test_angles_among_the_inputs_are_read() -> None:
    angle = np.arange(L)[:, None] * 10000.0 ** (-2 * np.arange(D // 2) / D)
    cos, sin = (np.concatenate((f(angle), f(angle)), -1)[None] for f in (np.cos, np.sin))
    facts = replace(FACTS, numbers={n: x for n, x in NUMBERS.items() if n != "rotary_base"})
    assert why(attend(rotary=identity), facts=facts, inputs=(X, cos, sin)) == "rotary not applied"
    assert (
        why(attend(rotary=identity), facts=facts, inputs=(X,)) is None
    )  # without them nothing gives what was expected


def test_the_arrays_of_the_port_are_compared() -> None:
    port = Facts("attention", other(v_weight=-V), NUMBERS)
    assert why(attend(other(v_weight=-V)), port=port) == "v.weight of the port is negated"
    fresh = RNG.normal(size=Q.shape) * 0.02
    said = why(attend(other(q_weight=fresh)), port=Facts("attention", other(q_weight=fresh), NUMBERS))
    assert said is not None
    assert said.startswith("q.weight of the port has nothing in common with the reference")


def test_heads_before_the_output_projection_are_explained() -> None:
    facts = replace(FACTS, arrays=without("o.weight", "o.bias"))
    right = attend(without("o.weight", "o.bias"))
    assert why(attend(without("o.weight", "o.bias"), causal=False), right, facts) == "causal mask ignored"


def test_a_reference_that_its_facts_do_not_give_proves_nothing() -> None:
    strange = Facts("attention", other(q_weight=Q + 0.1), NUMBERS)
    assert why(attend(causal=False), facts=strange) is None
