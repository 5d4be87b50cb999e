"""The Keras layer of docs/frameworks.md computes and learns what Keras's own does, on every backend of both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from shared.running import drawn, mapped
from shared.textbook import (
    CONTEXT,
    D_OUT,
    FIRST_ROWS,
    ITSELF,
    KERAS_AT,
    PAST,
    PROGRAMS,
    SOME,
    B,
    E,
    H,
    Judge,
    K,
    L,
    Q,
    S,
    V,
    X,
    same,
    softmax,
    weights_of,
)

from polyattn import attention, layers, weights
from polyattn.arrays import Array
from polyattn.truth.rounding import noise

Floats = np.ndarray[Any, Any]


# Keras takes its backend from the environment, once per process: a process for each.

KERAS: dict[str, tuple[str, Floats | None, Any]] = {
    # name: (arguments of the call, context, seen)
    "plain": ("", CONTEXT, True),
    "mask": ("attention_mask=given['some']", CONTEXT, SOME[:1]),
    "mask for each head": ("attention_mask=given['heads']", CONTEXT, SOME),
    "causal": ("use_causal_mask=True", None, PAST),
    "causal and a mask": (
        "use_causal_mask=True, attention_mask=given['some'] | given['itself']",
        CONTEXT,
        (SOME[:1] | ITSELF) & FIRST_ROWS,
    ),
}
FITTED = ("mask for each head", "causal")
# To compile theirs for PyTorch takes a minute.
FITS = {"theirs": ["eagerly"], "ours": ["eagerly", "compiled"]}

SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import polyattn
from polyattn import weights

counted, attention = [], polyattn.attention


def counting(*arguments, **options):
    counted.append(options["layout"])
    return attention(*arguments, **options)


polyattn.attention = counting
folder = Path(sys.argv[1])
namespace = {}
exec((folder / "class.py").read_text(), namespace)
import keras
backend = keras.backend.backend()
if backend == "torch":  # the compiler in full, without the C++ that takes a minute
    import torch
    from functools import partial
    torch.compile = partial(torch.compile, backend="aot_eager")
given = {name: np.asarray(x) for name, x in weights.load(folder / "given.npz", like=np.zeros(())).items()
         if not isinstance(x, dict)}
params = weights.load(folder / "params.npz", like=keras.ops.zeros((), "float32"))
x, d_out = given["x"], given["d_out"]
calls, fitted, fits = eval((folder / "calls").read_text())
found = {}


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def build(kind, name, arguments, context):
    layer = kind(4, 6)
    inputs = [keras.Input((None, 24)) for _ in range(1 + context)]
    call = eval(f"dict({arguments})", {"given": {n: keras.ops.convert_to_tensor(y) for n, y in given.items()}})
    model = keras.Model(inputs, layer(inputs[0], inputs[-1], **call))
    weights.write(layer, params)
    if backend == "numpy":  # what is read are copies: neither side sees the other learn
        for x in weights.read(layer).values():
            assert not any(np.shares_memory(x, v.value) for v in layer.weights)
    return layer, model, call


for name, (arguments, context) in calls.items():
    for who, kind in ("theirs", keras.layers.MultiHeadAttention), ("ours", namespace["Attention"]):
        before = len(counted)
        layer, model, call = build(kind, name, arguments, context)
        data = [x, given["context"]] if context else [x]
        out, scores = layer(data[0], data[-1], return_attention_scores=True, **call)
        results = {"eager": {"out": numpy(out), "weights": numpy(scores)}}
        results["functional"] = {"out": model.predict(data, verbose=0)}
        for mode in fits[who] if name in fitted and backend != "numpy" else ():
            layer, model, call = build(kind, name, arguments, context)
            how = {"run_eagerly": True} if mode == "eagerly" else {"jit_compile": True}
            model.compile(keras.optimizers.SGD(1.0), lambda y, out: keras.ops.sum(y * out), **how)
            model.fit(data, d_out, verbose=0)
            results[mode] = {name: numpy(w) for name, w in weights.read(layer).items()}
        found[f"{name}, {who}"] = results
        assert (len(counted) > before) == (who == "ours"), (name, who, counted)

kind = namespace["Attention"]
one, two, rest = (kind(4, 6, dropout=0.25, seed=3) for _ in range(3))
q, k, v = (keras.ops.convert_to_tensor(given[n]) for n in ("heads_q", "heads_k", "identity"))
for layer in (one, two, rest):
    layer.build(x.shape, x.shape)
drawn = [numpy(layer._compute_attention(q, k, v, None, training)[0])
         for layer, training in ((one, True), (one, True), (two, True), (rest, False), (rest, None))]
found["dropout"] = {str(i): y for i, y in enumerate(drawn)}
layer = kind(4, 6)
layer.build(x.shape, x.shape)
weights.write(layer, params)
found["nothing"] = {"out": numpy(layer(x, x, attention_mask=np.zeros((1, 5, 5), bool)))}


class Wrapped(keras.Layer):  # without a word on shapes: Keras finds them by calling
    def __init__(self):
        super().__init__()
        self.attention = kind(4, 6, dropout=0.25)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x, training=None):
        return self.attention(x, x, use_causal_mask=True, training=training)


inputs = keras.Input((None, 24))
found["shape"] = {"out": np.asarray([n or 0 for n in Wrapped()(inputs).shape])}
said = []
for refused in (lambda: kind(4, 6)(np.zeros((2, 3, 5, 24)), np.zeros((2, 3, 5, 24))), lambda: attention(inputs, inputs, inputs)):
    try:
        refused()
    except (TypeError, ValueError) as error:
        said.append(f"{type(error).__name__}: {error}")
(folder / f"{backend}.said").write_text(repr(said))
weights.save(found, folder / f"{backend}.npz")
if backend != "numpy":
    before = len(counted)
    exec((folder / "use.py").read_text(), namespace)
    assert len(counted) > before
"""
BACKENDS = ("jax", "torch", "numpy")


class Said(NamedTuple):
    found: Mapping[str, Any]
    refusals: list[str]
    printed: str


@pytest.fixture(scope="module")
def keras_results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Said]:
    folder = tmp_path_factory.mktemp("keras")
    layer = layers.MultiHeadAttention(E, H)
    given = {"x": X, "context": CONTEXT, "d_out": D_OUT, "heads_q": Q, "heads_k": K}
    given["identity"] = np.broadcast_to(np.eye(S)[None, :, None], (B, S, H, S))
    given = {name: np.asarray(x, np.float32) for name, x in given.items()}
    given |= {"some": SOME[:1], "heads": SOME[None], "itself": ITSELF[None]}
    weights.save(given, folder / "given.npz")
    params = weights.to_format(layer, mapped(np.float32, drawn(layer)), "keras")
    weights.save(params, folder / "params.npz")
    calls = {n: (call, c is not None) for n, (call, c, _) in KERAS.items()}
    (folder / "calls").write_text(repr((calls, FITTED, FITS)))
    (folder / "class.py").write_text(PROGRAMS[KERAS_AT])
    (folder / "use.py").write_text(PROGRAMS[KERAS_AT + 1])

    def start(backend: str) -> subprocess.Popen[str]:
        own = {"KERAS_BACKEND": backend, "KERAS_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**os.environ, **own}, **pipes)  # type: ignore[call-overload, no-any-return]

    printed: dict[str, str] = {}
    with ExitStack() as stack:
        running = {backend: stack.enter_context(start(backend)) for backend in BACKENDS}
        stack.callback(lambda: [process.kill() for process in running.values()])  # where one has failed
        for backend, process in running.items():
            printed[backend], errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    return {
        backend: Said(
            weights.load(folder / f"{backend}.npz", like=X),
            eval((folder / f"{backend}.said").read_text()),
            printed[backend],
        )
        for backend in BACKENDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(KERAS))
def test_the_keras_layer_computes_and_learns_what_keras_does(
    name: str, backend: str, keras_results: Mapping[str, Said]
) -> None:
    _, context, seen = KERAS[name]
    layer = layers.MultiHeadAttention(E, H)
    judge = Judge(drawn(layer), X, context, D_OUT, seen=seen)
    trained = name in FITTED and backend != "numpy"  # which does not train
    for who, modes in FITS.items():
        results = keras_results[backend].found[f"{name}, {who}"]
        judge.judge(f"{who}, eager", results["eager"])
        judge.judge(f"{who}, functional", results["functional"])
        for mode in modes if trained else ():
            after = weights.from_format(layer, results[mode], "keras")
            judge.judge(f"{who}, {mode}", {f"{n} after": w for n, w in after.items()})


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_keras_layer_drops_weights_in_training_alone(
    backend: str, keras_results: Mapping[str, Said]
) -> None:
    one, later, again, rest, unsaid = keras_results[backend].found["dropout"].values()
    assert same(one, again)  # layers of one seed
    assert not same(one, later)
    assert same(rest, unsaid)
    assert (rest != 0.0).all()
    kept = (one != 0.0) & (later != 0.0)
    assert abs(kept.sum() - 0.5625 * kept.size) <= 5 * (0.5625 * 0.4375 * kept.size) ** 0.5
    for found, where, keep in ((one, kept, 0.75), (rest, rest != 0.0, 1.0)):
        true, bound = weights_of(Q, K, keep)
        assert np.abs(found - true)[where].max() <= bound


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_keras_layer_says_what_it_does_not_do(backend: str, keras_results: Mapping[str, Said]) -> None:
    said = keras_results[backend]
    assert list(said.found["shape"]["out"]) == [0, 0, E]  # of a layer around it, with sizes unknown
    bias = drawn(layers.MultiHeadAttention(E, H))["b_o"]
    assert (said.found["nothing"]["out"] == bias).all()  # no key seen: 0, then the output projection
    rank, symbol = said.refusals
    assert rank.startswith("ValueError: ")
    assert "Attention: expected heads of 4 axes, got " in rank
    assert symbol == (
        "TypeError: polyattn.attention: expected query to be an array of an array API library (NumPy, JAX, PyTorch, "
        "...), got KerasTensor; convert it, for example with numpy.asarray"
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_programs_on_keras_print_what_the_page_says(
    backend: str, keras_results: Mapping[str, Said]
) -> None:
    assert re.fullmatch(
        r"True (torch\.Size\(\[8, 16, 32\]\)|\(8, 16, 32\))\n", keras_results[backend].printed
    )


def test_attention_takes_sizes_that_are_symbols() -> None:
    """As Keras has them on JAX when it looks for the shape of a result."""

    def f(q: Array, k: Array, v: Array) -> Array:
        return attention(q, k, v, mask=jnp.asarray(SOME), layout="BLHD")

    scope = jax.export.SymbolicScope()
    sizes = (jax.export.symbolic_shape(f"b, {n}, {H}, 6", scope=scope) for n in (L, S, S))
    symbols = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
    exported = jax.export.export(jax.jit(f))(*symbols)
    assert str(exported.out_avals[0].shape) == f"(b, {L}, {H}, 6)"

    def definition(number: Callable[[Floats], Floats]) -> Floats:
        q, k, v = (number(np.asarray(x)).swapaxes(1, 2) for x in (Q, K, V))
        return (softmax(q @ k.swapaxes(2, 3) * 6**-0.5, SOME) @ v).swapaxes(1, 2)

    true = definition(lambda x: x.astype(np.float64))
    assert np.abs(np.asarray(exported.call(Q, K, V)) - true).max() <= 4 * noise(definition)


def test_tensors_of_no_array_api_library_are_refused_by_the_name_of_their_class() -> None:
    kind = type("EagerTensor", (), {"__module__": "tensorflow.python.framework.ops", "dtype": "float32"})
    sentence = (
        "polyattn.attention: expected query to be an array of an array API library (NumPy, JAX, PyTorch, ...), got "
        "EagerTensor; convert it, for example with numpy.asarray"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        attention(kind(), kind(), kind(), layout="BLHD")
