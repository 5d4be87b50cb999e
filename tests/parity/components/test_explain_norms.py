"""Norms, activations and embeddings with planted causes, in plain NumPy: each is named, and right ones are not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyattn.parity.components import Facts, explain
from polyattn.truth.measure import round_to

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 12, 64)) * np.exp(RNG.normal(size=(2, 12, 1)))
W, B = RNG.normal(size=64) + 1.5, RNG.normal(size=64)
UNIT = 2e-7  # of outputs around 1 in float32
LAYER = Facts(
    "norm", {"weight": W, "bias": B}, {"eps": 1e-5, "subtracts_mean": True, "weight_plus_one": False}
)
RMS = Facts("norm", {"weight": W}, {"eps": 1e-6, "subtracts_mean": False, "weight_plus_one": False})
GEMMA = Facts("norm", {"weight": W}, {"eps": 1e-6, "subtracts_mean": False, "weight_plus_one": True})


def layer(x: Floats, w: Floats | float = W, b: Floats | float = B, eps: float = 1e-5, n: int = 0) -> Floats:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).sum(-1, keepdims=True) / (x.shape[-1] - n) + eps) * w + b


def root(x: Floats, w: Floats | float = W, eps: float = 1e-6, axis: Any = -1) -> Floats:
    return x / np.sqrt((x * x).mean(axis, keepdims=True) + eps) * w


def in_float32(x: Floats) -> Floats:
    return x.astype(np.float32).astype(np.float64)


def why(facts: Facts, expected: Floats, seen: Floats, x: Floats = X, port: Facts | None = None) -> str | None:
    unit = UNIT * max(1.0, float(np.sqrt((expected**2).mean())))
    return explain(facts, port, (x,), in_float32(expected), in_float32(seen), unit=unit)


SMALL = X * 0.03


@pytest.mark.parametrize(
    ("facts", "right", "wrong", "said"),
    [
        (LAYER, layer, lambda x: layer(x, eps=1e-12), "epsilon 1e-12, not 1e-05"),
        (LAYER, layer, lambda x: layer(x, eps=1e-3), "epsilon 0.001, not 1e-05"),
        (LAYER, layer, lambda x: layer(x, eps=3e-4), "epsilon 0.0003, not 1e-05"),
        (LAYER, layer, lambda x: layer(x, b=0.0), "bias missing"),
        (LAYER, layer, lambda x: layer(x, b=2 * B), "bias added twice"),
        (LAYER, layer, lambda x: layer(x, n=1), "variance with n - 1, not n"),
        (LAYER, layer, lambda x: root(x, eps=1e-5) + B, "mean not subtracted: an RMS norm for a layer norm"),
        (
            LAYER,
            layer,
            lambda x: root(x, eps=1e-5),
            "bias missing and mean not subtracted: an RMS norm for a layer norm",
        ),
        (LAYER, layer, lambda x: layer(x, w=1.0, b=0.0), "weight left out and bias missing"),
        (RMS, root, lambda x: root(x, eps=1e-5), "epsilon 1e-05, not 1e-06"),
        (RMS, root, lambda x: root(x, 1 + W), "1 + weight used for the weight"),
        (GEMMA, lambda x: root(x, 1 + W), root, "weight used as it is, not as 1 + weight"),
        (
            RMS,
            root,
            lambda x: root(x, 1 + W, eps=1e-3),
            "epsilon 0.001, not 1e-06 and 1 + weight used for the weight",
        ),
        (RMS, root, lambda x: layer(x, b=0.0, eps=1e-6), "mean subtracted: a layer norm for an RMS norm"),
        (RMS, root, lambda x: root(x, axis=1), "over axis 1 of (2, 12, 64), not over the last"),
        (
            RMS,
            root,
            lambda x: root(x, axis=(1, 2)),
            "over the last two axes of (2, 12, 64), not over the last",
        ),
        (RMS, root, lambda x: x, "norm skipped: the input comes out as it is"),
        (RMS, root, lambda x: x * W, "norm skipped, weight and bias alone applied"),
        (RMS, root, lambda x: root(root(x)), "norm applied twice"),
        (
            RMS,
            root,
            lambda x: round_to(root(x, 1.0), "bfloat16") * W,
            "rounded to bfloat16 before the weight is applied",
        ),
        (RMS, root, lambda x: root(round_to(x, "float16")), "input rounded to float16"),
        (RMS, root, lambda x: round_to(root(x), "bfloat16"), "output rounded to bfloat16"),
    ],
)
def test_of_norms_the_planted_cause_is_said(
    facts: Facts, right: Callable[[Floats], Floats], wrong: Callable[[Floats], Floats], said: str
) -> None:
    assert why(facts, right(SMALL), wrong(SMALL), SMALL) == said


def test_an_epsilon_outside_the_root_is_told_from_one_inside() -> None:
    x = SMALL * 0.1
    seen = x / (np.sqrt((x * x).mean(-1, keepdims=True)) + 1e-6) * W
    assert why(RMS, root(x), seen, x) == "epsilon added to the root, not to the variance under it"


def test_weights_of_the_port_and_of_another_layer_are_named() -> None:
    other = RNG.normal(size=64)
    facts = Facts("norm", {**RMS.arrays, "other:layers.1.norm": other}, RMS.numbers)
    assert why(facts, root(X), root(X, other)) == "has the weight of layers.1.norm"
    ones = Facts("norm", {"weight": np.ones(64)}, RMS.numbers)
    assert why(RMS, root(X), root(X, 1.0), port=ones) == "weight left out"
    half = Facts("norm", {"weight": W[::-1].copy()}, RMS.numbers)
    assert why(RMS, root(X), root(X, W[::-1]), port=half) == "weight of the port is held in reverse order"


def test_a_cause_is_seen_through_half_precision() -> None:
    seen = round_to(root(X, 1 + W), "bfloat16")
    assert why(RMS, root(X), seen) == "1 + weight used for the weight; and the output holds bfloat16 numbers"
    assert why(RMS, root(X), round_to(RNG.normal(size=X.shape), "bfloat16")) is None


def test_right_and_unknown_norms_are_not_accused() -> None:
    assert why(RMS, root(X), root(X) * (1 + 1e-8)) is None
    assert why(RMS, root(X), root(X) + RNG.normal(size=X.shape)) is None
    # The reference is not what its facts say: nothing follows from them.
    assert why(RMS, root(X, W + 0.1), root(X, 1 + W)) is None
    unknown = Facts("norm", {"weight": W}, {})
    assert why(unknown, root(X), root(X, 1 + W)) is None


GELU = Facts("activation", {}, {"function": "gelu_tanh"})


def tanh_gelu(x: Floats) -> Floats:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x: Floats) -> Floats:
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (erf_gelu, "the exact GELU (erf), not the tanh approximation of GELU"),
        (
            lambda x: x / (1 + np.exp(-1.702 * x)),
            "the sigmoid approximation of GELU (quick_gelu), not the tanh approximation of GELU",
        ),
        (silu, "SiLU (swish), not the tanh approximation of GELU"),
        (lambda x: np.maximum(x, 0), "ReLU, not the tanh approximation of GELU"),
        (lambda x: np.maximum(x, 0) ** 2, "the square of ReLU, not the tanh approximation of GELU"),
        (lambda x: x, "no activation, not the tanh approximation of GELU"),
        (lambda x: tanh_gelu(tanh_gelu(x)), "the tanh approximation of GELU applied twice"),
    ],
)
@pytest.mark.parametrize("facts", [GELU, Facts("activation")])
def test_of_activations_the_planted_cause_is_said(facts: Facts, wrong: Any, said: str) -> None:
    assert why(facts, tanh_gelu(X), wrong(X)) == said


def test_gated_halves_exchanged_are_told_from_another_function() -> None:
    gate, up = X[..., :32], X[..., 32:]
    right = silu(gate) * up
    other = Facts("other")
    exchanged = "gate and up exchanged: the activation is on the second half, not on the first half"
    assert why(other, right, silu(up) * gate) == exchanged
    turns = "gate and up exchanged: the activation is on the even entries, not on the first half"
    assert why(other, right, silu(X[..., 0::2]) * X[..., 1::2]) == turns
    assert (
        why(other, right, tanh_gelu(gate) * up)
        == "the tanh approximation of GELU on the gate, not SiLU (swish)"
    )
    assert why(other, right, silu(gate * up)) == "activation on the product of gate and up, not on the gate"
    two = explain(other, None, (gate, up), in_float32(right), in_float32(gate * silu(up)), unit=UNIT)
    assert two == "gate and up exchanged: the activation is on the second input, not on the first input"


TABLE = RNG.normal(size=(50, 64)).astype(np.float32)
IDS = RNG.integers(5, 40, size=(2, 12))


def looked_up(
    expected: Floats, seen: Floats, numbers: Any = None, port: Facts | None = None, **arrays: Floats
) -> str | None:
    facts = Facts("embedding", {"weight": TABLE, **arrays}, numbers or {})
    return explain(facts, port, (IDS,), expected.astype(np.float32), seen.astype(np.float32), unit=0.0)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (8 * TABLE[IDS], "embedding multiplied by sqrt(64) (the width)"),
        (TABLE[IDS] / 8, "embedding multiplied by 1/sqrt(64) (the width)"),
        (0.37 * TABLE[IDS], "embedding multiplied by 0.37"),
        (TABLE[IDS + 1], "row of id + 1 read, not that of id"),
        (TABLE[IDS - 2], "row of id - 2 read, not that of id"),
        (
            np.broadcast_to(TABLE[:12], (2, 12, 64)),
            "positions counted from 0 in every row, not the ids that came",
        ),
        (round_to(TABLE, "bfloat16")[IDS], "table rounded to bfloat16"),
        (RNG.normal(size=(2, 12, 64)), None),
    ],
)
def test_of_embeddings_the_planted_cause_is_said(seen: Floats, said: str | None) -> None:
    assert looked_up(TABLE[IDS], seen) == said


def test_ids_behind_a_mask_and_rows_outside_of_the_table_are_understood() -> None:
    facts = Facts("embedding", {"weight": TABLE}, {"offset": 2})
    mask, at = np.ones((2, 12), int), np.arange(12)[None]
    right, seen = np.broadcast_to(TABLE[at + 2], (2, 12, 64)), np.broadcast_to(TABLE[at], (2, 12, 64))
    said = explain(facts, None, (mask, at), right, seen, unit=0.0)
    assert said == "row of id - 2 read, not that of id (the offset 2 of the table left out)"
    ids = np.array([[3, 49, 7, 12]])
    said = explain(
        Facts("embedding", {"weight": TABLE}), None, (ids,), TABLE[ids], np.roll(TABLE, -1, 0)[ids], unit=0.0
    )
    assert said == "row of id + 1 read, not that of id"


def test_tables_in_lower_precision_are_named() -> None:
    numbers = {"scale": 3.0}
    assert (
        looked_up(3 * TABLE[IDS], 3 * round_to(TABLE, "bfloat16")[IDS], numbers)
        == "table rounded to bfloat16"
    )
    step = np.abs(TABLE).max(1, keepdims=True) / 127
    said = looked_up(TABLE[IDS], (np.rint(TABLE / step) * step)[IDS])
    assert said == "table rounded to 8 bits, with one scale for each row"
    one = np.abs(TABLE).max() / 127
    said = looked_up(TABLE[IDS], (np.rint(TABLE / one) * one)[IDS])
    assert said == "table rounded to 8 bits, with one scale for the whole table"


def test_offsets_factors_and_padding_of_tables_are_named_as_such() -> None:
    opt = looked_up(TABLE[IDS + 2], TABLE[IDS], {"offset": 2})
    assert opt == "row of id - 2 read, not that of id (the offset 2 of the table left out)"
    roberta = looked_up(TABLE[IDS], TABLE[IDS - 2], {"padding_idx": 1})
    assert roberta == "row of id - 2 read, not that of id (padding_idx + 1)"
    assert looked_up(8 * TABLE[IDS], TABLE[IDS], {"scale": 8.0}) == "factor 8 of the embedding missing"
    row = int(IDS[0, 0])
    padded = TABLE.copy()
    padded[row] = 0
    found = explain(Facts("embedding", {"weight": padded}), None, (IDS,), padded[IDS], TABLE[IDS], unit=0.0)
    assert found == f"row {row} is not 0, as padding is in the reference"
    held = Facts("embedding", {"weight": TABLE})
    found = explain(Facts("embedding", {"weight": padded}), held, (IDS,), padded[IDS], TABLE[IDS], unit=0.0)
    assert found == f"row {row} of the table is not 0, as padding is in the reference"


def test_sinusoids_in_turns_and_in_halves_are_told_apart() -> None:
    order = np.arange(64).reshape(2, 32).T.ravel()
    said = looked_up(TABLE[IDS], TABLE[IDS][..., order])
    assert (
        said
        == "columns of the table in the order of pairs (0, 1), (2, 3), ..., not of halves (sine and cosine?)"
    )


def test_a_table_that_the_port_never_loaded_is_said_to_be_so() -> None:
    fresh = np.random.default_rng(1).normal(size=TABLE.shape).astype(np.float32) * 0.02
    said = looked_up(TABLE[IDS], fresh[IDS], port=Facts("embedding", {"weight": fresh}))
    assert said is not None
    assert "nothing in common" in said
    assert "as initialised" in said
    assert looked_up(TABLE[IDS], fresh[IDS], **{"other:pooler": fresh}) == "holds the table of pooler"
