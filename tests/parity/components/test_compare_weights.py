"""Weights with planted mistakes: each is named, and other names and layouts alone are no mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyattn.parity.components import WeightDifference, compare_weights
from polyattn.truth.measure import round_to
from polyattn.weights import half_to_interleaved, tiled_to_grouped

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
E, H, KV, D, F = 32, 4, 2, 8, 48


def drawn(*shape: int) -> Floats:
    return (RNG.normal(size=shape) / 6).astype(np.float32)


def layer(i: int) -> dict[str, Floats]:
    shapes = {
        "self_attn.q_proj.weight": (H * D, E),
        "self_attn.k_proj.weight": (KV * D, E),
        "self_attn.v_proj.weight": (KV * D, E),
        "self_attn.o_proj.weight": (E, H * D),
        "mlp.gate_proj.weight": (F, E),
        "mlp.up_proj.weight": (F, E),
        "mlp.down_proj.weight": (E, F),
    }
    return {f"layers.{i}.{name}": drawn(*shape) for name, shape in shapes.items()} | {
        f"layers.{i}.input_layernorm.weight": 1 + drawn(E)
    }


REFERENCE = {"embed_tokens.weight": drawn(50, E), **layer(0), **layer(1)}
Q, K, V = (f"layers.0.self_attn.{n}_proj.weight" for n in "qkv")
GATE, UP = (f"layers.0.mlp.{n}_proj.weight" for n in ("gate", "up"))


def said(port: dict[str, Floats], reference: dict[str, Floats] = REFERENCE, names: Any = None) -> list[str]:
    return [str(d) for d in compare_weights(reference, port, names)]


def pairs(w: Floats) -> Floats:
    """Rows of every head from halves to pairs."""
    heads = w.T.reshape(w.shape[1], -1, D)
    return np.asarray(half_to_interleaved(heads)).reshape(w.shape[1], -1).T.copy()


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (Q, lambda w: -w, "is negated"),
        (Q, lambda w: w * np.float32(0.125), "is 0.125 times that of the reference"),
        (Q, lambda w: w * np.sqrt(np.float32(32)), "is sqrt(32) times that of the reference"),
        (Q, lambda w: w.T.copy(), "is transposed"),
        (K, lambda w: w.T.copy(), "is transposed: (32, 16), in the reference (16, 32)"),
        (Q, lambda w: round_to(w, "bfloat16"), "is rounded to bfloat16"),
        (Q, lambda w: round_to(w, "float16"), "is rounded to float16"),
        (Q, pairs, "is held rows in rotary order of pairs (0, 1), (2, 3), ..., not of halves, in heads of 8"),
        (Q, lambda w: w[::-1].copy(), "is held rows in reverse order"),
        (Q, lambda w: w[:, ::-1].copy(), "is held columns in reverse order"),
        (Q, lambda w: w[::-1, ::-1].copy(), "is held rows in reverse order, and columns in reverse order"),
        (Q, lambda w: np.asarray(tiled_to_grouped(w.reshape(H, D, E), KV, axis=0)).reshape(w.shape), "is held rows with heads of 8 in the order of 2 x 2, not 2 x 2 (tiled for grouped, or the reverse)"),
        (Q, np.zeros_like, "is 0 throughout, as before weights are loaded"),
        (Q, lambda w: w + (drawn(32, 2) @ drawn(2, 32)), "differs by a matrix of rank 2: an adapter (LoRA) that only one side has merged"),
        (Q, lambda w: np.where(np.arange(32)[:, None] == 3, 0, w), "differs in 1 of 32 rows (3)"),
        (Q, lambda w: np.where(w == w.max(), np.nan, w), "holds 1 numbers that are NaN or infinite"),
        ("layers.0.input_layernorm.weight", lambda w: w - 1, "is 1 less than in the reference (weight, and 1 + weight)"),
        (Q, lambda w: w[:16].copy(), "has shape (16, 32), in the reference (32, 32)"),
    ],
)  # fmt: skip
def test_a_planted_mistake_is_named_and_nothing_else(name: str, change: Any, sentence: str) -> None:
    assert said({**REFERENCE, name: change(REFERENCE[name])}) == [f"{name} {sentence}"]


def test_equal_weights_are_no_difference_under_any_name_and_layout() -> None:
    assert said(dict(REFERENCE)) == []
    assert said({n: x.astype(np.float64) for n, x in REFERENCE.items()}) == []
    renamed = {n.replace("layers", "blocks").replace("_proj.weight", ".w"): x for n, x in REFERENCE.items()}
    assert said(renamed) == []
    flax = {
        n.replace("weight", "kernel") if "proj" in n else n.replace("weight", "scale"): x.T
        if "proj" in n
        else x
        for n, x in REFERENCE.items()
    }
    assert said(flax) == []
    flax["layers.0.self_attn.q_proj.kernel"] = flax["layers.0.self_attn.q_proj.kernel"].reshape(E, H, D)
    assert said(flax) == []


def test_a_matrix_that_is_not_transposed_as_its_kind_is_named() -> None:
    flax = {n.replace("proj.weight", "proj.kernel"): x.T if "proj" in n else x for n, x in REFERENCE.items()}
    name = Q.replace("weight", "kernel")
    flax[name] = REFERENCE[Q]
    assert said(flax) == [f"{name}, in the reference {Q}, is not transposed, as the others named so are"]


def test_names_that_differ_are_matched_by_value() -> None:
    port = {n: x for n, x in REFERENCE.items() if n != Q} | {"layers.0.wq": pairs(REFERENCE[Q])}
    (found,) = compare_weights(REFERENCE, port)
    assert found == WeightDifference(
        Q,
        "layers.0.wq",
        f"layers.0.wq holds {Q}, rows in rotary order of pairs (0, 1), (2, 3), ..., not of halves, in heads of 8",
    )
    rounded = {n: x for n, x in REFERENCE.items() if n != Q} | {
        "layers.0.wq": round_to(REFERENCE[Q], "bfloat16")
    }
    assert said(rounded) == [f"layers.0.wq, in the reference {Q}, is rounded to bfloat16"]
    negated = {n: x for n, x in REFERENCE.items() if n != Q} | {"layers.0.wq": -REFERENCE[Q]}
    assert said(negated) == [f"layers.0.wq, in the reference {Q}, is negated"]
    told = {n: x for n, x in REFERENCE.items() if n not in (Q, GATE)} | {
        "a": -REFERENCE[Q],
        "b": 2 * REFERENCE[GATE],
    }
    for names in ({Q: "a", GATE: "b"}, {Q: "a", GATE: "b"}.get):
        assert said(told, names=names) == [
            f"a, in the reference {Q}, is negated",
            f"b, in the reference {GATE}, is 2 times that of the reference",
        ]


def test_packed_and_unpacked_matrices_are_matched() -> None:
    rest = {n: x for n, x in REFERENCE.items() if n not in (Q, K, V)}
    fused = np.concatenate([REFERENCE[n] for n in (Q, K, V)])
    assert said(rest | {"layers.0.qkv": fused}) == []
    assert said(REFERENCE, rest | {"layers.0.qkv": fused}) == []
    groups = [REFERENCE[n].reshape(KV, -1, E) for n in (Q, K, V)]
    by_group = np.concatenate(groups, 1).reshape(-1, E)
    found = said(rest | {"layers.0.qkv": by_group})
    assert found == [
        f"layers.0.qkv holds {Q} in blocks of 16 rows, one every 32: packed head by head, not side by side",
        f"layers.0.qkv holds {K} in blocks of 8 rows, one every 32: packed head by head, not side by side",
        f"layers.0.qkv holds {V} in blocks of 8 rows, one every 32: packed head by head, not side by side",
    ]
    turns = np.stack((REFERENCE[GATE], REFERENCE[UP]), 1).reshape(2 * F, E)
    rest = {n: x for n, x in REFERENCE.items() if n not in (GATE, UP)}
    assert (
        said(rest | {"gate_up": turns})[0]
        == f"gate_up holds {GATE} in every 2th of its rows: packed in turn, not side by side"
    )


def test_missing_and_extra_names_are_listed() -> None:
    port = {n: x for n, x in REFERENCE.items() if n != Q} | {
        "layers.0.bias": drawn(7),
        "layers.0.zero": np.zeros(9),
    }
    assert said(port) == [
        f"{Q} is missing in the port",
        "layers.0.bias is in the port alone",
        "layers.0.zero is in the port alone; it is 0 throughout, as before weights are loaded",
    ]


def test_weights_that_were_never_loaded_and_those_of_another_layer_are_told_apart() -> None:
    fresh = np.random.default_rng(9)
    uniform = {**REFERENCE, GATE: fresh.uniform(-0.2, 0.2, (F, E)).astype(np.float32)}
    (found,) = said(uniform)
    assert found.startswith(
        f"{GATE} has nothing in common with the reference (uniform within 0.2, as initialised)"
    )
    normal = {**REFERENCE, GATE: (0.02 * fresh.normal(size=(F, E))).astype(np.float32)}
    assert "normal with deviation 0.02" in said(normal)[0]
    other = GATE.replace("0", "1")
    assert said({**REFERENCE, GATE: REFERENCE[other]}) == [f"{GATE} holds {other} of the reference"]
    swapped = {**REFERENCE, GATE: REFERENCE[UP], UP: REFERENCE[GATE]}
    assert said(swapped) == [f"{GATE} holds {UP} of the reference", f"{UP} holds {GATE} of the reference"]


def test_layouts_of_frameworks_are_no_difference_under_other_names() -> None:
    conv, bias = drawn(8, 3, 4, 5), drawn(H * D)
    port = {"conv.kernel": conv.transpose(2, 3, 1, 0), "q.b": bias.reshape(H, D)}
    assert said(port, {"conv.weight": conv, "q.bias": bias}) == []
    assert said({"conv.weight": conv.transpose(2, 3, 1, 0)}, {"conv.weight": conv}) == [
        "conv.weight holds the same numbers with its axes in the order (2, 3, 1, 0)"
    ]
    assert said({"b": bias.reshape(H, D)}, {"b": bias}) == [
        "b holds the same numbers in shape (4, 8), in the reference (32,)"
    ]


def test_quantised_weights_are_said_to_be_so() -> None:
    whole = {**REFERENCE, Q: (REFERENCE[Q] * 100).astype(np.int8)}
    assert said(whole) == [f"{Q} holds int8 in the port: quantised, and its scales are not known"]


def test_tied_weights_are_compared_with_each_other() -> None:
    tied = {**REFERENCE, "lm_head.weight": REFERENCE["embed_tokens.weight"]}
    assert said(dict(tied), tied) == []
    apart = {**tied, "lm_head.weight": drawn(50, E)}
    assert said(apart, tied) == [
        "lm_head.weight is tied to embed_tokens.weight in the reference, and in the port it is another than embed_tokens.weight"
    ]
    assert said(dict(REFERENCE), tied) == [
        "lm_head.weight is missing in the port; in the reference it is tied to embed_tokens.weight"
    ]
    assert said(tied) == []  # the port says it twice


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(TypeError, match=r"compare_weights: expected port to be arrays by name, got list"):
        compare_weights(REFERENCE, [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected names as a mapping or a function"):
        compare_weights(REFERENCE, REFERENCE, "q")  # type: ignore[arg-type]
