"""`facts_of`: what modules of the frameworks are and hold, checked by computing with it what they compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from flax import nnx

from polyattn import layers
from polyattn.masks import sliding_window
from polyattn.parity.components import Facts, explain, facts_of
from polyattn.parity.components.contexts import read_inputs
from polyattn.parity.components.explaining import _case
from polyattn.rotary import Linear, Rotary

Floats = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 32)).astype(np.float32)
#: Of outputs around 1, after sums of some dozen products in float32.
UNIT = 2e-6


def numpy(x: Any) -> Floats:
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def out_of(module: Any, *inputs: Any) -> Floats:
    with torch.no_grad():
        given = [torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x for x in inputs]
        out = module(*given)
    return numpy(out[0] if isinstance(out, tuple) else out)


def known(facts: Facts, out: Floats, *inputs: Floats) -> bool:
    """Whether facts give what the module gave: only then can a cause be found from them."""
    if facts.kind == "norm":
        eps, centred = facts.numbers["eps"], facts.numbers["subtracts_mean"]
        x = inputs[0].astype(np.float64)
        x = x - x.mean(-1, keepdims=True) if centred else x
        y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
        w = facts.arrays.get("weight", np.ones(1)) + (1.0 if facts.numbers["weight_plus_one"] else 0.0)
        return bool(np.abs(y * w + facts.arrays.get("bias", 0.0) - out).max() < 4 * UNIT)
    if facts.kind == "linear":
        y = inputs[0].astype(np.float64) @ facts.arrays["weight"] + facts.arrays.get("bias", 0.0)
        return bool(np.abs(y - out).max() < 4 * UNIT)
    assert facts.kind == "attention"
    left = facts.arrays["v.weight"].copy()
    wrong = Facts("attention", {**facts.arrays, "v.weight": -left}, facts.numbers)
    right, not_right = (read_inputs(_case(f, None, inputs, out, out, UNIT)) for f in (facts, wrong))
    return right is not None and not_right is None


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """With parameters that nothing is hidden by: no zero biases, no weights of one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module.eval()


@pytest.mark.parametrize(
    ("module", "kind", "numbers"),
    [
        (torch.nn.Linear(32, 8), "linear", {}),
        (torch.nn.Linear(32, 8, bias=False), "linear", {}),
        (hf.pytorch_utils.Conv1D(8, 32), "linear", {}),
        (torch.nn.LayerNorm(32), "norm", {"eps": 1e-5, "subtracts_mean": True, "weight_plus_one": False}),
        (torch.nn.LayerNorm(32, bias=False), "norm", {"eps": 1e-5, "subtracts_mean": True, "weight_plus_one": False}),
        (torch.nn.RMSNorm(32), "norm", {"eps": 2.0**-23, "subtracts_mean": False, "weight_plus_one": False}),
        (hf.models.llama.modeling_llama.LlamaRMSNorm(32), "norm", {"eps": 1e-6, "subtracts_mean": False, "weight_plus_one": False}),
        (hf.models.gemma.modeling_gemma.GemmaRMSNorm(32), "norm", {"eps": 1e-6, "subtracts_mean": False, "weight_plus_one": True}),
        (hf.models.t5.modeling_t5.T5LayerNorm(32), "norm", {"eps": 1e-6, "subtracts_mean": False, "weight_plus_one": False}),
        (torch.nn.BatchNorm1d(32), "other", {}),
        (torch.nn.GroupNorm(2, 32), "other", {}),
        (torch.nn.LayerNorm((6, 32)), "other", {}),
        (torch.nn.Dropout(), "other", {}),
        (torch.nn.Softmax(-1), "other", {}),
        (torch.nn.PReLU(), "other", {}),
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "other", {}),
    ],
)  # fmt: skip
def test_norms_and_linear_maps_of_pytorch(module: Any, kind: str, numbers: dict[str, Any]) -> None:
    module = shaken(module)
    facts = facts_of(module)
    assert facts.kind == kind
    assert facts.numbers == numbers
    assert kind == "other" or known(facts, out_of(module, X), X)


def test_a_norm_of_a_known_name_and_another_formula_is_no_norm() -> None:
    class LlamaRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(32))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)

    assert facts_of(LlamaRMSNorm()) == Facts("other")


def test_hooks_of_a_module_are_not_run() -> None:
    norm, ran = torch.nn.LayerNorm(32), []
    norm.register_forward_hook(lambda *_: ran.append(1))
    assert facts_of(norm).kind == "norm"
    assert not ran


def test_half_precision_modules_are_read() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        norm = shaken(hf.models.gemma.modeling_gemma.GemmaRMSNorm(32)).to(dtype)
        facts = facts_of(norm)
        assert facts.numbers["weight_plus_one"] is True
        assert facts.arrays["weight"].dtype == np.float32
        assert facts_of(torch.nn.Linear(3, 4).to(dtype)).arrays["weight"].shape == (3, 4)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (torch.nn.GELU(), "gelu"),
        (torch.nn.GELU("tanh"), "gelu_tanh"),
        (torch.nn.SiLU(), "silu"),
        (torch.nn.ReLU(), "relu"),
        (torch.nn.Tanh(), "tanh"),
        (torch.nn.Mish(), "mish"),
        (hf.activations.ACT2FN["gelu_new"], "gelu_tanh"),
        (hf.activations.ACT2FN["quick_gelu"], "gelu_sigmoid"),
        (hf.activations.ACT2FN["relu2"], "relu_squared"),
        (hf.activations.ACT2FN["linear"], "identity"),
    ],
)
def test_activations_are_asked_what_they_compute(module: Any, function: str) -> None:
    assert facts_of(module) == Facts("activation", {}, {"function": function})


def test_embeddings_say_their_factor_offset_and_padding() -> None:
    plain = facts_of(torch.nn.Embedding(9, 4, padding_idx=2))
    assert (plain.kind, plain.arrays["weight"].shape, plain.numbers) == (
        "embedding",
        (9, 4),
        {"padding_idx": 2},
    )
    positions = hf.models.opt.modeling_opt.OPTLearnedPositionalEmbedding(9, 4)
    assert facts_of(positions).numbers == {"offset": 2}
    scaled = hf.models.gemma3.modeling_gemma3.Gemma3TextScaledWordEmbedding(9, 4, 0, embed_scale=2.0)
    assert facts_of(scaled).numbers == {"padding_idx": 0, "scale": 2.0}


def watched(model: Any, kind: str, **inputs: Any) -> list[tuple[Facts, tuple[Floats, ...], Floats]]:
    """Facts, inputs and outputs of the attention modules in a run."""
    found: list[Any] = []

    def hook(module: Any, args: Any, options: Any, out: Any) -> None:
        flat = [y for x in (*args, *options.values()) for y in (x if isinstance(x, tuple) else (x,))]
        given = tuple(numpy(x) for x in flat if isinstance(x, torch.Tensor))
        found.append((facts_of(module), given, numpy(out[0] if isinstance(out, tuple) else out)))

    hooks = [
        m.register_forward_hook(hook, with_kwargs=True) for m in model.modules() if facts_of(m).kind == kind
    ]
    with torch.no_grad():
        model(**inputs)
    for one in hooks:
        one.remove()
    return found


SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "Llama": hf.LlamaConfig(**GROUPED),
    "Llama with scaled angles": hf.LlamaConfig(**GROUPED, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}),
    "Qwen2": hf.Qwen2Config(**GROUPED),
    "Qwen3": hf.Qwen3Config(**GROUPED),
    "Mistral": hf.MistralConfig(**GROUPED, sliding_window=3),
    "Gemma": hf.GemmaConfig(**GROUPED),
    "Gemma 2": hf.Gemma2Config(**GROUPED, sliding_window=3),
    "Gemma 3": hf.Gemma3TextConfig(**GROUPED, sliding_window=3),
    "GPT-NeoX": hf.GPTNeoXConfig(**SMALL),
    "Phi-3": hf.Phi3Config(**SMALL, pad_token_id=0, eos_token_id=1),
    "GPT-2": hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=1),
    "OPT": hf.OPTConfig(vocab_size=50, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32),
    "BERT": hf.BertConfig(**SMALL),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_of_transformers_is_read_whole(name: str) -> None:
    model = shaken(hf.AutoModel.from_config(CONFIGS[name], attn_implementation="eager"))
    ids = torch.tensor(RNG.integers(3, 50, size=(2, 7)))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        runs = watched(model, "attention", **inputs)
        assert runs
        for facts, given, out in runs:
            assert known(facts, out, *given)


def test_attention_of_t5_is_read_with_its_relative_positions() -> None:
    config = hf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    model = shaken(hf.AutoModel.from_config(config, attn_implementation="eager"))
    ids = torch.tensor(RNG.integers(3, 50, size=(2, 7)))
    runs = watched(model, "attention", input_ids=ids, decoder_input_ids=ids)
    assert len(runs) == 6
    assert all(known(facts, out, *given) for facts, given, out in runs)


def test_attention_of_vit_and_of_torch_is_read() -> None:
    config = hf.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    model = shaken(hf.AutoModel.from_config(config))
    runs = watched(model, "attention", pixel_values=torch.randn(2, 3, 8, 8))
    assert all(known(facts, out, *given) for facts, given, out in runs)
    assert len(runs) == 1
    for first in (True, False):
        attention = shaken(torch.nn.MultiheadAttention(32, 4, batch_first=first))
        assert known(facts_of(attention), out_of(attention, X, X, X), X)
        context = RNG.normal(size=X.shape).astype(np.float32)
        assert known(facts_of(attention), out_of(attention, X, context, context), X, context, context)
    assert facts_of(torch.nn.MultiheadAttention(32, 4, add_bias_kv=True)) == Facts("other")


def test_what_is_wrong_with_attention_of_transformers_is_found() -> None:
    """A whole way: facts of a Llama, and a port that forgets to turn, or whose causality is forgotten."""
    model = shaken(hf.AutoModel.from_config(CONFIGS["Llama"], attn_implementation="eager"))
    attention = model.layers[0].self_attn
    x = torch.from_numpy(X)
    cos, sin = model.rotary_emb(x, torch.arange(6)[None])
    causal = torch.full((6, 6), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        right, unturned, unhidden = (
            numpy(attention(x, angles, mask)[0])
            for angles, mask in (((cos, sin), causal), ((cos * 0 + 1, sin * 0), causal), ((cos, sin), None))
        )
    given = (X, numpy(cos), numpy(sin), numpy(causal))
    facts = facts_of(attention)
    assert explain(facts, None, given, right, unturned, unit=UNIT) == "rotary not applied"
    assert explain(facts, None, given, right, unhidden, unit=UNIT) == "causal mask ignored"
    assert explain(facts, None, given, right, right + 1e-7, unit=UNIT) is None


@pytest.mark.parametrize("name", ["Llama", "Gemma", "Phi-3", "GPT-2", "GPT-NeoX"])
def test_mlps_of_transformers_are_read_and_explained(name: str) -> None:
    model = shaken(hf.AutoModel.from_config(CONFIGS[name]))
    mlp = next(m for n, m in model.named_modules() if n.endswith(".mlp"))
    facts = facts_of(mlp)
    assert {"up.weight", "down.weight"} <= facts.arrays.keys()
    right = out_of(mlp, X)
    up = X.astype(np.float64) @ facts.arrays["up.weight"] + facts.arrays.get("up.bias", 0.0)
    gate = X.astype(np.float64) @ facts.arrays["gate.weight"] if "gate.weight" in facts.arrays else None
    hidden = np.maximum(up, 0) if gate is None else np.maximum(gate, 0) * up
    wrong = hidden @ facts.arrays["down.weight"] + facts.arrays.get("down.bias", 0.0)
    said = explain(facts, None, (X,), right, wrong.astype(np.float32), unit=UNIT * np.abs(right).max())
    assert said is not None
    assert said.startswith("ReLU, not ")


def test_a_missing_token_type_of_bert_is_named() -> None:
    """Of the parts of its embeddings that of positions is one row for the whole batch."""
    embeddings = shaken(hf.BertModel(CONFIGS["BERT"])).embeddings
    arrays: dict[str, Floats] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            arrays[f"child:{name}"] = numpy(out)
            arrays[f"input:{name}"] = numpy(args[0])

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in embeddings.named_children()]
    ids = torch.tensor(RNG.integers(3, 50, size=(2, 7)))
    with torch.no_grad():
        right = numpy(embeddings(ids))
        for one in hooks:
            one.remove()
        embeddings.token_type_embeddings.weight.zero_()
        wrong = numpy(embeddings(ids))
    said = explain(Facts("other", arrays), None, (numpy(ids),), right, wrong, unit=UNIT)
    assert said == "the output of token_type_embeddings missing, in front of LayerNorm"


def test_a_decoder_layer_is_no_mlp() -> None:
    model = hf.AutoModel.from_config(CONFIGS["OPT"])
    assert facts_of(model.decoder.layers[0]) == Facts("other")
    assert facts_of(model) == Facts("other")


def test_modules_of_nnx() -> None:
    rngs = nnx.Rngs(0)
    x = jnp.asarray(X)
    linear = nnx.Linear(32, 8, rngs=rngs, bias_init=nnx.initializers.normal())
    assert known(facts_of(linear), numpy(linear(x)), X)
    for norm in (
        nnx.LayerNorm(32, rngs=rngs, epsilon=1e-3),
        nnx.RMSNorm(32, rngs=rngs),
        nnx.LayerNorm(32, use_bias=False, rngs=rngs),
    ):
        assert known(facts_of(norm), numpy(norm(x)), X)
    embed = nnx.Embed(9, 4, rngs=rngs)
    assert np.array_equal(facts_of(embed).arrays["weight"], numpy(embed.embedding[...]))
    for more in ({}, {"normalize_qk": True}, {"num_kv_heads": 2}):
        attention = nnx.MultiHeadAttention(
            4, 32, rngs=rngs, decode=False, bias_init=nnx.initializers.normal(), **more
        )
        assert known(facts_of(attention), numpy(attention(x)), X)
    assert facts_of(nnx.BatchNorm(4, rngs=rngs)) == Facts("other")
    assert facts_of(nnx.Dropout(0.1)) == Facts("other")


def test_modules_of_linen_bound_to_their_variables() -> None:
    x = jnp.asarray(X)
    for module in (
        linen.Dense(8),
        linen.LayerNorm(epsilon=1e-3),
        linen.RMSNorm(),
        linen.MultiHeadDotProductAttention(4),
        linen.MultiHeadDotProductAttention(4, normalize_qk=True),
    ):
        out, variables = module.init_with_output(jax.random.key(0), x)
        assert known(facts_of(module.bind(variables)), numpy(out), X)
        assert facts_of(module).kind == "other"  # it holds nothing
    embed = linen.Embed(9, 4)
    variables = embed.init(jax.random.key(0), jnp.arange(3))
    assert facts_of(embed.bind(variables)).arrays["weight"].shape == (9, 4)


def test_modules_of_equinox() -> None:
    key, x = jax.random.key(0), jnp.asarray(X[0])
    for module in (eqx.nn.Linear(32, 8, key=key), eqx.nn.LayerNorm(32), eqx.nn.RMSNorm(32)):
        assert known(facts_of(module), numpy(jax.vmap(module)(x)), X[0])
    attention = eqx.nn.MultiheadAttention(4, 32, key=key, use_query_bias=True, use_output_bias=True)
    assert known(facts_of(attention), numpy(attention(x, x, x)), X[0])
    assert facts_of(eqx.nn.Embedding(9, 4, key=key)).arrays["weight"].shape == (9, 4)


def test_layers_of_polyattn_with_their_params() -> None:
    rotary = Rotary(scaling=Linear(4.0))
    for layer in (
        layers.Linear(32, 8),
        layers.LayerNorm(32, epsilon=1e-3),
        layers.RMSNorm(32, epsilon=1e-6),
        layers.MultiHeadAttention(32, 4, num_kv_heads=2, rotary=rotary, is_causal=True, sinks=True),
        layers.MultiHeadAttention(
            32, 4, mask=sliding_window(3), qk_norm=layers.RMSNorm(8, epsilon=1e-6), is_causal=True
        ),
    ):
        params = layer.init(0, like=X)
        assert known(facts_of((layer, params)), layer(params, X), X)
        assert facts_of(layer).kind == facts_of((layer, params)).kind
        assert not facts_of(layer).arrays
    mlp = layers.MLP(32, 8, activation="geglu_tanh")
    assert facts_of((mlp, mlp.init(0, like=X))).numbers == {"function": "gelu_tanh"}
    table = layers.Embedding(9, 4)
    assert facts_of((table, table.init(0, like=X))).arrays["weight"].shape == (9, 4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_layers_of_keras(backend: str, tmp_path: Path) -> None:
    """In a process of its own: Keras takes its library when it is imported."""
    script = """
import numpy as np, keras
from polyattn.parity.components import facts_of
from polyattn.parity.components.contexts import read_inputs
from polyattn.parity.components.explaining import _case
x = np.random.default_rng(0).normal(size=(2, 6, 32)).astype(np.float32)
L = keras.layers
norm = L.LayerNormalization(epsilon=1e-3)
y = keras.ops.convert_to_numpy(norm(x))
f = facts_of(norm)
assert f.kind == "norm" and f.numbers == {"eps": 1e-3, "subtracts_mean": True, "weight_plus_one": False}
rms = L.RMSNormalization(); rms(x)
assert facts_of(rms).numbers["subtracts_mean"] is False
dense = L.Dense(8); y = keras.ops.convert_to_numpy(dense(x)); f = facts_of(dense)
assert np.abs(x @ f.arrays["weight"] + f.arrays["bias"] - y).max() < 1e-5
relu = L.Dense(8, activation="relu"); relu(x)
assert facts_of(relu).kind == "other"
assert facts_of(L.Dense(3)).kind == "other"
assert facts_of(L.Activation("gelu")).numbers == {"function": "gelu"}
embed = L.Embedding(9, 4); embed(np.array([[1]]))
assert facts_of(embed).arrays["weight"].shape == (9, 4)
for layer in (L.MultiHeadAttention(4, 8), L.GroupQueryAttention(8, 4, 2)):
    y = keras.ops.convert_to_numpy(layer(x, x)); f = facts_of(layer)
    assert f.kind == "attention", layer
    assert read_inputs(_case(f, None, (x,), y, y, 2e-6)) is not None, layer
"""
    own = {
        "KERAS_BACKEND": backend,
        "KERAS_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_anything_else_is_other_and_imports_nothing() -> None:
    for thing in (np.zeros(3), lambda x: x, "Linear", object(), None, 3, (1, 2)):
        assert facts_of(thing) == Facts("other")
    code = "import sys, polyattn.parity.components as c; c.facts_of(lambda x: x); print([m for m in ('torch', 'jax', 'keras', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
