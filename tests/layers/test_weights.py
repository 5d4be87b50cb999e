"""Weights come in and go out bit by bit, whole or not at all, whatever the library, the format or the file."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from shared.libraries import eqx, jax, jnp, ml_dtypes, nnx, polyattn_jax, polyattn_torch, safetensors, torch

from polyattn import AuxRequest, layers, weights
from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

Floats = np.ndarray[Any, Any]

LIKE: dict[str, Array] = {
    "numpy": np.zeros((), np.float32),
    "jax": jnp.zeros(()),
    "torch": torch.zeros(()),
    "strict": array_api_strict.asarray(0.0),
}
MAIN = ["numpy", "jax", "torch"]


def leaves(params: Mapping[str, Any]) -> dict[str, Floats]:
    """The arrays by name, in NumPy."""
    return {name: backend_of(x).to_numpy(x) for name, x in weights.flatten(params).items()}


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether names, dtypes, shapes and bits are the same."""
    left, right = leaves(a), leaves(b)
    return left.keys() == right.keys() and all(
        x.dtype == right[name].dtype and x.shape == right[name].shape and x.tobytes() == right[name].tobytes()
        for name, x in left.items()
    )


def of_library(params: Mapping[str, Any], library: str) -> bool:
    kind = backend_of(LIKE[library])
    return all(backend_of(x) is kind for x in weights.flatten(params).values())


def bits(shape: tuple[int, ...], seed: int, dtype: Any = np.float32) -> Floats:
    """Any bits at all: infinities, zeros with a sign and NaNs with a payload are numbers of a file too."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


def filled(shapes: Mapping[str, Any], dtype: Any = np.float32) -> dict[str, Any]:
    """Random bits in the shapes of a nested dict, each array of its own."""
    flat = weights.flatten(shapes)
    return weights.unflatten({name: bits(flat[name], i, dtype) for i, name in enumerate(flat)})


# formats

ATTEND = layers.MultiHeadAttention(8, 2)
PLAIN = layers.MultiHeadAttention(8, 2, qkv_bias=False, out_bias=False)
GROUPED = layers.GroupedQueryAttention(8, 4, num_kv_heads=2, head_dim=3, context_dim=6)
CROSS = layers.MultiHeadCrossAttention(8, 2, context_dim=6)
NORM = layers.LayerNorm(8, epsilon=1e-5)
RMS = layers.RMSNorm(8, epsilon=1e-5)
MLP = layers.MLP(8, 12, activation="gelu")
GATED = layers.MLP(8, 12, activation="swiglu", use_bias=False)
BLOCK = layers.EncoderBlock(ATTEND, MLP, NORM, norm_first=True)
DECODER_BLOCK = layers.DecoderBlock(ATTEND, CROSS, NORM, mlp=MLP, norm_first=False)
QWEN = layers.GroupedQueryAttention(
    8, 4, num_kv_heads=1, head_dim=6, out_bias=False, qk_norm=layers.RMSNorm(6, epsilon=1e-6)
)
DELTA = layers.GatedDeltaNet(8, 2, num_value_heads=4, head_dim=3, value_dim=5)
LLAMA_BLOCK = layers.EncoderBlock(QWEN, GATED, RMS, norm_first=True)

GROUPED_SELF = layers.MultiHeadAttention(8, 4, num_kv_heads=2, qkv_bias=False, out_bias=False)
_SINKING = layers.MultiHeadAttention(8, 2, sinks=True)
MODEL = layers.LanguageModel(layers.Embedding(5, 8), layers.Encoder(LLAMA_BLOCK, 2, final_norm=RMS))


def mixture(shared: layers.MLP | None, **more: Any) -> layers.MixtureOfExperts:
    return layers.MixtureOfExperts(8, 6, num_experts=4, top_k=2, activation="swiglu", shared=shared, **more)


def latent(rank: int | None) -> layers.LatentAttention:
    widths = {"kv_lora_rank": 4, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 5}
    return layers.LatentAttention(8, 2, **widths, q_lora_rank=rank, epsilon=1e-6)


KINDS: dict[str, list[Layer]] = {
    "torch": [
        *(ATTEND, PLAIN, CROSS, layers.CausalSelfAttention(8, 4, context_length=9)),
        *(NORM, layers.LayerNorm(8, epsilon=1e-5, use_bias=False), RMS),
        *(layers.Linear(8, 5), layers.Linear(8, 5, use_bias=False), MLP, BLOCK, DECODER_BLOCK),
        *(layers.Encoder(BLOCK, 3), layers.Encoder(BLOCK, 2, final_norm=NORM)),
        layers.Decoder(DECODER_BLOCK, 2, final_norm=NORM),
    ],
    "flax": [
        *(ATTEND, PLAIN, GROUPED, CROSS, NORM, RMS, layers.Linear(8, 5)),
        layers.MultiHeadAttention(8, 2, qk_norm=layers.LayerNorm(4, epsilon=1e-6, use_bias=False)),
    ],
    "keras": [ATTEND, PLAIN, GROUPED, CROSS, NORM, RMS, layers.Linear(8, 5)],
    "equinox": [ATTEND, PLAIN, CROSS, NORM, RMS, layers.Linear(8, 5)],
    "gpt2": [
        *(ATTEND, NORM, layers.Linear(8, 5), MLP, BLOCK),
        *(layers.Encoder(BLOCK, 2), layers.Encoder(BLOCK, 2, final_norm=NORM)),
    ],
    "llama": [
        *(ATTEND, PLAIN, GROUPED, QWEN, NORM, RMS, layers.Linear(8, 5), GATED, LLAMA_BLOCK),
        layers.MLP(8, 12, activation="swiglu"),
        layers.Encoder(LLAMA_BLOCK, 2, final_norm=RMS),
        *(layers.Embedding(5, 8), MODEL, replace(MODEL, head=layers.Linear(8, 5, use_bias=False))),
    ],
    "bert": [ATTEND, PLAIN, NORM, layers.Linear(8, 5), MLP, BLOCK, layers.Encoder(BLOCK, 2)],
    "olmo2": [QWEN, layers.EncoderBlock(QWEN, GATED, None, norm_first=True, branch_norm=RMS)],
    "gemma": [QWEN, layers.EncoderBlock(QWEN, GATED, RMS, norm_first=True, branch_norm=RMS)],
    "phi3": [GROUPED_SELF, GATED, layers.EncoderBlock(GROUPED_SELF, GATED, RMS, norm_first=True)],
    "gpt_oss": [_SINKING, mixture(None, use_bias=True, router_bias=True), RMS],
    "deepseek": [latent(None), latent(3), mixture(GATED, correction=True), RMS],
    "qwen3_next": [
        *(DELTA, layers.GatedDeltaNet(8, 2, head_dim=3), layers.Linear(8, 5)),
        layers.MultiHeadAttention(8, 4, num_kv_heads=2, output_gate="entry", qkv_bias=False, out_bias=False),
        mixture(GATED, shared_gate=True),
    ],
    "kimi_linear": [layers.KimiDeltaAttention(8, 2, head_dim=3), latent(None), RMS, layers.Linear(8, 5)],
    "gguf": [PLAIN, LLAMA_BLOCK, layers.Linear(8, 5), MODEL],
    "ctranslate2": [
        *(ATTEND, layers.MultiHeadCrossAttention(8, 2), NORM, MLP, BLOCK, layers.Embedding(5, 8)),
        layers.Encoder(BLOCK, 2, final_norm=NORM),
        layers.Decoder(
            replace(DECODER_BLOCK, cross_attention=layers.MultiHeadCrossAttention(8, 2)), 2, final_norm=NORM
        ),
    ],
    "gpt_neox": [ATTEND, GROUPED_SELF, MLP, NORM, layers.Linear(8, 5)],
    "minimax": [layers.LightningAttention(8, 2, slopes=(0.5, 0.25)), GROUPED, RMS, layers.Linear(8, 5)],
}
#: Formats that keep what a scale is above 1, which rounds.
ABOVE_ONE = [name for name in KINDS if weights.FORMATS[name].above_one]
PAIRS = [
    (name, layer)
    for name, kinds in KINDS.items()
    for layer in kinds
    if name not in ABOVE_ONE or not any(type(part) is layers.RMSNorm for part in layer.parts())
]


def test_every_format_is_tested_here() -> None:
    assert KINDS.keys() == weights.FORMATS.keys()


@pytest.mark.parametrize("library", MAIN)
@pytest.mark.parametrize(("format", "layer"), PAIRS, ids=[f"{name}-{type(x).__name__}" for name, x in PAIRS])
def test_there_and_back_is_the_identity(format: str, layer: Layer, library: str) -> None:
    params = weights.convert(filled(layer.shapes()), like=LIKE[library])
    theirs = weights.to_format(layer, params, format)
    assert of_library(theirs, library)
    assert same(weights.from_format(layer, theirs, format), params)
    shapes = {name: tuple(x.shape) for name, x in theirs.items()}
    theirs = weights.convert({name: bits(shape, 7) for name, shape in shapes.items()}, like=LIKE[library])
    params = weights.from_format(layer, theirs, format)
    assert of_library(params, library)
    assert same(weights.to_format(layer, params, format), theirs)


@pytest.mark.parametrize("format", ABOVE_ONE)
def test_a_scale_that_is_kept_as_what_it_is_above_one_comes_back(format: str) -> None:
    params = {"scale": np.asarray([1.5, 0.25, -2.0, 1.0, 0.0, 3.0, 1.0, 1.0], np.float32)}
    theirs = weights.to_format(RMS, params, format)
    assert theirs["weight"].tolist() == [0.5, -0.75, -3.0, 0.0, -1.0, 2.0, 0.0, 0.0]
    assert same(weights.from_format(RMS, theirs, format), params)


def test_a_prefix_chooses_the_names_that_count() -> None:
    params = filled(ATTEND.shapes())
    theirs = weights.to_format(ATTEND, params, "torch", prefix="encoder.0.")
    assert all(name.startswith("encoder.0.") for name in theirs)
    everything = {**theirs, "encoder.1.in_proj_weight": np.ones(3), "head.weight": np.ones(2)}
    assert same(weights.from_format(ATTEND, everything, "torch", prefix="encoder.0."), params)


_TORCH_HAS = (
    "where torch.nn.MultiheadAttention has as many kv heads as heads, of width embed_dim / num_heads, an output "
    "projection, and a bias everywhere or nowhere"
)
_GPT2_HAS = (
    "where GPT-2 has as many kv heads as heads, of width embed_dim / num_heads, an output projection, and a bias "
    "everywhere"
)
_CTRANSLATE2_HAS = "where CTranslate2 has as many kv heads as heads, of width embed_dim / num_heads, no gate, and a bias everywhere"
_NORMED = layers.MultiHeadAttention(8, 2, qk_norm=layers.RMSNorm(4, epsilon=1e-6))
_ADDITIVE = layers.AdditiveAttention(8, 4)
_TABLE = layers.Embedding(5, 8)
_HALF_BIASED = layers.MultiHeadAttention(8, 2, out_bias=False)
_HEADS_ONLY = layers.MultiHeadAttention(8, 2, output_projection=False)
_STACK, _NORMED_STACK = layers.Encoder(BLOCK, 2), layers.Encoder(BLOCK, 2, final_norm=NORM)
_TWO_ATTENTIONS = layers.EncoderDecoderAttention(ATTEND, ATTEND, NORM, norm_first=True)

REFUSED: list[tuple[str, Layer, str]] = [
    *(("torch", layer, f"{layer}, {_TORCH_HAS}") for layer in (GROUPED, _HALF_BIASED, _HEADS_ONLY)),
    *(("gpt2", layer, f"{layer}, {_GPT2_HAS}") for layer in (PLAIN, GROUPED, CROSS, _HALF_BIASED)),
    *(
        (name, _SINKING, f"{_SINKING} with sinks")
        for name in ("torch", "flax", "keras", "equinox", "gpt2", "bert")
    ),
    *((name, _NORMED, f"{_NORMED} with qk_norm") for name in ("torch", "keras", "equinox", "gpt2", "bert")),
    *((name, layer, str(layer)) for name in KINDS for layer in (_ADDITIVE, _TWO_ATTENTIONS)),
    *((name, _TABLE, str(_TABLE)) for name in ("keras", "gpt2", "bert", "minimax", "gpt_neox")),
    *((name, layer, str(layer)) for name in ("flax", "keras", "equinox") for layer in (BLOCK, _STACK)),
    *(("gpt2", layer, str(DECODER_BLOCK)) for layer in (DECODER_BLOCK, layers.Decoder(DECODER_BLOCK, 2))),
    *((name, DELTA, str(DELTA)) for name in KINDS if name != "qwen3_next"),
    ("qwen3_next", layers.LinearAttention(8, 2), str(layers.LinearAttention(8, 2))),
    ("qwen3_next", ATTEND, f"{ATTEND}, where Qwen3-Next has a gate for every entry of a head, and no bias"),
    ("phi3", CROSS, f"{CROSS}, where q, k and v come from x alone, by one matrix, without a gate"),
    *(
        ("ctranslate2", layer, f"{layer}, {_CTRANSLATE2_HAS}")
        for layer in (PLAIN, GROUPED, CROSS, _HALF_BIASED)
    ),
    ("deepseek", mixture(None), f"{mixture(None)}, where an MLP that every token asks is shared"),
    ("gpt_oss", mixture(GATED), f"{mixture(GATED)}, where none is shared"),
    ("llama", mixture(None), str(mixture(None))),
    ("torch", GATED, f"{GATED} with w_gate"),
    ("flax", MLP, f"{MLP} with w_in, b_in, w_out, b_out"),
    ("bert", _NORMED_STACK, f"{_NORMED_STACK} with final_norm"),
]


@pytest.mark.parametrize(
    ("format", "layer", "got"), REFUSED, ids=[f"{f}-{type(x).__name__}" for f, x, _ in REFUSED]
)
def test_a_layer_that_a_library_has_not_is_refused(format: str, layer: Layer, got: str) -> None:
    for name, call in (("to_format", weights.to_format), ("from_format", weights.from_format)):
        with pytest.raises(ValueError) as refusal:
            call(layer, {}, format)
        assert (
            str(refusal.value)
            == f"polyattn.weights.{name}: expected a layer that {format!r} has, got {got}; configure the layer so, or take another format"
        )


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError) as refusal:
        weights.from_format(ATTEND, {}, "pytorch")
    assert str(refusal.value) == (
        "polyattn.weights.from_format: expected a format among torch, flax, keras, equinox, gpt2, llama, olmo2, gemma, phi3, "
        "gpt_oss, deepseek, qwen3_next, kimi_linear, gguf, ctranslate2, bert, minimax, gpt_neox, got "
        "'pytorch'; take one of these, or give the arrays the names and shapes of layer.shapes()"
    )


# coverage of names


def _spoiled(arrays: Mapping[str, Any], missing: str, wrong: str) -> dict[str, Any]:
    """Without one, with one too many, and with one of another shape."""
    kept = {name: x for name, x in arrays.items() if name != missing}
    return {**kept, "extra": np.ones(1, np.float32), wrong: np.ones((2, 3), np.float32)}


CHECKED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "from_format": (
        lambda _: weights.from_format(
            ATTEND,
            _spoiled(
                weights.to_format(ATTEND, filled(ATTEND.shapes()), "torch"), "in_proj_bias", "out_proj.bias"
            ),
            "torch",
        ),
        "polyattn.weights.from_format(MultiHeadAttention, 'torch'): expected 4 arrays by name, got 4, missing: "
        "in_proj_bias; unexpected: extra; of another shape: out_proj.bias has (2, 3) instead of (8,)",
    ),
    "to_format": (
        lambda _: weights.to_format(NORM, _spoiled(filled(NORM.shapes()), "scale", "bias"), "torch"),
        "polyattn.weights.to_format(LayerNorm, 'torch'): expected 2 arrays by name, got 2, missing: scale; "
        "unexpected: extra; of another shape: bias has (2, 3) instead of (8,)",
    ),
    "write": (
        lambda _: weights.write(
            torch.nn.Linear(8, 5), _spoiled({"weight": np.ones((5, 8))}, "weight", "bias")
        ),
        "polyattn.weights.write(Linear): expected 2 arrays by name, got 2, missing: weight; unexpected: extra; of "
        "another shape: bias has (2, 3) instead of (5,)",
    ),
    "load": (
        lambda folder: _load_spoiled(folder),
        "polyattn.weights.load('norm.npz') for polyattn.layers.LayerNorm: expected 2 arrays by name, got 2, "
        "missing: scale; unexpected: extra; of another shape: bias has (2, 3) instead of (8,)",
    ),
}


def _load_spoiled(folder: Path) -> Any:
    weights.save(_spoiled({}, "scale", "bias"), folder / "norm.npz")
    return weights.load(folder / "norm.npz", like=LIKE["numpy"], layer=NORM)


@pytest.mark.parametrize("function", list(CHECKED))
def test_all_that_is_wrong_with_names_is_listed(function: str, tmp_path: Path) -> None:
    call, listed = CHECKED[function]
    with pytest.raises(ValueError) as refusal:
        call(tmp_path)
    assert str(refusal.value) == f"{listed}; is the layer configured as the source was?"


def test_names_that_contradict_each_other_are_refused() -> None:
    one, two = np.ones(1), np.ones(2)
    expected = {
        "expected 'a' in 'a.b' to be a group of names, got an array of that name too": {"a": one, "a.b": two},
        "expected each name once, got 'a' as an array and as a group": {"a.b": two, "a": one},
    }
    for sentence, flat in expected.items():
        with pytest.raises(ValueError) as refusal:
            weights.unflatten(flat)
        assert str(refusal.value) == f"polyattn.weights: {sentence}; the names contradict each other"
    with pytest.raises(ValueError) as refusal:
        weights.flatten({"a.b": one, "a": {"b": two}})
    assert str(refusal.value) == (
        "polyattn.weights: expected each name once, got a.b twice; a name must not contain '.'"
    )


# modules

MODULES: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.nn.TransformerEncoderLayer(8, 2, 12),
    "flax": lambda: nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)),
    "flax list": lambda: nnx.List([nnx.LayerNorm(8, rngs=nnx.Rngs(0)), nnx.LayerNorm(5, rngs=nnx.Rngs(0))]),
    "equinox": lambda: eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0)),
    "equinox list": lambda: eqx.nn.Sequential([eqx.nn.LayerNorm(8), eqx.nn.LayerNorm(5)]),
    "our torch": lambda: polyattn_torch.Module(BLOCK),
    "our flax": lambda: nnx.Module and polyattn_jax.nnx_module(BLOCK),
    "our equinox": lambda: eqx.Module and polyattn_jax.equinox_module(BLOCK),
}


@pytest.mark.parametrize("source", MAIN)
@pytest.mark.parametrize("kind", list(MODULES))
def test_what_is_written_into_a_module_is_read_out(kind: str, source: str) -> None:
    module = MODULES[kind]()
    before = weights.read(module)
    new = weights.flatten(filled({name: tuple(x.shape) for name, x in before.items()}))
    module = weights.write(module, weights.convert(new, like=LIKE[source]))
    after = weights.read(module)
    assert same(after, new)
    assert of_library(after, "torch" if "torch" in kind else "jax")


@pytest.mark.parametrize("kind", list(MODULES))
def test_a_refused_write_changes_nothing(kind: str) -> None:
    module = MODULES[kind]()
    before = {name: backend_of(x).to_numpy(x).copy() for name, x in weights.read(module).items()}
    spoiled = {name: np.zeros_like(x) for name, x in before.items()}
    spoiled[next(reversed(spoiled))] = np.zeros((99,), np.float32)
    with pytest.raises(ValueError, match="of another shape"):
        weights.write(module, spoiled)
    assert same(weights.read(module), before)


def test_our_own_modules_have_the_names_of_the_params() -> None:
    params = BLOCK.init(0, like=LIKE["numpy"])
    assert same(weights.unflatten(weights.read(polyattn_torch.Module(BLOCK, seed=0))), params)
    assert same(weights.unflatten(weights.read(polyattn_jax.nnx_module(BLOCK, seed=0))), params)
    assert same(weights.unflatten(weights.read(polyattn_jax.equinox_module(BLOCK, seed=0)))["params"], params)


def test_neither_side_sees_the_other_learn() -> None:
    module = torch.nn.MultiheadAttention(8, 2)
    before = {name: x.clone() for name, x in weights.read(module).items()}
    params = weights.from_format(ATTEND, weights.read(module), "torch")
    for x in params.values():
        x += 1.0
    assert same(weights.read(module), before)


def test_a_thing_that_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError) as refusal:
        weights.read({"w": np.ones(2)})
    assert str(refusal.value) == (
        "polyattn.weights: expected a module of PyTorch, Flax nnx, Keras or Equinox, got dict; pass its arrays by name "
        "to from_format"
    )


# permutations


def _numbers(layer: Layer, seed: int) -> dict[str, Any]:
    """Params that are nowhere 0, biases neither."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0.0, 0.5, shape) for name, shape in weights.flatten(layer.shapes()).items()}


@pytest.mark.parametrize("width", [None, 4], ids=["whole", "partial"])
@pytest.mark.parametrize("library", MAIN)
def test_interleaved_rotary_weights_give_the_same_scores_half_split(width: int | None, library: str) -> None:
    theirs, ours = (
        layers.MultiHeadAttention(12, 2, rotary=Rotary(interleaved=how, width=width)) for how in (True, False)
    )
    numbers = {name: x.astype(np.float32) for name, x in _numbers(theirs, 0).items()}
    x = np.random.default_rng(1).normal(size=(2, 7, 12)).astype(np.float32)

    def scores(layer: Layer, params: Any, x: Array) -> Array:
        return layer.run(params, x, return_aux=AuxRequest(scores=True)).aux.scores

    bound = 4 * noise(lambda number: scores(theirs, {n: number(w) for n, w in numbers.items()}, number(x)))
    params = weights.convert(numbers, like=LIKE[library])
    turned = {
        name: weights.interleaved_to_half(w, width) if name[2] in "qk" else w for name, w in params.items()
    }
    given = weights.convert({"x": x}, like=LIKE[library])["x"]
    found = [
        leaves({"": scores(*of, given)})[""] for of in ((theirs, params), (ours, turned), (ours, params))
    ]
    assert np.abs(found[0] - found[1]).max() <= bound
    assert np.abs(found[0] - found[2]).max() > 1000 * bound  # without the permutation they are others
    back = {n: weights.half_to_interleaved(w, width) if n[2] in "qk" else w for n, w in turned.items()}
    assert same(back, params)


@pytest.mark.parametrize("library", MAIN)
def test_query_heads_in_tiles_are_those_of_grouped_attention_in_another_order(library: str) -> None:
    kv_heads, group = 2, 3
    full = layers.MultiHeadAttention(12, kv_heads * group)
    grouped = layers.GroupedQueryAttention(12, kv_heads * group, num_kv_heads=kv_heads)
    numbers = {name: x.astype(np.float32) for name, x in _numbers(grouped, 0).items()}
    x = np.random.default_rng(1).normal(size=(2, 7, 12)).astype(np.float32)
    # What x-transformers does: query head h reads kv head h % kv_heads.
    tiled = {n: np.concatenate([w] * group, axis=-2) if n[2] in "kv" else w for n, w in numbers.items()}
    bound = 4 * noise(lambda number: full({n: number(w) for n, w in tiled.items()}, number(x)))
    true = full({n: w.astype(np.float64) for n, w in tiled.items()}, x.astype(np.float64))

    axes = {"w_q": -2, "b_q": -2, "w_o": -3}
    params = weights.convert(numbers, like=LIKE[library])
    sorted_ = {
        n: weights.tiled_to_grouped(w, kv_heads, axes[n]) if n in axes else w for n, w in params.items()
    }
    given = weights.convert({"x": x}, like=LIKE[library])["x"]
    right, wrong = (leaves({"": grouped(p, given)})[""] for p in (sorted_, params))
    assert np.abs(right - true).max() <= bound
    assert np.abs(wrong - true).max() > 1000 * bound
    back = {n: weights.grouped_to_tiled(w, kv_heads, axes[n]) if n in axes else w for n, w in sorted_.items()}
    assert same(back, params)


def test_heads_that_cannot_be_permuted_are_refused() -> None:
    with pytest.raises(ValueError) as refusal:
        weights.tiled_to_grouped(np.ones((8, 6, 4)), 4)
    assert str(refusal.value) == (
        "polyattn.weights.tiled_to_grouped: expected kv_heads to divide the 6 heads of axis 1, got 4; axis is that of the heads"
    )
    for width, got in ((None, 5), (3, 3), (6, 6), (0, 0)):
        with pytest.raises(ValueError) as refusal:
            weights.interleaved_to_half(np.ones((2, 5)), width)
        assert str(refusal.value) == (
            f"polyattn.weights.interleaved_to_half: expected an even width of at most 5, got {got}; entries are "
            "turned in pairs"
        )


# from library to library

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


ROUTES = [
    (source, target, dtype)
    for source in LIKE
    for target in LIKE
    for dtype in DTYPES
    if "strict" not in (source, target) or np.dtype(dtype).itemsize >= 4  # it has no half precision
]


@pytest.mark.parametrize(
    ("source", "target", "dtype"), ROUTES, ids=[f"{a}-{b}-{np.dtype(d).name}" for a, b, d in ROUTES]
)
def test_conversion_keeps_every_bit_and_the_dtype(source: str, target: str, dtype: Any) -> None:
    params: dict[str, Any] = {"a": bits((3, 4), 0, dtype), "part": {"b": bits((), 1, dtype)}, "none": {}}
    with jax.enable_x64(dtype is np.float64):
        there = weights.convert(weights.convert(params, like=LIKE[source]), like=LIKE[target])
        assert of_library(there, target)
        assert same(there, params)
        assert there["none"] == {}


def test_what_is_converted_is_a_copy() -> None:
    for source, target in (("numpy", "numpy"), ("torch", "torch"), ("numpy", "torch"), ("torch", "numpy")):
        given = weights.convert({"a": np.ones(3, np.float32)}, like=LIKE[source])
        made = weights.convert(given, like=LIKE[target])
        given["a"][0] = 9.0
        assert leaves(made)["a"].tolist() == [1.0, 1.0, 1.0]


def test_float64_does_not_become_float32_in_silence() -> None:
    with jax.enable_x64(False), pytest.raises(TypeError) as refusal:
        weights.convert({"part": {"w": np.ones(2)}}, like=jnp.zeros(()))
    assert str(refusal.value) == (
        "polyattn.weights.convert: expected 'w' to keep its dtype float64, got float32 from jax; cast it first, or let "
        "jax have that dtype (JAX: jax_enable_x64)"
    )


# files


@pytest.mark.parametrize("dtype", DTYPES, ids=[np.dtype(d).name for d in DTYPES])
@pytest.mark.parametrize("library", MAIN)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_keep_every_bit(suffix: str, library: str, dtype: Any, tmp_path: Path) -> None:
    if suffix == ".npz" and dtype is ml_dtypes.bfloat16:
        with pytest.raises(TypeError) as refusal:
            weights.save({"a": bits((2,), 0, dtype), "b": np.ones(1)}, tmp_path / "a.npz")
        assert str(refusal.value) == (
            "polyattn.weights.save: expected bools, integers and floats (bfloat16 in .safetensors alone), got a of "
            "bfloat16; cast it first"
        )
        return
    with jax.enable_x64(dtype is np.float64):
        params = weights.convert(
            {**filled(BLOCK.shapes(), dtype), "scalar": bits((), 3, dtype), "empty": bits((0, 4), 3, dtype)},
            like=LIKE[library],
        )
        path = tmp_path / f"params{suffix}"
        weights.save(params, path)
        for other in MAIN:
            found = weights.load(path, like=LIKE[other])
            assert of_library(found, other)
            assert same(found, params)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for suffix in (".safetensors", ".npz"):
        weights.save({"a": np.ones(3)}, tmp_path / f"params{suffix}")
        assert (tmp_path / f"params{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_arrays_are_written_in_the_order_of_their_indices(suffix: str, tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"turned": x.T, "step": x[::2, ::-1], "big": x.astype(">f4"), "torch": torch.from_numpy(x).mT}
    weights.save(views, tmp_path / f"views{suffix}")
    found = weights.load(tmp_path / f"views{suffix}", like=LIKE["numpy"])
    assert all((found[name] == np.asarray(view)).all() for name, view in views.items())


def test_files_hold_flat_names_and_metadata(tmp_path: Path) -> None:
    params, path = filled(BLOCK.shapes()), tmp_path / "params.safetensors"
    weights.save(params, path, metadata={"layer": "EncoderBlock", "step": "7"})
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"layer": "EncoderBlock", "step": "7"}
        assert set(file.keys()) == set(weights.flatten(params))
    with pytest.raises(ValueError) as refusal:
        weights.save(params, tmp_path / "params.npz", metadata={"step": "7"})
    assert str(refusal.value) == (
        "polyattn.weights.save: expected no metadata for .npz, got some; use .safetensors"
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_any_name_is_a_name(suffix: str, tmp_path: Path) -> None:
    params = {name: np.ones(i) for i, name in enumerate(("file", "allow_pickle", "query/kernel", "ü", "1"))}
    weights.save({"args": params, **params}, tmp_path / f"params{suffix}")
    assert same(weights.load(tmp_path / f"params{suffix}", like=LIKE["numpy"]), {"args": params, **params})


def test_a_part_without_arrays_comes_back_with_its_layer(tmp_path: Path) -> None:
    layer = layers.EncoderDecoderAttention(
        ATTEND, layers.LuongAttention(8, score="dot"), NORM, norm_first=True
    )
    params = layer.init(0, like=LIKE["numpy"])
    weights.save(params, tmp_path / "params.npz")
    found = weights.load(tmp_path / "params.npz", like=LIKE["numpy"], layer=layer)
    x = np.ones((2, 3, 8), np.float32)
    assert (layer(found, x, x) == layer(params, x, x)).all()


def _safetensors(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """The file format by hand: the length of the header, a JSON header, the bytes of the arrays."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def _npy(shape: tuple[int, ...], data: bytes, descr: str = "<f8") -> bytes:
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def _saved(how: Callable[..., Any], **arrays: Any) -> bytes:
    file = io.BytesIO()
    how(file, **arrays)
    return file.getvalue()


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes(255 - byte for byte in content[at : at + 30]) + content[at + 30 :]


class _Bomb:
    """Executes something where it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was executed",))


PICKLE = pickle.dumps({"a": _Bomb()})
WHOLE = _safetensors({"a": _entry([4], 0, 16)})
DAMAGED: dict[str, bytes] = {
    "empty.safetensors": b"",
    "cut.safetensors": WHOLE[:-1],
    "cut in the header.safetensors": WHOLE[:20],
    "longer.safetensors": WHOLE + b"\0",
    "pickle.safetensors": PICKLE,
    "pickle of a size that fits.safetensors": _safetensors(PICKLE),
    "zip.safetensors": _npz(a=_npy((2,), bytes(16))),
    "length beyond the file.safetensors": _safetensors({}, length=2**40),
    "length 2^64 - 1.safetensors": _safetensors({}, length=2**64 - 1),
    "no json.safetensors": _safetensors(b"{'a': 1}"),
    "no table.safetensors": _safetensors([1, 2]),
    "shape too large.safetensors": _safetensors({"a": _entry([5], 0, 16)}),
    "shape too small.safetensors": _safetensors({"a": _entry([3], 0, 16)}),
    "shape below zero.safetensors": _safetensors({"a": _entry([-4], 0, 16)}),
    "shape that overflows.safetensors": _safetensors({"a": _entry([2**40, 2**40], 0, 16)}),
    "offsets beyond the end.safetensors": _safetensors({"a": _entry([8], 0, 32)}),
    "offsets backwards.safetensors": _safetensors({"a": _entry([4], 16, 0)}),
    "offsets with a hole.safetensors": _safetensors({"a": _entry([2], 8, 16)}),
    "overlap.safetensors": _safetensors({"a": _entry([4], 0, 16), "b": _entry([4], 0, 16)}),
    "unknown dtype.safetensors": _safetensors({"a": _entry([4], 0, 16, "X9")}),
    "dtype that NumPy lacks.safetensors": _safetensors({"a": _entry([16], 0, 16, "F8_E4M3")}),
    "contradiction.safetensors": _safetensors({"a": _entry([2], 0, 8), "a.b": _entry([2], 8, 16)}),
    "empty.npz": b"",
    "cut.npz": _npz(a=_npy((2,), bytes(16)))[:-1],
    "pickle.npz": PICKLE,
    "pickled member.npz": _npz(a=PICKLE),
    "objects.npz": _saved(np.savez, a=np.asarray([_Bomb()], object)),
    "one array.npz": _saved(np.save, arr=np.ones(3)),
    "no array.npz": _npz(a=b"hello"),
    "strings.npz": _saved(np.savez, a=np.asarray(["x"])),
    "records.npz": _saved(np.savez, a=np.zeros(2, [("x", "f4"), ("y", "f4")])),
    "shape too large.npz": _npz(a=_npy((3,), bytes(16))),
    "shape larger than any memory.npz": _npz(a=_npy((10**15,), bytes(16))),
    "shape below zero.npz": _npz(a=_npy((-2,), bytes(16))),
    "header of no dtype.npz": _npz(a=_npy((2,), bytes(16), "<z9")),
    "flipped bits.npz": _flipped(_saved(np.savez, a=np.arange(99.0)), 500),
    "flipped compressed bits.npz": _flipped(_saved(np.savez_compressed, a=np.arange(99.0)), 60),
    "contradiction.npz": _saved(np.savez, **{"a": np.ones(1), "a.b": np.ones(1)}),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_a_damaged_file_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=r"^polyattn\.weights.*: expected .+, got .+; .+") as refusal:
        weights.load(path, like=LIKE["numpy"])
    assert name in str(refusal.value) or "contradict" in name


def test_the_file_that_the_damaged_ones_are_made_from_is_whole(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", WHOLE), ("a.npz", _npz(a=_npy((2,), bytes(16))))):
        (tmp_path / name).write_bytes(content)
        assert leaves(weights.load(tmp_path / name, like=LIKE["numpy"]))["a"].tobytes() == bytes(16)


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".bin", "", ".npy", ".h5"])
def test_other_files_are_not_even_opened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"params{suffix}"
    path.write_bytes(PICKLE)
    for name, call in (
        ("load", lambda: weights.load(path, like=LIKE["numpy"])),
        ("save", lambda: weights.save({"a": np.ones(1)}, path)),
    ):
        with pytest.raises(ValueError) as refusal:
            call()
        assert str(refusal.value) == (
            f"polyattn.weights.{name}: expected a file name that ends in .safetensors or .npz, got 'params{suffix}'; "
            "other formats may hold code"
        )
    assert path.read_bytes() == PICKLE


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".npz"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"none{suffix}")):
            weights.load(tmp_path / f"none{suffix}", like=LIKE["numpy"])


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_failed_save_leaves_the_old_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"params{suffix}"
    weights.save({"a": np.ones(3)}, path)
    before = path.read_bytes()

    contradiction = {"a.b": np.ones(1), "a": {"b": np.ones(1)}}
    strange = {"a": np.ones(3), "b": np.asarray([None])}
    for params in ({"a": np.ones(3), "b": "no array"}, contradiction, strange):
        with pytest.raises((TypeError, ValueError)):
            weights.save(params, path)

    def full_disk(*given: Any, **more: Any) -> None:
        part = given[0]
        part.write(b"half") if hasattr(part, "write") else part.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", full_disk)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        weights.save({"a": np.zeros(3)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
