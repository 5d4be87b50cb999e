"""Exported models compute in ONNX Runtime what the library computes, and use the operator Attention where they may."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import ndonnx
import numpy as np
import onnxruntime
import pytest

from polyattn import AuxRequest, attention, layers, masks, mods, weights
from polyattn.caches import KVCache
from polyattn.conventions.call import call_of
from polyattn.conventions.visible import spec_of
from polyattn.linear import linear_attention
from polyattn.onnx import export
from polyattn.onnx.lengths import formula, lengths_to_trace
from polyattn.parity import ACCEPTANCE, eta
from polyattn.rotary import Rotary
from polyattn.testing import check_backend, load_bench
from polyattn.truth import truth
from polyattn.truth.rounding import noise

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
Q = RNG.normal(size=(2, 4, 5, 8)).astype(np.float32)
K, V = RNG.normal(size=(2, 2, 2, 7, 8)).astype(np.float32)
MASK = RNG.random((2, 1, 5, 7)) > 0.5
MASK[1, :, 2] = False  # a row that sees nothing
END = {"query_offset": "end"}

#: name -> (the call, more inputs for any lengths, their named axes, whether the operator Attention computes it)
Draw = Callable[[int, int, int], Floats]  # of batch, queries, keys
VARIANTS: dict[str, tuple[Callable[..., Any], dict[str, Draw], dict[str, dict[int, str]], bool]] = {
    "plain": (dict, {}, {}, True),
    "scale": (lambda: {"scale": 0.3}, {}, {}, True),
    "causal last rows": (lambda: {"is_causal": True, **END}, {}, {}, True),
    "mask": (lambda mask: {"mask": mask}, {"mask": lambda *at: seen(*at)[:, None]}, {"mask": {0: "B", 2: "L", 3: "S"}}, True),
    "key lengths": (lambda n: {"mask": masks.key_lengths(n)}, {"n": lambda batch, _, keys: np.arange(batch, dtype=np.int32) % (keys + 1)}, {"n": {0: "B"}}, True),
    "window": (lambda: {"mask": masks.sliding_window(3), **END}, {}, {}, True),
    "documents": (
        lambda a, b: {"mask": masks.segments(a, b), **END},
        {"a": lambda batch, rows, _: ids(batch, rows), "b": lambda batch, _, keys: ids(batch, keys)},
        {"a": {0: "B", 1: "L"}, "b": {0: "B", 1: "S"}},
        True,
    ),
    "bias and mask": (
        lambda bias, mask: {"bias": bias, "mask": mask},
        {"bias": lambda _, rows, keys: normal(4, rows, keys), "mask": lambda *at: seen(*at)[:, None]},
        {"bias": {1: "L", 2: "S"}, "mask": {0: "B", 2: "L", 3: "S"}},
        True,
    ),
    "softcap": (lambda: {"score_mod": mods.softcap(2.0)}, {}, {}, True),
    "softcap and mask": (lambda mask: {"score_mod": mods.softcap(2.0), "mask": mask}, {"mask": lambda *at: seen(*at)[:, None]}, {"mask": {0: "B", 2: "L", 3: "S"}}, False),
    "alibi": (lambda: {"score_mod": mods.alibi(4), **END}, {}, {}, False),
    "relative bias": (lambda t: {"score_mod": mods.relative_position_bias(t), **END}, {"t": lambda *_: normal(32, 4)}, {}, False),
    "sinks": (lambda sinks: {"sinks": sinks}, {"sinks": lambda *_: normal(4)}, {}, False),
    "function": (lambda: {"score_mod": lambda s, b, h, q, kv: s * 0.5, **END}, {}, {}, False),
}  # fmt: skip
AXES = {"query": {0: "B", 2: "L"}, "key": {0: "B", 2: "S"}, "value": {0: "B", -2: "S"}}


def normal(*shape: int) -> Floats:
    return RNG.normal(size=shape).astype(np.float32)


def seen(batch: int, rows: int, keys: int) -> Floats:
    mask = RNG.random((batch, rows, keys)) > 0.5
    mask[-1, -1] = False  # a row that sees nothing
    return mask


def ids(batch: int, length: int) -> Floats:
    return np.sort(RNG.integers(0, 3, (batch, length)), axis=1).astype(np.int32)


def drawn(name: str, batch: int, rows: int, keys: int) -> dict[str, Floats]:
    """The inputs of a variant."""
    q, k, v = normal(batch, 4, rows, 8), normal(batch, 2, keys, 8), normal(batch, 2, keys, 8)
    more = {other: draw(batch, rows, keys) for other, draw in VARIANTS[name][1].items()}
    return {"query": q, "key": k, "value": v, **more}


def call(name: str) -> Callable[..., Any]:
    return lambda q, k, v, *rest: attention(q, k, v, **VARIANTS[name][0](*rest))


def check(name: str, out: Floats, inputs: dict[str, Floats]) -> None:
    """out is the definition."""
    if name in ("relative bias", "function"):  # the oracle knows no such mod: the library in float64
        wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs.values()]
        bound = ACCEPTANCE * 2.0**-24 * 8 * np.abs(inputs["value"]).max()
        assert np.abs(out - call(name)(*wide)).max() <= bound
        return
    q, k, v, *rest = inputs.values()
    judged = truth(spec_of(call_of(q, k, v, VARIANTS[name][0](*rest))))
    assert eta(out, judged["out"], "float32") <= ACCEPTANCE


def _run(model: Any, inputs: dict[str, Floats]) -> list[Floats]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Floats] = session.run(None, inputs)
    return found


def _operators(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_computes_in_onnx_runtime_what_the_definition_says(name: str) -> None:
    inputs = drawn(name, 2, 5, 7)
    model = export(call(name), inputs)
    (out,) = _run(model, inputs)
    one_node = VARIANTS[name][3]
    assert ("Attention" in _operators(model)) == one_node
    assert model.opset_import[0].version == (23 if one_node else 21)
    check(name, out, inputs)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_with_dynamic_axes_serves_lengths_that_were_never_traced(name: str) -> None:
    model = export(call(name), drawn(name, 2, 5, 7), dynamic=AXES | VARIANTS[name][2])
    assert ("Attention" in _operators(model)) == VARIANTS[name][3]
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["B", 4, "L", 8]
    for lengths in ((1, 1, 1), (3, 8, 11), (5, 40, 13)):
        inputs = drawn(name, *lengths)
        check(name, _run(model, inputs)[0], inputs)


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
    layers.CausalSelfAttention(8, 2, context_length=20, rotary=Rotary()),
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
    x = normal(2, 5, 8)
    params = layer.init(0, like=x)
    wide = jax.tree.map(lambda p: p.astype(np.float64), params)
    static = export(layer, {"x": x}, params=params)
    dynamic = export(layer, {"x": x}, params=params, dynamic={"x": {0: "B", 1: "L"}})
    for model, given in ((static, x), (dynamic, x), (dynamic, normal(1, 1, 8)), (dynamic, normal(3, 13, 8))):
        (out,) = _run(model, {"x": given})
        bound = ACCEPTANCE * noise(lambda number, x=given: layer(jax.tree.map(number, wide), number(x)))
        assert np.abs(out - layer(wide, given.astype(np.float64))).max() <= bound


def test_an_embedding_looks_up_tokens_of_any_integer_type() -> None:
    layer = layers.Embedding(7, 3)
    params = layer.init(0, like=normal(1))
    for dtype in (np.int32, np.int64, np.int8):
        tokens = np.array([[0, 6, 2]], dtype)
        (out,) = _run(export(layer, {"tokens": tokens}, params=params), {"tokens": tokens})
        assert (out == params["table"][tokens]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_every_case_of_the_contract_agrees_as_an_exported_model(dtype: str) -> None:
    assert len(check_backend(load_bench("onnx"), dtypes=[dtype])) >= 30


def test_causal_attention_of_as_many_queries_as_keys_may_be_dynamic() -> None:
    q = normal(2, 4, 5, 8)
    inputs = {"query": q, "key": q, "value": q}
    f = lambda q, k, v: attention(q, k, v, is_causal=True)  # noqa: E731
    model = export(f, inputs, dynamic={name: {2: "L"} for name in inputs})
    assert [node.op_type for node in model.graph.node] == ["Attention", "Identity"]
    longer = {name: normal(2, 4, 19, 8) for name in inputs}
    judged = truth(spec_of(call_of(*longer.values(), {"is_causal": True})))
    assert eta(_run(model, longer)[0], judged["out"], "float32") <= ACCEPTANCE
    with pytest.raises(ValueError, match="query_offset=0 aligns the first rows"):
        export(f, inputs, dynamic={"query": {2: "L"}, "key": {2: "S"}, "value": {2: "S"}})


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda x: x if x.shape[0] % 2 else x + 1.0, "1, 3, 1, 3 operations"),
        (lambda x: x * (x.shape[0] ** 0.5), "a constant of float32 () that depends on them"),
        (lambda x: ndonnx.broadcast_to(x, (max(x.shape[0] // 64, 1), x.shape[0])), "a number that is 1, 1, 1, 3 at lengths"),
        (lambda x: ndonnx.broadcast_to(x, (x.shape[0] ** 2, x.shape[0])), "a number that is 25, 36, 81, 46656 at lengths (5,), (6,), (9,), (216,)"),
    ],
    ids=["branch", "float", "late", "square"],
)  # fmt: skip
def test_what_cannot_be_dynamic_is_refused(f: Callable[..., Any], what: str) -> None:
    with pytest.raises(ValueError) as caught:
        export(f, {"x": np.ones(5, np.float32)}, dynamic={"x": {0: "L"}})
    sentence = str(caught.value)
    assert sentence.startswith(
        "polyattn.onnx.export: expected one graph for every length, got, from the traced"
    )
    assert what in sentence
    assert sentence.endswith("export it with static lengths, or pass what depends on a length as an input")


@pytest.mark.parametrize("mask", [masks.window(256, 256), masks.chunked(512), masks.window(20, 20)])
def test_a_mask_that_hides_nothing_at_the_traced_lengths_is_in_the_model(mask: masks.Mask) -> None:
    f = lambda x: attention(x, x, x, mask=mask)  # noqa: E731
    model = export(f, {"x": normal(1, 1, 5, 8)}, dynamic={"x": {2: "L"}})
    x = normal(1, 1, 600, 8)
    judged = truth(spec_of(call_of(x, x, x, {"mask": mask})))
    assert eta(_run(model, {"x": x})[0], judged["out"], "float32") <= ACCEPTANCE


@pytest.mark.parametrize("order", ["LSBT", "BLST", "TSLB"])
def test_formulas_of_many_axes_are_not_mistaken_for_each_other(order: str) -> None:
    for sizes in ((5, 7, 1, 20), (16, 32, 1, 3), (1, 6, 1, 4), (4, 4, 4, 4), (2, 3, 4, 5)):
        first = {name: sizes["LSBT".index(name)] for name in order}
        lengths = lengths_to_trace(first)
        for f in (lambda a: a["S"] - a["L"], lambda a: a["B"] * a["L"] * 4, lambda a: a["L"] + a["S"] + 3):
            at = {"L": 17, "S": 404, "B": 9, "T": 1}
            assert formula([f(x) for x in lengths], lengths).at(at) == f(at)


def test_a_scale_that_the_operator_refuses_is_a_composite() -> None:
    inputs = drawn("plain", 2, 5, 7)
    for scale in (0.0, -0.5):
        model = export(lambda q, k, v, scale=scale: attention(q, k, v, scale=scale), inputs)
        assert "Attention" not in _operators(model)
        judged = truth(spec_of(call_of(*inputs.values(), {"scale": scale})))
        assert eta(_run(model, inputs)[0], judged["out"], "float32") <= ACCEPTANCE


def test_rotary_positions_keep_float64() -> None:
    layer = layers.GroupedQueryAttention(8, 4, num_kv_heads=2, is_causal=True, rotary=Rotary())
    x = RNG.normal(size=(2, 9, 8))
    params = layer.init(0, like=x)
    (out,) = _run(export(layer, {"x": x}, params=params), {"x": x})
    bound = ACCEPTANCE * noise(lambda number: layer(jax.tree.map(number, params), number(x))) / 2.0**29
    assert np.abs(out - layer(params, x)).max() <= bound


def test_a_step_of_decoding_with_a_cache_is_a_model() -> None:
    layer = layers.GroupedQueryAttention(8, 2, num_kv_heads=1, is_causal=True, rotary=Rotary())
    x = normal(2, 3, 8)
    params = layer.init(0, like=x)

    def step(x: Any, key: Any, value: Any, length: Any) -> Any:
        given = weights.convert(params, like=x)
        out, cache, _ = layer.run(given, x, cache=KVCache(key, value, length))
        return out, cache.key, cache.value, cache.length

    state = [normal(2, 1, 16, 4) * 0, normal(2, 1, 16, 4) * 0, np.asarray(0, np.int32)]
    names = ("key", "value", "length")
    model = export(step, {"x": x, **dict(zip(names, state, strict=True))}, dynamic={"x": {1: "L"}})
    pieces = []
    for piece in (x, normal(2, 1, 8), normal(2, 7, 8)):
        out, *state = _run(model, {"x": piece, **dict(zip(names, state, strict=True))})
        pieces.append((piece, out))
    whole, found = (np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))
    wide = jax.tree.map(lambda p: p.astype(np.float64), params)
    bound = ACCEPTANCE * noise(lambda number: layer(jax.tree.map(number, wide), number(whole)))
    assert np.abs(found - layer(wide, whole.astype(np.float64))).max() <= bound


def test_a_table_of_positions_bounds_the_lengths_and_not_the_export() -> None:
    table = normal(12, 8)
    f = lambda x: x + ndonnx.asarray(table)[: x.shape[1], :]  # noqa: E731
    model = export(f, {"x": normal(1, 3, 8)}, dynamic={"x": {1: "L"}})
    x = normal(1, 12, 8)
    assert (_run(model, {"x": x})[0] == x + table).all()


def test_wrong_names_of_axes_are_refused() -> None:
    inputs = {"query": normal(1, 2, 4, 8), "key": normal(1, 2, 5, 8), "value": normal(1, 2, 5, 8)}
    with pytest.raises(
        ValueError, match=r"expected dynamic to name inputs and their axes, got 'query': \{7: 'L'\}"
    ):
        export(attention, inputs, dynamic={"query": {7: "L"}})
    with pytest.raises(ValueError) as caught:
        export(attention, inputs, dynamic={name: {2: "L"} for name in inputs})
    assert str(caught.value) == (
        "polyattn.onnx.export: expected axes named 'L' of one length, got 4 and 5; name them differently, or change "
        "example_inputs"
    )


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
    for wrong in (None, [x], {"a": x}):
        with pytest.raises(TypeError, match="return an array, a tuple of arrays or an AttentionAux, got"):
            export(lambda x, wrong=wrong: wrong, {"x": x})
    with pytest.raises(
        ValueError, match="inputs whose names do not begin with output, got 'output_0'; rename it"
    ):
        export(lambda x: x, {"output_0": x})
    with pytest.raises(TypeError, match="'tan' is not implemented for 'float64' in onnxruntime"):
        export(lambda x: ndonnx.tan(x), {"x": x.astype(np.float64)})
    delta = {"q": normal(1, 2, 5, 4), "b": np.ones((1, 2, 5, 1), np.float32)}
    with pytest.raises(NotImplementedError, match="got ndonnx; pass chunk_size=1, the recurrence itself"):
        export(lambda q, b: linear_attention(q, q, q, beta=b), delta)
    with pytest.raises(
        TypeError, match="expected the function to return arrays made from its inputs, got ndarray"
    ):
        export(lambda x: np.ones(3), {"x": x})


@pytest.mark.parametrize("package", ["ndonnx", "onnx"])
@pytest.mark.parametrize("dynamic", [None, {"x": {0: "L"}}], ids=["static", "dynamic"])
def test_without_the_packages_of_onnx_the_extra_is_named(
    package: str, dynamic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as caught:
        export(lambda x: x, {"x": np.zeros((2, 3))}, dynamic=dynamic)
    assert str(caught.value) == (
        "polyattn.onnx.export: expected the packages onnx and ndonnx, which write the graph, got: import of "
        f"{package} halted; None in sys.modules; pip install 'polyattn[onnx]'"
    )
