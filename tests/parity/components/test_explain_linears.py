"""Linear maps, MLPs and the wiring of blocks with planted causes: each is named, and right ones are not accused."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from polyattn.parity.components import Facts, explain
from polyattn.truth.measure import round_to
from polyattn.weights import half_to_interleaved, tiled_to_grouped

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 16, 48))
W, B = RNG.normal(size=(48, 96)) / 7, RNG.normal(size=96)
S, C = RNG.normal(size=(48, 48)) / 7, RNG.normal(size=48)
UNIT = 4e-7


def in_float32(x: Floats) -> Floats:
    return x.astype(np.float32).astype(np.float64)


def why(
    w: Floats, b: Floats | None, seen: Floats, port: Facts | None = None, x: Floats = X, **more: Any
) -> str | None:
    arrays = {"weight": w} | ({} if b is None else {"bias": b}) | more.pop("arrays", {})
    right = x @ w + (0 if b is None else b)
    return explain(Facts("linear", arrays, more), port, (x,), in_float32(right), in_float32(seen), unit=UNIT)


def per_head(w: Floats, heads: int) -> Floats:
    """Thirds -> q, k and v of each head together."""
    return w.reshape(*w.shape[:-1], 3, heads, -1).swapaxes(-2, -3).reshape(w.shape)


def rotary(w: Floats, width: int) -> Floats:
    return np.asarray(half_to_interleaved(w.reshape(*w.shape[:-1], -1, width))).reshape(w.shape)


PAIRS = "in rotary order of pairs (0, 1), (2, 3), ..., not of halves, in heads of 16"
TOGETHER = "with query, key and value of each of 4 heads together, not in thirds"


@pytest.mark.parametrize(
    ("w", "b", "seen", "said"),
    [
        (W, B, X @ W, "bias missing"),
        (W, B, X @ W + 2 * B, "bias added twice"),
        (W, B, X @ W - B, "bias negated"),
        (S, C, X @ S.T + C, "weight transposed"),
        (S, C, X @ S.T, "weight transposed, bias missing"),
        (W, B, B - X @ W, "weight negated"),
        (S, C, X, "linear map skipped: the input comes out as it is"),
        (W, B, X @ W.T.reshape(W.shape) + B, "weight read as of the transposed shape, not transposed"),
        (W, B, rotary(X @ W + B, 16), f"outputs {PAIRS}"),
        (W, B, X @ rotary(W, 16) + B, f"columns of the weight {PAIRS}, and those of the bias not"),
        (W, B, per_head(X @ W + B, 4), f"outputs {TOGETHER}"),
        (W, None, X @ np.roll(W, 48, 1), "outputs with the halves exchanged"),
        (W, B, X @ round_to(W, "bfloat16") + B, "weight rounded to bfloat16"),
        (W, B, X @ round_to(W, "float16") + B, "weight rounded to float16"),
        (W, B, round_to(X, "bfloat16") @ round_to(W, "bfloat16") + B, "input and weight rounded to bfloat16"),
        (W, B, X @ W * 0.125 + B, "weight multiplied by 0.125"),
        (W, B, X @ W + B + 1.5, "another bias: a constant is added to every output"),
        (W, B, (X @ W + B) * 3, "output multiplied by 3"),
        (W, B, (X @ W + B)[:, ::-1], "output reversed along axis 1"),
    ],
)
def test_of_linear_maps_the_planted_cause_is_said(
    w: Floats, b: Floats | None, seen: Floats, said: str
) -> None:
    assert why(w, b, seen) == said


def test_inputs_in_another_order_are_named() -> None:
    heads = X.reshape(3, 16, 6, 8)
    tiled = np.asarray(tiled_to_grouped(heads, 2)).reshape(X.shape)
    said = why(W, B, tiled @ W + B, head_dim=8)
    assert (
        said
        == "inputs of the weight with heads of 8 in the order of 3 x 2, not 2 x 3 (tiled for grouped, or the reverse)"
    )


def test_packings_by_kv_head_are_named() -> None:
    heads, kv, width = 6, 2, 8
    w = RNG.normal(size=(48, (heads + 2 * kv) * width)) / 7
    parts = np.split(X @ w, [heads * width, (heads + kv) * width], -1)
    together = np.concatenate([p.reshape(3, 16, kv, -1, width) for p in parts], -2).reshape(3, 16, -1)
    assert why(w, None, together) == (
        "outputs with queries, key and value of each kv head together, not all queries, all keys, all values "
        "(6 query and 2 kv heads of 8)"
    )


def test_int8_weights_are_named_with_their_scales() -> None:
    step = np.abs(W).max(0) / 127
    assert (
        why(W, B, X @ (np.rint(W / step) * step) + B)
        == "weight rounded to 8 bits, with one scale for each output"
    )
    one = np.abs(W).max() / 127
    assert (
        why(W, B, X @ (np.rint(W / one) * one) + B)
        == "weight rounded to 8 bits, with one scale for the whole weight"
    )


def test_a_missing_adapter_is_said_with_its_rank() -> None:
    adapter = RNG.normal(size=(48, 3)) @ RNG.normal(size=(3, 96)) / 10
    said = why(W, B, X @ (W + adapter) + B)
    assert said == "the weight differs by a matrix of rank 3: an adapter (LoRA) missing or added"
    known = why(W, B, X @ (W + adapter) + B, Facts("linear", {"weight": W + adapter, "bias": B}))
    assert (
        known
        == "weight of the port differs by a matrix of rank 3: an adapter (LoRA) that only one side has merged"
    )


def test_a_row_that_is_wrong_by_itself_is_no_missing_adapter() -> None:
    seen = X @ W + B
    seen[1, 5] += RNG.normal(size=96)
    seen[2, 9] += RNG.normal(size=96)
    assert why(W, B, seen) is None


def test_the_weights_of_the_port_are_compared() -> None:
    def port(w: Floats) -> Facts:
        return Facts("linear", {"weight": w, "bias": B})

    fresh = np.random.default_rng(5).uniform(-0.1, 0.1, W.shape)
    said = why(W, B, X @ fresh + B, port(fresh))
    assert said is not None
    assert "uniform within 0.1, as initialised" in said
    assert why(W, B, X @ -W + B, port(-W)) == "weight of the port is negated"
    wrong = W.copy()
    wrong[:, 7] = 0
    assert why(W, B, X @ wrong + B, port(wrong)) == "weight of the port differs in 1 of 96 columns (7)"
    other = RNG.normal(size=W.shape)
    assert (
        why(W, B, X @ other + B, arrays={"other:layers.3.fc1": other}) == "holds the weight of layers.3.fc1"
    )
    # A weight that differs, but is not what was computed with: no cause.
    assert why(W, B, X @ RNG.normal(size=W.shape) + B, port(fresh)) is None


def test_right_linear_maps_are_not_accused() -> None:
    assert why(W, B, X @ W + B) is None
    assert why(W, B, X @ W + B + RNG.normal(size=(3, 16, 96))) is None
    nothing = Facts("linear", {"weight": W})  # a reference that is not what its facts say
    assert explain(nothing, None, (X,), X @ W + B, X @ W + 3 * B, unit=UNIT) is None


def test_a_linear_map_of_width_1024_takes_about_a_second() -> None:
    x = RNG.normal(size=(2, 128, 1024))
    w = RNG.normal(size=(1024, 1024)) / 32
    seen = x @ w + RNG.normal(size=(2, 128, 1024))
    started = time.process_time()
    assert why(w, None, seen, x=x) is None
    assert time.process_time() - started < 10  # beside others, on one thread


E_, F_ = 24, 40
GATE, UP, DOWN = RNG.normal(size=(E_, F_)) / 5, RNG.normal(size=(E_, F_)) / 5, RNG.normal(size=(F_, E_)) / 6
BIAS = RNG.normal(size=E_)
Y = RNG.normal(size=(2, 10, E_))


def silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


def gated(
    y: Floats = Y, gate: Floats = GATE, up: Floats = UP, down: Floats = DOWN, b: Floats | float = BIAS
) -> Floats:
    return silu(y @ gate) * (y @ up) @ down + b


MLP = Facts(
    "other",
    {"gate.weight": GATE, "up.weight": UP, "down.weight": DOWN, "down.bias": BIAS},
    {"function": "silu"},
)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (gated(gate=UP, up=GATE), "gate and up exchanged: the activation is on up, not on gate"),
        (np.maximum(Y @ GATE, 0) * (Y @ UP) @ DOWN + BIAS, "ReLU, not SiLU (swish)"),
        (gated(b=0.0), "bias of down missing"),
        (
            silu((Y @ GATE) * (Y @ UP)) @ DOWN + BIAS,
            "activation on the product of gate and up, not on the gate",
        ),
        (silu(Y @ GATE) @ DOWN + BIAS, "up left out: the activated gate alone goes down"),
        (gated(down=round_to(DOWN, "bfloat16")), None),
        (Y, "skipped: the input comes out as it is"),
    ],
)
def test_of_gated_mlps_the_planted_cause_is_said(seen: Floats, said: str | None) -> None:
    assert explain(MLP, None, (Y,), in_float32(gated()), in_float32(seen), unit=UNIT) == said


def test_the_weights_of_an_mlp_are_compared() -> None:
    port = Facts("other", {**MLP.arrays, "up.weight": UP[:, ::-1].copy()})
    seen = gated(up=UP[:, ::-1])
    said = explain(MLP, port, (Y,), in_float32(gated()), in_float32(seen), unit=UNIT)
    assert said == "up.weight of the port is held columns in reverse order"


A, M, N = RNG.normal(size=(3, 2, 10, E_))


def block(
    seen: Floats, expected: Floats = Y + A + M, port: Facts | None = None, **arrays: Floats
) -> str | None:
    facts = Facts(
        "other",
        {
            "child:attn": A,
            "child:mlp": M,
            "child:norm": N,
            **{n.replace("_", ":"): x for n, x in arrays.items()},
        },
    )
    return explain(facts, port, (Y,), in_float32(expected), in_float32(seen), unit=UNIT)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (A + M, "residual (the input) missing"),
        (2 * Y + A + M, "residual (the input) added twice"),
        (Y + A, "the output of mlp missing"),
        (Y + A - M, "the output of mlp subtracted, not added"),
        (Y + A + 0.3 * M, "the output of mlp multiplied by 0.3, not 1"),
        (
            N + A + M,
            "residual taken after the norm, not before it: the output of norm is added for the input",
        ),
        (M, "residual (the input) missing and the output of attn missing"),
        (0.7 * (Y + A + M), "output multiplied by 0.7"),
        (
            0.7 * Y + A + 0.7 * M,
            "residual (the input) multiplied by 0.7, not 1 and the output of mlp multiplied by 0.7, not 1",
        ),
        (Y + A + M + RNG.normal(size=Y.shape), None),
        (Y + A + M, None),
    ],
)
def test_of_wiring_the_planted_cause_is_said(seen: Floats, said: str | None) -> None:
    assert block(seen) == said


def test_a_missing_residual_shows_without_the_parts() -> None:
    inside = RNG.normal(size=Y.shape)
    said = explain(Facts("other"), None, (Y,), in_float32(Y + inside), in_float32(inside), unit=UNIT)
    assert said == "residual (the input) missing"


def test_the_own_parts_of_a_port_are_summed_as_it_sums_them() -> None:
    theirs, other = RNG.normal(size=(2, *Y.shape))
    port = Facts("other", {"child:attn": other, "child:mlp": theirs, "child:norm": N})
    assert block(other + theirs, port=port) == "residual (the input) missing"


def test_a_stack_of_many_parts_is_looked_through_in_time() -> None:
    parts = RNG.normal(size=(40, *Y.shape))
    facts = Facts("other", {f"child:layers.{i}": x for i, x in enumerate(parts)})
    right = Y + parts.sum(0)
    started = time.process_time()
    said = explain(
        facts, None, (Y,), in_float32(right), in_float32(right - parts[3] - parts[7]), unit=UNIT * 4
    )
    assert said == "the output of layers.3 missing and the output of layers.7 missing"
    assert time.process_time() - started < 10  # beside others, on one thread


def test_parts_in_parallel_for_one_after_the_other_are_named() -> None:
    theirs = RNG.normal(size=Y.shape)
    port = Facts("other", {"child:attn": A, "child:mlp": theirs, "input:mlp": Y, "child:norm": N})
    said = block(Y + A + theirs, port=port, input_mlp=Y + A)
    assert said == "mlp is given the input, not the input + the output of attn"


def test_bad_input_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        TypeError, match=r"components\.explain: expected facts to be Facts, got dict; facts_of"
    ):
        explain({}, None, (Y,), Y, Y, unit=1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected inputs to be a tuple"):
        explain(MLP, None, (), Y, Y, unit=1.0)
    with pytest.raises(ValueError, match="expected unit to be a number or of shape"):
        explain(MLP, None, (Y,), Y, Y, unit=np.ones(7))
    with pytest.raises(ValueError, match="expected unit to be 0 or more"):
        explain(MLP, None, (Y,), Y, Y, unit=-1.0)
    with pytest.raises(ValueError, match="not empty"):
        explain(MLP, None, (Y,), Y[:0], Y[:0], unit=1.0)
    with pytest.raises(TypeError, match="expected a kind among"):
        Facts("layer")  # type: ignore[arg-type]


def test_another_shape_is_named_where_the_numbers_are_the_same() -> None:
    said = explain(Facts("other"), None, (Y,), Y, Y.swapaxes(1, 2), unit=UNIT)
    assert said == "axes in the order (0, 2, 1) of those of the reference: (2, 24, 10), not (2, 10, 24)"
    assert (
        explain(Facts("other"), None, (Y,), Y, Y.reshape(20, 24), unit=UNIT)
        == "the same numbers in shape (20, 24), not (2, 10, 24)"
    )
    assert explain(Facts("other"), None, (Y,), Y, Y[:1], unit=UNIT) is None


def post_norm(s: Floats, w: Floats, b: Floats, eps: float = 1e-12) -> Floats:
    s = s - s.mean(-1, keepdims=True)
    return s / np.sqrt((s * s).mean(-1, keepdims=True) + eps) * w + b


def test_what_is_summed_in_front_of_a_last_norm_is_named() -> None:
    w, b = RNG.normal(size=E_) + 1.5, RNG.normal(size=E_)
    words, positions, types = RNG.normal(size=(3, 2, 10, E_))
    right = post_norm(words + positions + types, w, b)
    parts = {
        "word_embeddings": words,
        "position_embeddings": positions,
        "token_type_embeddings": types,
        "LayerNorm": right,
    }
    facts = Facts(
        "other", {f"child:{n}": x for n, x in parts.items()} | {"input:LayerNorm": words + positions + types}
    )

    def found(seen: Floats) -> str | None:
        ids = np.arange(20).reshape(2, 10)
        return explain(facts, None, (ids,), in_float32(right), in_float32(seen), unit=UNIT)

    assert (
        found(post_norm(words + positions, w, b))
        == "the output of token_type_embeddings missing, in front of LayerNorm"
    )
    twice = post_norm(words + 2 * positions + types, w, b)
    assert found(twice) == "the output of position_embeddings added once more, in front of LayerNorm"
    assert found(words + positions + types) == "LayerNorm left out at the end"
    assert found(post_norm(words, w, b)) == (
        "the output of position_embeddings missing and the output of token_type_embeddings missing, in front of LayerNorm"
    )
    behind = post_norm(words + types, w, b) + positions
    assert found(behind) == "the output of position_embeddings added behind LayerNorm, not in front of it"
    assert found(post_norm(words + positions + RNG.normal(size=words.shape), w, b)) is None


def test_a_residual_missing_in_front_of_a_last_norm_is_named() -> None:
    w, b, dense = RNG.normal(size=E_) + 1.5, RNG.normal(size=E_), RNG.normal(size=Y.shape)
    right = post_norm(dense + Y, w, b)
    facts = Facts("other", {"child:dense": dense, "child:LayerNorm": right, "input:LayerNorm": dense + Y})
    said = explain(facts, None, (A, Y), in_float32(right), in_float32(post_norm(dense, w, b)), unit=UNIT)
    assert said == "residual (input 1) missing, in front of LayerNorm"
