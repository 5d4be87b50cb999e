"""Transformer blocks and stacks of them: presets, formulas, caches, what they return."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import jax, jnp, torch
from shared.running import LIBRARIES, applied, bench_of, drawn, mapped, normal

from polyattn import AuxRequest, layers, masks
from polyattn.layers import PRESETS
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

on_every_library = pytest.mark.parametrize("library", LIBRARIES)

ACTIVATIONS = {"relu": formulas.relu, "gelu_tanh": formulas.gelu_tanh}
#: epsilon, activation, norm first: what the frameworks' own blocks do.
MEANT = {
    "torch": (1e-5, "relu", False),
    "flax": (1e-6, "gelu_tanh", True),
    "keras": (1e-3, "relu", False),
}
ROTATED = layers.EncoderBlock(
    layers.GroupedQueryAttention(8, 4, num_kv_heads=2, rotary=Rotary(), is_causal=True),
    layers.MLP(8, 12, activation="swiglu"),
    layers.RMSNorm(8, epsilon=1e-6),
    norm_first=True,
)
LLAMA = layers.Encoder(ROTATED, 2, final_norm=layers.RMSNorm(8, epsilon=1e-6))
NORM = layers.LayerNorm(8, epsilon=1e-5)
SEQ2SEQ = layers.Decoder(layers.DecoderBlock.preset("torch", 8, 2, 12), 2)


def room(formula: Callable[..., Any], params: Any, *inputs: Any) -> float:
    return 4 * noise(lambda number: formula(mapped(number, params), *map(number, inputs)))


def block_formula(preset: str, p: Any, x: Any, allowed: Any = 1.0) -> Any:
    epsilon, activation, norm_first = MEANT[preset]
    return formulas.encoder_block(
        p,
        x,
        norm_first=norm_first,
        epsilon=epsilon,
        activation=ACTIVATIONS[activation],
        allowed=allowed,
    )[0]


@on_every_library
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_block_is_the_formula_with_the_settings_of_its_framework(preset: str, library: str) -> None:
    layer = layers.EncoderBlock.preset(preset, 8, 2, 12)
    params, x = drawn(layer), normal(2, 5, 8)
    out = applied(library, layer, params, x)
    formula = partial(block_formula, preset)
    assert np.abs(out - formula(params, x)).max() <= room(formula, params, x) < 1e-4
    others = [block_formula(other, params, x) for other in PRESETS if other != preset]
    assert all(np.abs(out - other).max() > 10 * room(formula, params, x) for other in others)


def test_presets_have_the_defaults_of_the_frameworks() -> None:
    from flax import nnx

    block = torch.nn.TransformerEncoderLayer(8, 2)
    torch_says = PRESETS["torch"]
    assert torch_says["epsilon"] == block.norm1.eps
    assert torch_says["norm_first"] == block.norm_first
    assert torch_says["dropout_rate"] == block.dropout.p
    assert block.activation is torch.nn.functional.relu
    assert torch_says["activation"] == "relu"
    assert PRESETS["flax"]["epsilon"] == nnx.LayerNorm(8, rngs=nnx.Rngs(0)).epsilon
    assert inspect.signature(nnx.gelu).parameters["approximate"].default
    assert PRESETS["flax"]["activation"] == "gelu_tanh"
    assert {name: (p["epsilon"], p["activation"], p["norm_first"]) for name, p in PRESETS.items()} == MEANT


def test_changes_replace_entries_of_a_preset() -> None:
    block = layers.EncoderBlock.preset("torch", 8, 2, 12, norm_first=True, epsilon=0.5, dropout_rate=0.0)
    assert block.norm_first
    assert block.norm == layers.LayerNorm(8, epsilon=0.5)
    assert block.mlp == layers.MLP(8, 12, activation="relu", initializer="torch_linear")
    assert not block.has_dropout
    assert layers.EncoderBlock.preset("torch", 8, 2, 12).attention.dropout_rate == 0.1
    decoder = layers.DecoderBlock.preset("keras", 8, 2, 12, activation="silu")
    assert decoder.mlp.activation == "silu"
    assert decoder.norm.epsilon == 1e-3


def test_an_encoder_is_its_blocks_and_then_the_norm() -> None:
    norm = layers.LayerNorm(8, epsilon=1e-5)
    layer = layers.Encoder(layers.EncoderBlock.preset("flax", 8, 2, 12), 2, final_norm=norm)
    params, x = drawn(layer), normal(2, 5, 8)

    def formula(p: Any, x: Any) -> Any:
        for i in range(2):
            x = block_formula("flax", p[f"block_{i}"], x)
        return formulas.layer_norm(p["norm"], x, 1e-5)

    for library in ("numpy", "torch"):
        assert np.abs(applied(library, layer, params, x) - formula(params, x)).max() <= room(
            formula, params, x
        )


BRANCHES = {
    "Gemma 2, a norm before and one behind": (True, True),
    "OLMo 2, one behind alone": (False, True),
    "one behind, and one of the sum": (True, False),
}


@on_every_library
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_norm_is_of_what_is_added(name: str, library: str) -> None:
    has_norm, norm_first = BRANCHES[name]
    norm, behind = layers.LayerNorm(8, epsilon=1e-5), layers.RMSNorm(8, epsilon=1e-6)
    layer = layers.EncoderBlock(
        layers.MultiHeadAttention(8, 2),
        layers.MLP(8, 12, activation="relu"),
        norm if has_norm else None,
        norm_first=norm_first,
        branch_norm=behind,
    )

    def formula(p: Any, x: Any) -> Any:
        parts = (lambda x: formulas.multihead(p["attention"], x)[0], partial(formulas.mlp, p["mlp"]))
        for number, part in enumerate(parts, 1):
            given = formulas.layer_norm(p[f"norm_{number}"], x, 1e-5) if has_norm and norm_first else x
            x = x + formulas.rms_norm(p[f"branch_norm_{number}"]["scale"], part(given), 1e-6)
            x = x if norm_first else formulas.layer_norm(p[f"norm_{number}"], x, 1e-5)
        return x

    params, x = drawn(layer), normal(2, 5, 8)
    out = applied(library, layer, params, x)
    assert np.abs(out - formula(params, x)).max() <= room(formula, params, x) < 1e-4


@on_every_library
def test_blocks_of_a_tuple_take_turns(library: str) -> None:
    """Two with a window, then one without, and so on; with a cache for each."""

    def block(**more: Any) -> layers.EncoderBlock:
        attention = layers.MultiHeadAttention(8, 2, is_causal=True, **more)
        mlp, norm = layers.MLP(8, 12, activation="relu"), layers.LayerNorm(8, epsilon=1e-5)
        return layers.EncoderBlock(attention, mlp, norm, norm_first=True)

    near = block(mask=masks.sliding_window(2))
    layer = layers.Encoder((near, near, block()), 5)
    params, x = drawn(layer, size=0.3), normal(2, 6, 8)

    def formula(p: Any, x: Any) -> Any:
        for i in range(5):
            allowed = np.tri(6) if i == 2 else np.tri(6) - np.tri(6, k=-2)
            own = p[f"block_{i}"]
            x, _ = formulas.encoder_block(own, x, norm_first=True, epsilon=1e-5, allowed=allowed)
        return x

    bound = room(formula, params, x)
    assert np.abs(applied(library, layer, params, x) - formula(params, x)).max() <= bound < 1e-3
    caches, pieces = layer.empty_cache(2, 6, like=x), []
    for piece in (x[:, :4], x[:, 4:5], x[:, 5:]):
        out, caches, _ = layer.run(params, piece, cache=caches)
        pieces.append(out)
    assert np.abs(np.concatenate(pieces, 1) - formula(params, x)).max() <= bound * 2.0**-29


def seq2seq_formula(p: Any, x: Any, context: Any, *, lengths: tuple[int, ...] = (5, 5)) -> Any:
    seen = (np.arange(5) < np.array(lengths)[:, None])[:, None, :]
    n = x.shape[-2]
    for i in range(2):
        x, _ = formulas.decoder_block(
            p[f"block_{i}"],
            x,
            context,
            norm_first=False,
            epsilon=1e-5,
            allowed=np.tril(np.ones((n, n))),
            context_allowed=seen,
        )
    return x


@on_every_library
def test_a_decoder_is_its_formula_and_hides_the_padding_of_its_source(library: str) -> None:
    params, x, context = drawn(SEQ2SEQ), normal(2, 6, 8), normal(2, 5, 8, seed=1)
    formula = partial(seq2seq_formula, lengths=(5, 3))
    mask = masks.key_lengths(bench_of(library).array(np.array([5, 3], np.int32)))
    out = applied(library, SEQ2SEQ, params, x, context, context_mask=mask)
    assert np.abs(out - formula(params, x, context)).max() <= room(formula, params, x, context) < 1e-4
    context[1, 3:] = np.nan
    if library != "jax":
        assert np.array_equal(out, applied(library, SEQ2SEQ, params, x, context, context_mask=mask))


# caches


@on_every_library
def test_decoding_in_pieces_gives_the_rows_of_the_full_causal_result(library: str) -> None:
    bench = bench_of(library)
    params, x = drawn(LLAMA), normal(2, 6, 8)
    full = LLAMA(params, x)
    bound = room(LLAMA, params, x)
    given, xs = mapped(lambda w: bench.array(w, "float32"), params), bench.array(x, "float32")
    call = jax.jit(LLAMA.run) if library == "jax" else LLAMA.run
    caches = LLAMA.empty_cache(2, 8, like=xs)
    assert len(caches) == 2
    assert caches[0].key.shape == (2, 2, 8, 2)
    pieces = []
    for start, stop in ((0, 2), (2, 4), (4, 6)) if library == "jax" else ((0, 3), (3, 4), (4, 6)):
        out, caches, _ = call(given, xs[:, start:stop, :], cache=caches)
        pieces.append(bench.numpy(out))
    assert all(int(cache.length) == 6 for cache in caches)
    assert np.abs(np.concatenate(pieces, 1) - full).max() <= bound < 1e-4


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_decoder_with_caches_gives_the_rows_of_the_full_result(library: str) -> None:
    bench = bench_of(library)
    params, x, context = drawn(SEQ2SEQ), normal(2, 4, 8), normal(2, 5, 8, seed=1)
    true, bound = seq2seq_formula(params, x, context), room(seq2seq_formula, params, x, context)
    given = mapped(lambda w: bench.array(w, "float32"), params)
    xs, source = (bench.array(a, "float32") for a in (x, context))
    caches, pieces = SEQ2SEQ.empty_cache(2, 4, like=xs), []
    for start, stop in ((0, 2), (2, 3), (3, 4)):
        out, caches, _ = SEQ2SEQ.run(given, xs[:, start:stop], source, cache=caches)
        pieces.append(bench.numpy(out))
    assert np.abs(np.concatenate(pieces, 1) - true).max() <= bound


@on_every_library
@pytest.mark.parametrize("cross", ["as wide", "rotated", "normed, grouped", "tied", "additive"])
def test_what_a_decoder_remembers_stands_for_its_context(cross: str, library: str) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "as wide": {},
        "rotated": {"rotary": Rotary()},
        "normed, grouped": {
            "num_kv_heads": 1,
            "qk_norm": (layers.RMSNorm(8, epsilon=1e-6), layers.RMSNorm(4, epsilon=1e-6)),
            "context_dim": 6,
        },
        "tied": {"tied_kv": True, "v_norm": layers.RMSNorm(4, epsilon=1e-6)},
    }
    seen: Any = layers.AdditiveAttention(8, 4) if cross == "additive" else None
    seen = seen or layers.MultiHeadCrossAttention(8, 2, **sizes[cross])
    block = layers.DecoderBlock(
        layers.MultiHeadAttention(8, 2), seen, NORM, mlp=layers.MLP(8, 12, activation="gelu"), norm_first=True
    )
    layer, bench = layers.Decoder(block, 2, final_norm=NORM), bench_of(library)
    given = mapped(lambda x: bench.array(x, "float32"), drawn(layer))
    x, context = (bench.array(normal(2, n, width), "float32") for n, width in ((4, 8), (4, seen.source_dim)))
    memory = layer.remember(given, context)
    assert [isinstance(part, layers.Memory) for part in memory] == [cross != "additive"] * 2
    mask = masks.key_lengths(bench.array(np.array([4, 2], np.int32)))
    whole, again = (layer(given, x, source, context_mask=mask) for source in (context, memory))
    assert np.array_equal(bench.numpy(whole), bench.numpy(again))
    assert not np.array_equal(bench.numpy(whole), bench.numpy(layer(given, x, context)))  # the mask is heard


def test_the_gradient_of_a_context_goes_through_what_is_remembered() -> None:
    params = mapped(torch.as_tensor, drawn(SEQ2SEQ))
    x, found = torch.as_tensor(normal(2, 4, 8)), []
    for through in (lambda context: context, lambda context: SEQ2SEQ.remember(params, context)):
        context = torch.as_tensor(normal(2, 5, 8, seed=1)).requires_grad_()
        (SEQ2SEQ(params, x, through(context)) * x).sum().backward()
        found.append(context.grad)
    assert (found[0] == found[1]).all()
    assert found[0].abs().min() > 0


# what comes back


def test_aux_has_an_entry_for_each_block() -> None:
    x, context, asked = normal(2, 6, 8), normal(2, 5, 8), AuxRequest(weights=True, lse=True)
    out, cache, aux = LLAMA.run(drawn(LLAMA), x, return_aux=asked)
    assert out.shape == (2, 6, 8)
    assert cache is None
    assert [a.weights.shape for a in aux] == [(2, 4, 6, 6)] * 2
    assert [a.lse.shape for a in aux] == [(2, 4, 6)] * 2
    seen = SEQ2SEQ.run(drawn(SEQ2SEQ), x, context, return_aux=asked).aux
    assert [type(a) for a in seen] == [layers.DecoderAux] * 2
    assert [a.self_attention.weights.shape for a in seen] == [(2, 2, 6, 6)] * 2
    assert [a.cross_attention.weights.shape for a in seen] == [(2, 2, 6, 5)] * 2


def test_with_cache_and_aux_both_come() -> None:
    x, context, asked = normal(2, 3, 8), normal(2, 5, 8), AuxRequest(weights=True)
    block = LLAMA.block
    for layer, params, inputs in (
        (LLAMA, drawn(LLAMA), (x,)),
        (SEQ2SEQ, drawn(SEQ2SEQ), (x, context)),
    ):
        out, caches, aux = layer.run(params, *inputs, cache=layer.empty_cache(2, 4, like=x), return_aux=asked)
        assert out.shape == (2, 3, 8)
        assert [cache.length for cache in caches] == [3, 3]
        assert len(aux) == 2
    out, cache, aux = block.run(drawn(block), x, cache=block.empty_cache(2, 4, like=x), return_aux=asked)
    assert cache.length == 3
    assert aux.weights.shape == (2, 4, 3, 4)  # over the capacity of the cache
    assert not aux.weights[..., 3].any()


@pytest.mark.parametrize(
    "cross",
    [layers.AdditiveAttention(8, 6), layers.LuongAttention(8, score="general")],
    ids=lambda layer: type(layer).__name__,
)
def test_the_cross_attention_of_a_decoder_may_be_additive(cross: Any) -> None:
    layer = layers.EncoderDecoderAttention(
        layers.MultiHeadAttention(8, 2), cross, layers.LayerNorm(8, epsilon=1e-5), norm_first=True
    )
    params, x, context = drawn(layer), normal(2, 4, 8), normal(2, 5, 8)
    out, _, aux = layer.run(params, x, context, return_aux=AuxRequest(weights=True))
    formula = formulas.additive if isinstance(cross, layers.AdditiveAttention) else formulas.luong

    def whole(p: Any, x: Any, context: Any) -> Any:
        norms = [partial(formulas.layer_norm, p[name], epsilon=1e-5) for name in ("norm_1", "norm_2")]
        own = partial(formulas.multihead, p["self_attention"], allowed=np.tril(np.ones((4, 4))))
        x, _ = formulas.residual(x, norms[0], own, norm_first=True)
        return formulas.residual(
            x, norms[1], lambda x: formula(p["cross_attention"], x, context), norm_first=True
        )[0]

    assert aux.cross_attention.weights.shape == (2, 1, 4, 5)
    assert np.abs(out - whole(params, x, context)).max() <= room(whole, params, x, context) * 2.0**-29


def test_a_stack_under_jit_and_grad_reaches_every_block() -> None:
    params = mapped(lambda w: jnp.asarray(w, jnp.float32), drawn(LLAMA))
    x = jnp.asarray(normal(2, 4, 8), jnp.float32)
    gradients = jax.jit(jax.grad(lambda p: (LLAMA(p, x) * x).sum()))(params)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert mapped(jnp.shape, gradients) == LLAMA.shapes()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert all(g.any() for g in jax.tree.leaves(gradients))  # the key bias too: it is turned by position
