"""Models of nnx, Linen, Keras, ONNX and polyattn, and functions: recorded, and compared with each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import installed, jax, jnp, nnx, torch
from shared.ports import BATCH, llama, small, tokens

from polyattn import weights
from polyattn.models.families import language_model
from polyattn.parity import ModelComparison, compare_models, record, tap

Floats = np.ndarray[Any, Any]


def names(found: ModelComparison) -> list[str]:
    return [wrong.name for wrong in found.wrong]


def numbers(model: Any) -> dict[str, Floats]:
    return {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}


def in_numpy(w: dict[str, Floats], changed: str = "") -> Any:
    """The small model of `shared.ports` written in NumPy, with one mistake or none."""
    import math

    erf = np.vectorize(math.erf)

    def norm(name: str, x: Floats, eps: float = 1e-5) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(eps))
        return tap(name, centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"])

    def linear(name: str, x: Floats) -> Floats:
        return tap(name, x @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    def attention(name: str, x: Floats) -> Floats:
        b, n, width = x.shape
        q, k, v = linear(f"{name}.qkv", x).reshape(b, n, 3, 4, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / np.float32((width // 4) ** 0.5)
        if changed != "mask":
            scores = np.where(np.tri(n, dtype=bool), scores, np.float32(-np.inf))
        e = np.exp(scores - scores.max(-1, keepdims=True))
        heads = e / e.sum(-1, keepdims=True) @ v
        return tap(name, linear(f"{name}.out", heads.swapaxes(1, 2).reshape(b, n, width)))

    def gelu(name: str, x: Floats) -> Floats:
        if changed == "gelu":
            return tap(
                name, x * (1 + np.tanh(np.float32(0.79788456) * (x + np.float32(0.044715) * x**3))) / 2
            )
        return tap(name, (x * (1 + erf(x / np.float32(2**0.5))).astype(np.float32) / 2).astype(np.float32))

    def model(x: Floats) -> Floats:
        for i in range(3):
            name = f"blocks.{i}"
            x = x + attention(f"{name}.attention", norm(f"{name}.norm_1", x))
            h = norm(f"{name}.norm_2", x, 1e-3 if changed == "eps" and i == 1 else 1e-5)
            h = linear(f"{name}.mlp.2", gelu(f"{name}.mlp.1", linear(f"{name}.mlp.0", h)))
            x = tap(name, x + h * (np.float32(1.01) if changed == "residual" else 1))
        return norm("norm", x)

    return model


def test_a_function_in_numpy_is_a_right_port() -> None:
    model = small()
    found = compare_models(model, in_numpy(numbers(model)), (BATCH,))
    assert found.agrees, str(found)
    assert len(found.rows) == 29


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("mask", [f"blocks.{i}.attention.out" for i in range(3)]),  # what lies between qkv and out
        ("gelu", [f"blocks.{i}.mlp.1" for i in range(3)]),
        ("eps", ["blocks.1.norm_2"]),
        ("residual", ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_between_taps_of_a_function_what_is_wrong_is_named_alone(change: str, wrong: list[str]) -> None:
    model = small()
    assert names(compare_models(model, in_numpy(numbers(model), change), (BATCH,))) == wrong


def test_two_functions_are_compared_in_their_own_precision_or_with_a_wider_one() -> None:
    w = numbers(small())
    wide = in_numpy({name: x.astype(np.float64) for name, x in w.items()})
    for exact in (None, wide):
        found = compare_models(in_numpy(w), in_numpy(w), (BATCH,), exact=exact)
        assert found.agrees, str(found)
        assert ("float64" in found.measured) == (exact is not None)
        assert names(compare_models(in_numpy(w), in_numpy(w, "eps"), (BATCH,), exact=exact)) == [
            "blocks.1.norm_2"
        ]


def test_a_function_under_jit_is_recorded() -> None:
    @jax.jit
    def model(x: Any) -> Any:
        h = tap("double", 2 * x)
        return tap("sum", h + x)

    found = record(model, jnp.asarray(BATCH))
    assert np.array_equal(found["double"], 2 * BATCH)
    assert list(found) == ["double", "sum", "output"]


def test_a_llama_and_its_port_to_polyattn_agree_and_a_wrong_one_is_named() -> None:
    model = llama()
    port, format = language_model(model.config)
    named = numbers(model)
    params = weights.from_format(port, named, format)
    found = compare_models(model, (port, params), (tokens,))
    assert found.agrees, str(found)
    pairs = {row.name: row.port_name for row in found.rows}
    assert pairs["model.layers.1.self_attn"] == "trunk.block_1.attention"
    assert pairs["model.layers.0.input_layernorm"] == "trunk.block_0.norm_1"
    assert any("matched by order and shape" in note for note in found.notes)

    named["model.layers.0.mlp.up_proj.weight"][3, 5] += 0.01
    named["model.layers.1.post_attention_layernorm.weight"] *= 1.0001
    globs = {
        "model.layers.*.self_attn": "trunk.block_*.attention",
        "model.layers.*.mlp": "trunk.block_*.mlp",
        "model.layers.*.post_attention_layernorm": "trunk.block_*.norm_2",
        "model.layers.*": "trunk.block_*",
    }
    wrong = compare_models(model, (port, weights.from_format(port, named, format)), (tokens,), names=globs)
    assert names(wrong) == ["model.layers.0.mlp", "model.layers.1.post_attention_layernorm"]
    assert len(wrong.rows) == 9


def test_a_stack_of_polyattn_is_a_reference_on_every_library() -> None:
    model = llama()
    port, format = language_model(model.config)
    named = numbers(model)
    ours = (port, weights.from_format(port, named, format))
    for make in (torch.from_numpy, jnp.asarray):
        theirs = (port, weights.from_format(port, {n: make(x) for n, x in named.items()}, format))
        found = compare_models(theirs, ours, (tokens,))
        assert found.agrees, str(found)
        assert "float64" in found.measured


class InNnx(nnx.Module):
    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm(x))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


def test_nnx_modules_are_compared_one_by_one() -> None:
    model, port = InNnx(), InNnx()
    found = compare_models(model, port, (BATCH,))
    assert found.agrees, str(found)
    assert {"attention.query", "attention", "layers.1", "output"} <= {row.name for row in found.rows}
    assert "float64" in found.measured
    port.norm.epsilon = 1e-3
    port.layers[1].bias[...] += 0.01
    assert names(compare_models(model, port, (BATCH,))) == ["norm", "layers.1"]
    assert not any("wrapped" in repr(vars(cls).get("__call__")) for cls in (nnx.Linear, InNnx))


def test_nnx_under_jit_is_watched_without_the_compiler() -> None:
    class Jitted(nnx.Module):
        def __init__(self) -> None:
            self.inner = InNnx()

        @nnx.jit
        def __call__(self, x: Any) -> Any:
            return self.inner(x)

    found = record(Jitted(), (BATCH,))
    assert "inner.attention.query" in list(found)


def test_linen_is_compared_with_a_port_in_torch() -> None:
    from flax import linen

    class Mlp(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(16, name="down")(linen.gelu(linen.Dense(32, name="up")(x), approximate=False))

    class InLinen(linen.Module):
        def setup(self) -> None:
            self.mlp = Mlp()
            self.norm = linen.LayerNorm(epsilon=1e-5)

        def __call__(self, x: Any) -> Any:
            return self.norm(x + self.mlp(x))

    class InTorch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
            self.norm = torch.nn.LayerNorm(16)

        def forward(self, x: Any) -> Any:
            return self.norm(x + self.down(torch.nn.functional.gelu(self.up(x))))

    model = InLinen()
    variables = model.init(jax.random.key(0), jnp.asarray(BATCH))
    port = InTorch().eval()
    with torch.no_grad():
        for name in ("up", "down"):
            held = variables["params"]["mlp"][name]
            getattr(port, name).weight.copy_(torch.tensor(np.asarray(held["kernel"]).T))
            getattr(port, name).bias.copy_(torch.tensor(np.asarray(held["bias"])))
    globs = {"mlp.*": "*", "norm": "norm"}
    found = compare_models((model, variables), port, (BATCH,), names=globs)
    assert found.agrees, str(found)
    assert [row.name for row in found.rows] == ["mlp.up", "mlp.down", "norm", "output"]
    port.norm.eps = 1e-3
    assert names(compare_models((model, variables), port, (BATCH,), names=globs)) == ["norm"]
    bound = model.bind(variables)
    assert list(record(bound, (BATCH,))) == ["mlp.up", "mlp.down", "mlp", "norm", "output"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_onnx_graph_is_a_reference_and_a_port(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    held = {"w": rng.normal(size=(16, 8)).astype(np.float32), "b": rng.normal(size=8).astype(np.float32)}

    def graph(scale: float) -> Any:
        node = onnx.helper.make_node
        nodes = [
            node("MatMul", ["x", "w"], ["product"]),
            node("Add", ["product", "b"], ["sum"]),
            node("Mul", ["sum", "scale"], ["scaled"]),
            node("Softmax", ["scaled"], ["y"], axis=-1),
        ]
        arrays = held | {"scale": np.asarray(scale, np.float32)}
        tensor = onnx.helper.make_tensor_value_info
        made = onnx.helper.make_graph(
            nodes,
            "small",
            [tensor("x", onnx.TensorProto.FLOAT, [None, None, 16])],
            [tensor("y", onnx.TensorProto.FLOAT, [None, None, 8])],
            [onnx.numpy_helper.from_array(x, name) for name, x in arrays.items()],
        )
        return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)

    def function(x: Floats, scale: float = 0.5) -> Floats:
        h = tap("sum", x @ held["w"] + held["b"])
        e = np.exp(h * np.float32(scale) - (h * np.float32(scale)).max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    path = tmp_path / "small.onnx"
    onnx.save(graph(0.5), path)
    found = record(path, {"x": BATCH})
    assert list(found) == ["product", "sum", "scaled", "y", "output"]
    assert "float64" in found.measured
    assert compare_models(path, graph(0.5), (BATCH,)).agrees
    assert names(compare_models(path, graph(0.501), (BATCH,))) == ["scaled"]
    assert compare_models(function, path, (BATCH,)).agrees
    assert names(compare_models(function, graph(0.501), (BATCH,))) == ["output"]
    assert compare_models(path, function, (BATCH,)).agrees
    with pytest.raises(
        ValueError, match="expected a batch with the inputs x of the graph, got 0 by place and z by name"
    ):
        record(path, {"z": BATCH})
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"expected an ONNX file, got 'none\.onnx'"):
        record(tmp_path / "none.onnx", {"x": BATCH})


KERAS = """
import sys
sys.path[:0] = sys.argv[1:]
from importlib.util import find_spec
import numpy as np
import keras
from polyattn.parity import compare_models, record
if find_spec("polyattn.parity.components") is None:
    from types import ModuleType, SimpleNamespace
    made = ModuleType("polyattn.parity.components")
    made.facts_of = lambda module: SimpleNamespace(kind="other", arrays={}, numbers={})
    made.explain = lambda *given, **unit: None
    made.compare_weights = lambda *given: []
    sys.modules[made.__name__] = made

class Block(keras.layers.Layer):
    def __init__(self, **named):
        super().__init__(**named)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5, name="norm")
        self.dense = keras.layers.Dense(16, activation="gelu", name="dense")
    def call(self, x):
        return x + self.dense(self.norm(x))

def made():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 16))
    x = Block(name="block")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))

batch = (np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32),)
model, port = made(), made()
found = compare_models(model, port, batch)
assert found.agrees, str(found)
assert {row.name for row in found.rows} >= {"block.norm", "block.dense", "block", "head", "output"}
port.get_layer("block").norm.epsilon = 1e-3
head = port.get_layer("head")
head.bias.assign(head.bias + 0.01)
print([wrong.name for wrong in compare_models(model, port, batch).wrong])
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_keras_model_is_compared_layer_by_layer(backend: str, tmp_path: Path) -> None:
    if not installed("keras"):
        pytest.skip("keras is not installed")
    root = Path(__file__).parents[3]
    own = {
        "KERAS_BACKEND": backend,
        "KERAS_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", KERAS, str(root), str(root / "backends")]
    done = subprocess.run(
        command, env=os.environ | own, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['block.norm', 'head']"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (3, "got int; pass the model itself"),
        ((3, 4), "got a tuple of int, int; pass the model itself"),
        (torch.nn.Linear, "got the class Linear; pass the model itself"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        record(model, (BATCH,))


def test_a_layer_without_its_params_is_refused() -> None:
    from polyattn.layers import LayerNorm

    with pytest.raises(
        TypeError, match=r"got LayerNorm; a layer has no parameters of its own: pass \(layer, params\)"
    ):
        record(LayerNorm(3, epsilon=1e-5), (BATCH,))


@pytest.mark.parametrize("batch", [(), [BATCH], 3, {1: BATCH}])
def test_what_is_no_batch_is_refused(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"polyattn\.parity\.record: expected a batch"):
        record(lambda x: x, batch)


def test_names_of_taps_are_words() -> None:
    with pytest.raises(
        TypeError, match=r"polyattn\.parity\.tap: expected a name and an array, got ndarray first"
    ):
        tap(BATCH, "x")  # type: ignore[arg-type]
    assert tap("x", BATCH) is BATCH
