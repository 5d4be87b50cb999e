"""Exported models compute in ONNX Runtime what the library computes, and use the operator Attention where they may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from rounding import noise

from polyattn import AuxRequest, attention, layers, masks, mods
from polyattn.onnx import export
from polyattn.parity import ACCEPTANCE, eta, truth
from polyattn.parity.call import pose
from polyattn.parity.stages import spec_of
from polyattn.positions import Rotary

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
Q = RNG.normal(size=(2, 4, 5, 8)).astype(np.float32)
K, V = RNG.normal(size=(2, 2, 2, 7, 8)).astype(np.float32)
MASK = RNG.random((2, 1, 5, 7)) > 0.5
MASK[1, :, 2] = False  # a row that sees nothing
BIAS = RNG.normal(size=(4, 5, 7)).astype(np.float32)
SINKS = RNG.normal(size=4).astype(np.float32)
TABLE = RNG.normal(size=(32, 4)).astype(np.float32)
LENGTHS = np.array([3, 7], np.int32)
SEGMENTS = (
    np.array([[0, 0, 1, 1, 2], [0, 1, 1, 1, 2]], np.int32),
    np.array([[0, 0, 1, 1, 2, 2, 2]] * 2, np.int32),
)
END = {"query_offset": "end"}

#: name -> (the call, more inputs, whether the operator Attention computes it)
VARIANTS: dict[str, tuple[Callable[..., Any], dict[str, Floats], bool]] = {
    "plain": (lambda q, k, v: {}, {}, True),
    "scale": (lambda q, k, v: {"scale": 0.3}, {}, True),
    "causal last rows": (lambda q, k, v: {"is_causal": True, **END}, {}, True),
    "mask": (lambda q, k, v, mask: {"mask": mask}, {"mask": MASK}, True),
    "key lengths": (lambda q, k, v, n: {"mask": masks.key_lengths(n)}, {"n": LENGTHS}, True),
    "window": (lambda q, k, v: {"mask": masks.sliding_window(3), **END}, {}, True),
    "documents": (lambda q, k, v, a, b: {"mask": masks.segments(a, b), **END}, dict(zip("ab", SEGMENTS, strict=True)), True),
    "bias and mask": (lambda q, k, v, bias, mask: {"bias": bias, "mask": mask}, {"bias": BIAS, "mask": MASK}, True),
    "softcap": (lambda q, k, v: {"score_mod": mods.softcap(2.0)}, {}, True),
    "softcap and mask": (lambda q, k, v, mask: {"score_mod": mods.softcap(2.0), "mask": mask}, {"mask": MASK}, False),
    "alibi": (lambda q, k, v: {"score_mod": mods.alibi(4), **END}, {}, False),
    "relative bias": (lambda q, k, v, t: {"score_mod": mods.relative_position_bias(t), **END}, {"t": TABLE}, False),
    "sinks": (lambda q, k, v, sinks: {"sinks": sinks}, {"sinks": SINKS}, False),
    "function": (lambda q, k, v: {"score_mod": lambda s, b, h, q, kv: s * 0.5, **END}, {}, False),
}  # fmt: skip


def _run(model: Any, inputs: dict[str, Floats]) -> list[Floats]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Floats] = session.run(None, inputs)
    return found


def _operators(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_computes_in_onnx_runtime_what_the_definition_says(name: str) -> None:
    options, more, one_node = VARIANTS[name]
    inputs = {"query": Q, "key": K, "value": V, **more}

    def f(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        return attention(q, k, v, **options(q, k, v, *rest))

    model = export(f, inputs)
    (out,) = _run(model, inputs)
    assert ("Attention" in _operators(model)) == one_node
    assert model.opset_import[0].version == (23 if one_node else 21)
    if name in ("relative bias", "function"):  # the oracle knows no such mod: the library in float64
        wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs.values()]
        assert np.abs(out - f(*wide)).max() <= ACCEPTANCE * 2.0**-24 * 8 * np.abs(V).max()
        return
    judged = truth(spec_of(pose(Q, K, V, options(Q, K, V, *more.values()))))
    assert eta(out, judged["out"], "float32") <= ACCEPTANCE


def test_plain_attention_is_two_nodes() -> None:
    model = export(attention, {"query": Q, "key": K, "value": V})
    assert [node.op_type for node in model.graph.node] == ["Attention", "Identity"]


def test_hidden_nan_and_empty_rows_are_the_contract_in_the_model_too() -> None:
    inputs = {
        "query": Q,
        "key": K.copy(),
        "value": V.copy(),
        "mask": np.broadcast_to(MASK, (2, 1, 5, 7)).copy(),
    }
    inputs["mask"][..., 3] = False
    f = lambda q, k, v, mask: attention(q, k, v, mask=mask)  # noqa: E731
    model = export(f, inputs)
    (clean,) = _run(model, inputs)
    inputs["key"][:, :, 3] = np.nan
    inputs["value"][:, :, 3] = np.inf
    (poisoned,) = _run(model, inputs)
    assert (clean == poisoned).all()
    assert (clean[1, :, 2] == 0).all()


def test_several_outputs_keep_their_order() -> None:
    def f(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, return_aux=AuxRequest(lse=True, weights=True))

    inputs = {"query": Q, "key": K, "value": V}
    out, lse, weights = _run(export(f, inputs), inputs)
    _, aux = f(Q, K, V)
    assert out.shape == (2, 4, 5, 8)
    assert np.abs(lse - aux.lse).max() < 1e-5 < np.abs(aux.lse).max()
    assert weights.shape == aux.weights.shape


BLOCK = layers.EncoderBlock(
    layers.CausalSelfAttention(8, 2, context_length=9, rotary=Rotary()),
    layers.MLP(8, 16, activation="gelu"),
    layers.LayerNorm(8, epsilon=1e-5),
    norm_first=True,
)


@pytest.mark.parametrize(
    "layer",
    [
        layers.MultiHeadAttention(8, 2),
        layers.AdditiveAttention(8, 4),
        layers.EncoderBlock.preset("torch", 8, 2, 16),
        layers.MLP(8, 16, activation="swiglu"),
        layers.Encoder(BLOCK, 2, final_norm=layers.LayerNorm(8, epsilon=1e-5)),
    ],
    ids=["multi-head", "additive", "encoder block", "swiglu", "causal encoder with rotary"],
)
def test_a_layer_computes_in_onnx_runtime_what_it_computes_here(layer: Any) -> None:
    x = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    params = layer.init(0, like=x)
    (out,) = _run(export(layer, {"x": x}, params=params), {"x": x})
    wide = jax.tree.map(lambda p: p.astype(np.float64), params)
    bound = ACCEPTANCE * noise(lambda number: layer(jax.tree.map(number, wide), number(x)))
    assert np.abs(out - layer(wide, x.astype(np.float64))).max() <= bound


@pytest.mark.parametrize(
    ("options", "square"),
    [({}, False), ({"scale": 0.3, "score_mod": mods.softcap(3.0)}, False), ({"is_causal": True}, True)],
    ids=["plain", "softcap", "causal"],
)
def test_dynamic_lengths_serve_lengths_that_were_never_traced(options: dict[str, Any], square: bool) -> None:
    def f(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, **options)

    def inputs(rows: int, keys: int) -> dict[str, Floats]:
        shapes = {"query": (2, 4, rows, 8), "key": (2, 2, keys, 8), "value": (2, 2, keys, 8)}
        return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    keys = "L" if square else "S"
    model = export(
        f, inputs(3, 3 if square else 4), dynamic={"query": {2: "L"}, "key": {-2: keys}, "value": {2: keys}}
    )
    assert [d.dim_param for d in model.graph.output[0].type.tensor_type.shape.dim] == ["", "", "L", ""]
    for rows, others in ((9, 9), (1, 1)) if square else ((9, 17), (1, 30)):
        case = inputs(rows, others)
        (out,) = _run(model, case)
        judged = truth(spec_of(pose(*case.values(), options)))
        assert eta(out, judged["out"], "float32") <= ACCEPTANCE


def test_what_cannot_be_dynamic_is_refused() -> None:
    inputs = {"query": Q[:, :, :4], "key": K[:, :, :4], "value": V[:, :, :4]}
    square = {name: {2: "L"} for name in inputs}
    with pytest.raises(
        ValueError, match="expected a graph that is the same for every length, got one in which"
    ):
        export(lambda q, k, v: attention(q, k, v, score_mod=mods.alibi(4)), inputs, dynamic=square)
    with pytest.raises(
        ValueError, match=r"expected dynamic to name inputs and their axes, got 'query': \{7: 'L'\}"
    ):
        export(attention, inputs, dynamic={"query": {7: "L"}})


def test_bad_input_is_refused_in_a_sentence() -> None:
    layer = layers.MultiHeadAttention(8, 2)
    x = np.ones((2, 5, 8), np.float32)
    with pytest.raises(
        ValueError, match=r"expected params= for the layer .*, got None; they become constants"
    ):
        export(layer, {"x": x})
    with pytest.raises(
        ValueError, match="expected params only with a layer, got them with a function; bind them"
    ):
        export(attention, {"query": Q, "key": K, "value": V}, params={})
    with pytest.raises(TypeError, match=r"expected example_inputs\['x'\] to be an array, got list"):
        export(attention, {"x": [1.0]})
    with pytest.raises(TypeError, match="expected the function to return an array, got none"):
        export(lambda x: None, {"x": x})
    with pytest.raises(
        TypeError, match="expected the function to return arrays made from its inputs, got ndarray"
    ):
        export(lambda x: np.ones(3), {"x": x})
