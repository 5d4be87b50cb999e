"""A layer with the weights of a framework's own layer computes the same, and the other way round.

Both sides are judged by the layer in float64, within 4 times what rounding to float32 does to it (`rounding.noise`).
That truth is in turn what the framework computes in float64, wherever it computes in float64 throughout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from polyattn import AuxRequest, layers, masks, weights
from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

Floats = np.ndarray[Any, Any]
Call = Callable[..., Any]

LIBRARIES: dict[str, Array] = {
    "numpy": np.zeros((), np.float32),
    "jax": jnp.zeros(()),
    "torch": torch.zeros(()),
}
B, L, S = 2, 5, 7  # batch, tokens, tokens of a source
E, H, C = 24, 4, 10  # width, heads, width of a source of another kind

X: Floats = np.random.default_rng(1).normal(size=(B, L, E)).astype(np.float32)
CONTEXT: Floats = np.random.default_rng(2).normal(size=(B, S, C)).astype(np.float32)
SOURCE: Floats = np.random.default_rng(3).normal(size=(B, S, E)).astype(np.float32)


def seen(b: Any, h: Any, q: Any, kv: Any) -> Any:
    """Which keys a query may attend to: some, itself among them, and not alike in both directions."""
    return (q - kv) % 3 != 1


SEEN = seen(0, 0, np.arange(L)[:, None], np.arange(L))  # True = may attend
SMALL = X * np.float32(0.01)  # of variance 1e-4, beside which the epsilon of a norm counts
TOKENS, TOKENS_OF_SOURCE = [4, 5], [4, 7]
REAL, REAL_SOURCE = np.arange(L) < np.c_[TOKENS], np.arange(S) < np.c_[TOKENS_OF_SOURCE]


class Twin(NamedTuple):
    """A layer of ours and a module of a framework that should compute the same."""

    layer: Layer
    format: str
    module: Callable[[], Any]
    theirs: Call = lambda module, *inputs: module(*inputs)
    inputs: tuple[Floats, ...] = (X,)
    options: Mapping[str, Any] = {}  # of our call
    wide: bool = False  # whether the framework computes in float64 throughout
    prefix: str = ""
    others: tuple[str, ...] = ()  # beginnings of the names of parameters that are not of the layer


def tree(f: Call, params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tree(f, x) if isinstance(x, Mapping) else f(x) for name, x in params.items()}


def to_numpy(x: Array) -> Floats:
    return backend_of(x).to_numpy(x)


def drawn(layer: Layer) -> dict[str, Any]:
    """Float32 params in which no bias is 0 and no scale is 1, as after training."""
    rng = np.random.default_rng(0)
    initial = layer.init(0, like=np.zeros((), np.float32))
    return tree(lambda x: (x + rng.normal(0.0, 0.2, x.shape)).astype(np.float32), initial)


def compare(twin: Twin, library: str) -> None:
    """Weights into the module and out again; then what it computes from them."""
    params, module = drawn(twin.layer), twin.module()
    every = weights.read(module)
    ours = weights.to_format(twin.layer, params, twin.format, prefix=twin.prefix)
    assert all(name.startswith(twin.others) for name in every.keys() - ours.keys())
    module = weights.write(module, {**every, **ours})
    read = {name: x for name, x in weights.read(module).items() if name in ours}
    inputs = [weights.convert({"x": x}, like=LIBRARIES[library])["x"] for x in twin.inputs]
    out = to_numpy(twin.theirs(module, *inputs))
    wide = to_numpy(twin.theirs(module.double(), *(x.double() for x in inputs))) if twin.wide else None
    judge(twin, params, read, out, wide)


def judge(
    twin: Twin, params: dict[str, Any], read: Mapping[str, Array], out: Floats, wide: Floats | None
) -> None:
    """params: what was written; read: what was read; out, wide: what was computed in float32 and float64."""
    found = weights.flatten(weights.from_format(twin.layer, read, twin.format, prefix=twin.prefix))
    written = weights.flatten(params)
    assert all(to_numpy(found[name]).tobytes() == x.tobytes() for name, x in written.items())

    call: Any = twin.layer
    true = call(tree(np.float64, params), *(x.astype(np.float64) for x in twin.inputs), **twin.options)
    bound = 4 * noise(lambda f: call(tree(f, params), *(f(x) for x in twin.inputs), **twin.options))
    for name, like in LIBRARIES.items():
        inputs = (weights.convert({"x": x}, like=like)["x"] for x in twin.inputs)
        ours = call(weights.convert(params, like=like), *inputs, **twin.options)
        assert np.abs(to_numpy(ours) - true).max() <= bound, name
    assert out.shape == true.shape
    assert np.abs(out - true).max() <= bound, "theirs"
    if wide is not None:  # roundings to float64 are 2^-29 of those to float32
        assert np.abs(wide - true).max() <= bound * 2.0**-29, "theirs in float64"


# PyTorch. In torch.nn.MultiheadAttention and torch.nn.Transformer, True means: do not attend.

HIDDEN, FUTURE = torch.from_numpy(~SEEN), torch.from_numpy(~np.tri(L, dtype=bool))
PADDING, SOURCE_PADDING = torch.from_numpy(~REAL), torch.from_numpy(~REAL_SOURCE)


def torch_attention(
    module: Mapping[str, Any], call: Mapping[str, Any], *inputs: Floats, mask: Any = None, **changes: Any
) -> Twin:
    def theirs(attention: Any, x: Any, context: Any = None) -> Any:
        context = x if context is None else context
        return attention(x, context, context, **call)[0]

    return Twin(
        layers.MultiHeadAttention(E, H, **changes),
        "torch",
        lambda: torch.nn.MultiheadAttention(E, H, batch_first=True, **module),
        theirs,
        inputs,
        {"mask": mask},
        wide=True,
    )


def torch_block(kind: str, norm_first: bool, activation: str, depth: int = 0) -> Twin:
    """nn.TransformerEncoderLayer or nn.TransformerDecoderLayer, or `depth` of them and a norm."""
    block: Any = getattr(layers, f"{kind}Block").preset(
        "torch", E, H, 40, norm_first=norm_first, activation=activation
    )
    decodes = kind == "Decoder"

    def module() -> Any:
        one = getattr(torch.nn, f"Transformer{kind}Layer")(
            E, H, 40, activation=activation, norm_first=norm_first, batch_first=True
        )
        if not depth:
            return one.eval()
        options = {} if decodes else {"enable_nested_tensor": False}
        stack = getattr(torch.nn, f"Transformer{kind}")
        return stack(one, depth, norm=torch.nn.LayerNorm(E), **options).eval()

    options = {
        "tgt_mask" if decodes else "mask" if depth else "src_mask": FUTURE,
        "tgt_key_padding_mask" if decodes else "src_key_padding_mask": PADDING,
        **({"memory_key_padding_mask": SOURCE_PADDING} if decodes else {}),
    }
    return Twin(
        getattr(layers, kind)(block, depth, final_norm=layers.LayerNorm(E, epsilon=1e-5)) if depth else block,
        "torch",
        module,
        lambda block, *inputs: block(*inputs, **options),
        (X, SOURCE) if decodes else (X,),
        {
            "is_causal": True,
            "mask": masks.key_lengths(TOKENS),
            **({"context_mask": masks.key_lengths(TOKENS_OF_SOURCE)} if decodes else {}),
        },
        wide=True,
    )


TORCH: dict[str, Twin] = {
    "MultiheadAttention": torch_attention({}, {}, X),
    "MultiheadAttention, masked": torch_attention(
        {"bias": False},
        {"attn_mask": HIDDEN, "need_weights": False},
        X,
        mask=masks.mask_mod(seen),
        qkv_bias=False,
        out_bias=False,
    ),
    "MultiheadAttention, kdim, padded": torch_attention(
        {"kdim": C, "vdim": C},
        {"key_padding_mask": SOURCE_PADDING},
        X,
        CONTEXT,
        mask=masks.key_lengths(TOKENS_OF_SOURCE),
        context_dim=C,
    ),
    **{
        f"Transformer{kind}Layer, norm {'first' if first else 'last'}, {activation}": torch_block(
            kind, first, activation
        )
        for kind in ("Encoder", "Decoder")
        for first in (True, False)
        for activation in ("relu", "gelu")
    },
    "TransformerEncoder": torch_block("Encoder", True, "gelu", depth=2),
    "TransformerDecoder": torch_block("Decoder", False, "relu", depth=2),
    "LayerNorm": Twin(
        layers.LayerNorm(E, epsilon=1e-5), "torch", lambda: torch.nn.LayerNorm(E), inputs=(SMALL,), wide=True
    ),
    "RMSNorm": Twin(
        layers.RMSNorm(E, epsilon=1e-6),
        "torch",
        lambda: torch.nn.RMSNorm(E, eps=1e-6),
        inputs=(SMALL,),
        wide=True,
    ),
    "Linear": Twin(layers.Linear(E, C), "torch", lambda: torch.nn.Linear(E, C), wide=True),
}


@pytest.mark.parametrize("name", list(TORCH))
def test_a_layer_of_torch_and_ours_are_the_same(name: str) -> None:
    compare(TORCH[name], "torch")


def test_the_weights_that_torch_returns_are_ours() -> None:
    layer = layers.MultiHeadAttention(E, H)
    module = torch.nn.MultiheadAttention(E, H, batch_first=True).double()
    x = torch.from_numpy(X).double()
    _, theirs = module(x, x, x, attn_mask=HIDDEN, average_attn_weights=False)
    params = weights.from_format(layer, weights.read(module), "torch")

    def ours(params: Any, x: Array) -> Array:
        asked = AuxRequest(weights=True)
        return layer.run(params, x, mask=masks.mask_mod(seen), return_aux=asked).aux.weights

    bound = 4 * noise(lambda f: ours(tree(lambda w: f(to_numpy(w)), params), f(X))) * 2.0**-29
    assert np.abs(to_numpy(theirs - ours(params, x))).max() <= bound


# transformers


def hugging_face(
    model: str, config: Mapping[str, Any], layer: Layer, *, format: str = "llama", **more: Any
) -> Twin:
    """The blocks and the last norm of a model with random weights, which takes vectors in place of tokens."""

    def module() -> Any:
        import transformers

        tokens = {"vocab_size": 3, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        made = getattr(transformers, f"{model}Config")(**tokens, use_cache=False, **config)
        return getattr(transformers, f"{model}Model")(made).eval()

    def theirs(module: Any, x: Any) -> Any:
        return module(inputs_embeds=x).last_hidden_state

    return Twin(layer, format, module, **{"theirs": theirs, "others": ("embed_tokens.",), **more})


def llama(*, mlp_bias: bool = False, **changes: Any) -> Layer:
    norm = layers.RMSNorm(E, epsilon=1e-6)
    settings = {"qkv_bias": False, "out_bias": False, **changes}
    attention = layers.GroupedQueryAttention(
        E, H, num_kv_heads=2, is_causal=True, rotary=Rotary(base=5000.0), **settings
    )
    mlp = layers.MLP(E, 40, activation="swiglu", use_bias=mlp_bias)
    return layers.Encoder(layers.EncoderBlock(attention, mlp, norm, norm_first=True), 2, final_norm=norm)


LLAMA = {
    "hidden_size": E,
    "num_attention_heads": H,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
GPT2_NORM = layers.LayerNorm(E, epsilon=1e-5)
GPT2_BLOCK = layers.EncoderBlock(
    layers.CausalSelfAttention(E, H, context_length=L),
    layers.MLP(E, 40, activation="gelu_tanh"),
    GPT2_NORM,
    norm_first=True,
)
BERT_BLOCK = layers.EncoderBlock(
    layers.MultiHeadAttention(E, H),
    layers.MLP(E, 40, activation="gelu"),
    layers.LayerNorm(E, epsilon=1e-12),
    norm_first=False,
)


def gpt_oss() -> Twin:
    """The attention of GPT-OSS, on positions that are all 0: its sinks are what Llama's has not."""

    def module() -> Any:
        from transformers.models.gpt_oss import modeling_gpt_oss as theirs

        config = theirs.GptOssConfig(
            hidden_size=E,
            num_attention_heads=H,
            num_key_value_heads=2,
            head_dim=6,
            attention_bias=True,
            layer_types=["full_attention"],
            num_hidden_layers=1,
            attn_implementation="eager",
        )
        return theirs.GptOssAttention(config, 0).eval()

    def theirs(module: Any, x: Any) -> Any:
        unturned = torch.ones(1, L, 3, dtype=x.dtype), torch.zeros(1, L, 3, dtype=x.dtype)
        return module(x, unturned, torch.zeros(L, L, dtype=x.dtype).masked_fill(FUTURE, -torch.inf))[0]

    layer = layers.GroupedQueryAttention(E, H, num_kv_heads=2, head_dim=6, sinks=True, is_causal=True)
    return Twin(layer, "llama", module, theirs, wide=True)


HUGGING_FACE: dict[str, Twin] = {
    "the attention of GPT-OSS": gpt_oss(),
    "GPT2": hugging_face(
        "GPT2",
        {"n_embd": E, "n_head": H, "n_layer": 2, "n_inner": 40, "n_positions": L},
        layers.Encoder(GPT2_BLOCK, 2, final_norm=GPT2_NORM),
        format="gpt2",
        # The model adds the embedding of positions to what it is given.
        theirs=lambda model, x: model(inputs_embeds=x - model.wpe.weight).last_hidden_state,
        wide=True,
        others=("wte.", "wpe."),
    ),
    "Bert": hugging_face(
        "Bert",
        {"hidden_size": E, "num_attention_heads": H, "num_hidden_layers": 2, "intermediate_size": 40},
        layers.Encoder(BERT_BLOCK, 2),
        format="bert",
        theirs=lambda model, x: model.encoder(x, attention_mask=~PADDING[:, None, None]).last_hidden_state,
        options={"mask": masks.key_lengths(TOKENS)},
        wide=True,
        prefix="encoder.",
        others=("embeddings.", "pooler."),
    ),
    # From here on norms and angles are computed in float32 whatever the dtype.
    "Llama": hugging_face("Llama", LLAMA, llama()),
    "Llama with biases": hugging_face(
        "Llama",
        {**LLAMA, "attention_bias": True, "mlp_bias": True},
        llama(qkv_bias=True, out_bias=True, mlp_bias=True),
    ),
    "Mistral": hugging_face("Mistral", {**LLAMA, "sliding_window": 3}, llama(mask=masks.sliding_window(3))),
    "Qwen2": hugging_face("Qwen2", LLAMA, llama(qkv_bias=True)),
    "Qwen3": hugging_face(
        "Qwen3",
        {**LLAMA, "head_dim": 8},
        llama(head_dim=8, qk_norm=layers.RMSNorm(8, epsilon=1e-6)),
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", list(HUGGING_FACE))
def test_a_model_of_transformers_and_ours_are_the_same(name: str) -> None:
    compare(HUGGING_FACE[name], "torch")


# Flax and Equinox


def flax(layer: Layer, module: Callable[[nnx.Rngs], Any], *inputs: Floats, **more: Any) -> Twin:
    return Twin(layer, "flax", lambda: module(nnx.Rngs(0)), inputs=inputs or (X,), **more)


def equinox(layer: Layer, module: Callable[[Any], Any], *inputs: Floats, **more: Any) -> Twin:
    return Twin(layer, "equinox", lambda: module(jax.random.key(0)), inputs=inputs or (X,), **more)


JAX_SEEN = jnp.asarray(SEEN)
MASKED = {"mask": masks.mask_mod(seen)}

JAX: dict[str, Twin] = {
    "nnx.MultiHeadAttention": flax(
        layers.MultiHeadAttention(E, H),
        lambda rngs: nnx.MultiHeadAttention(H, E, decode=False, rngs=rngs),
        options=MASKED,
        theirs=lambda module, x: module(x, mask=JAX_SEEN),
    ),
    "nnx.MultiHeadAttention, grouped, over a source": flax(
        layers.GroupedQueryAttention(E, H, num_kv_heads=2, head_dim=3, context_dim=C),
        lambda rngs: nnx.MultiHeadAttention(
            H, E, qkv_features=3 * H, num_kv_heads=2, in_kv_features=C, decode=False, rngs=rngs
        ),
        X,
        CONTEXT,
    ),
    "nnx.MultiHeadAttention, normalised": flax(
        layers.MultiHeadAttention(
            E,
            H,
            qkv_bias=False,
            out_bias=False,
            qk_norm=layers.LayerNorm(E // H, epsilon=1e-6, use_bias=False),
        ),
        lambda rngs: nnx.MultiHeadAttention(H, E, use_bias=False, normalize_qk=True, decode=False, rngs=rngs),
    ),
    "nnx.LayerNorm": flax(layers.LayerNorm(E, epsilon=1e-6), lambda rngs: nnx.LayerNorm(E, rngs=rngs), SMALL),
    "nnx.RMSNorm": flax(layers.RMSNorm(E, epsilon=1e-6), lambda rngs: nnx.RMSNorm(E, rngs=rngs), SMALL),
    "nnx.Linear": flax(layers.Linear(E, C), lambda rngs: nnx.Linear(E, C, rngs=rngs)),
    "eqx.nn.MultiheadAttention": equinox(
        layers.MultiHeadAttention(E, H, qkv_bias=False, out_bias=False),
        lambda key: eqx.nn.MultiheadAttention(H, E, key=key),
        options=MASKED,
        theirs=lambda module, x: jax.vmap(lambda x: module(x, x, x, mask=JAX_SEEN))(x),
    ),
    "eqx.nn.MultiheadAttention with biases, over a source": equinox(
        layers.MultiHeadAttention(E, H, context_dim=C),
        lambda key: eqx.nn.MultiheadAttention(
            *(H, E, C, C),
            **{f"use_{name}_bias": True for name in ("query", "key", "value", "output")},
            key=key,
        ),
        X,
        CONTEXT,
        theirs=lambda module, x, c: jax.vmap(module)(x, c, c),
    ),
    "eqx.nn.LayerNorm": equinox(
        layers.LayerNorm(E, epsilon=1e-5),
        lambda key: eqx.nn.LayerNorm(E),
        SMALL,
        theirs=lambda module, x: jax.vmap(jax.vmap(module))(x),
    ),
    "eqx.nn.RMSNorm": equinox(
        layers.RMSNorm(E, epsilon=1e-5),
        lambda key: eqx.nn.RMSNorm(E, use_bias=False),
        SMALL,
        theirs=lambda module, x: jax.vmap(jax.vmap(module))(x),
    ),
    "eqx.nn.Linear": equinox(
        layers.Linear(E, C),
        lambda key: eqx.nn.Linear(E, C, key=key),
        theirs=lambda module, x: jax.vmap(jax.vmap(module))(x),
    ),
}


@pytest.mark.parametrize("name", list(JAX))
def test_a_layer_of_flax_or_equinox_and_ours_are_the_same(name: str) -> None:
    compare(JAX[name], "jax")


# Keras takes its backend from the environment, once per process: a process for each.

KERAS: dict[str, tuple[str, str, Twin]] = {
    # name: module, call, twin; keras calls attention with (query, value, key)
    "MultiHeadAttention": (
        "keras.layers.MultiHeadAttention(4, 6)",
        "module(x, x, attention_mask=seen, use_causal_mask=True)",
        Twin(layers.MultiHeadAttention(E, H), "keras", dict, options={**MASKED, "is_causal": True}),
    ),
    "MultiHeadAttention over a source": (
        "keras.layers.MultiHeadAttention(4, 3, use_bias=False)",
        "module(x, context)",
        Twin(
            layers.MultiHeadAttention(E, H, head_dim=3, context_dim=C, qkv_bias=False, out_bias=False),
            "keras",
            dict,
            inputs=(X, CONTEXT),
        ),
    ),
    "GroupQueryAttention": (
        "keras.layers.GroupQueryAttention(6, 4, 2)",
        "module(x, context, attention_mask=real)",
        Twin(
            layers.GroupedQueryAttention(E, H, num_kv_heads=2, context_dim=C),
            "keras",
            dict,
            inputs=(X, CONTEXT),
            options={"mask": masks.key_lengths(TOKENS_OF_SOURCE)},
        ),
    ),
    "LayerNormalization": (
        "keras.layers.LayerNormalization()",
        "module(small)",
        Twin(layers.LayerNorm(E, epsilon=1e-3), "keras", dict, inputs=(SMALL,)),
    ),
    "RMSNormalization": (
        "keras.layers.RMSNormalization()",
        "module(small)",
        Twin(layers.RMSNorm(E, epsilon=1e-6), "keras", dict, inputs=(SMALL,)),
    ),
    "Dense": ("keras.layers.Dense(10)", "module(x)", Twin(layers.Linear(E, C), "keras", dict)),
}

SCRIPT = """
import sys
from pathlib import Path
import keras
from polyattn import weights

folder, like = Path(sys.argv[1]), keras.ops.zeros((), "float32")
given = weights.load(folder / "given.npz", like=like)
x, small, context, seen, real = (given[name] for name in ("x", "small", "context", "seen", "real"))
found = {}
for name, (source, call) in eval((folder / "calls").read_text()).items():
    module = eval(source)
    eval(call)  # builds it
    weights.write(module, given[name])
    found[name] = {"out": eval(call), "read": weights.read(module)}
weights.save(found, folder / f"{keras.backend.backend()}.npz")
"""


@pytest.fixture(scope="module")
def keras_results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """backend -> name -> {"out": what it computed, "read": what was read from it}."""
    folder = tmp_path_factory.mktemp("keras")
    given: dict[str, Any] = {
        name: weights.to_format(twin.layer, drawn(twin.layer), "keras")
        for name, (_, _, twin) in KERAS.items()
    }
    given |= {"x": X, "small": SMALL, "context": CONTEXT, "seen": SEEN[None], "real": REAL_SOURCE[:, None]}
    weights.save(given, folder / "given.npz")
    (folder / "calls").write_text(repr({name: (module, call) for name, (module, call, _) in KERAS.items()}))

    def start(backend: str) -> subprocess.Popen[str]:
        own = {"KERAS_BACKEND": backend, "KERAS_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        return subprocess.Popen(command, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True)

    with ExitStack() as stack:
        running = {backend: stack.enter_context(start(backend)) for backend in ("jax", "torch")}
        stack.callback(lambda: [process.kill() for process in running.values()])  # where one has failed
        for process in running.values():
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    return {backend: weights.load(folder / f"{backend}.npz", like=X) for backend in running}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", list(KERAS))
def test_a_layer_of_keras_and_ours_are_the_same(
    name: str, backend: str, keras_results: Mapping[str, Mapping[str, Any]]
) -> None:
    twin, found = KERAS[name][2], keras_results[backend][name]
    judge(twin, drawn(twin.layer), found["read"], found["out"], None)
