"""What layers do beside the formula of each: dropout, ranks, dtypes, transforms, options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import jax, jnp, torch
from shared.running import LIBRARIES, Floats, apart, applied, bench_of, drawn, mapped, normal, torch_gradients

from polyattn import AuxRequest, Blockwise, Reference, attention, layers, masks, mods
from polyattn.dropout import fold_in
from polyattn.parity import UNIT_ROUNDOFF, round_to
from polyattn.truth.rounding import noise

on_every_library = pytest.mark.parametrize("library", LIBRARIES)

MHA = layers.MultiHeadAttention(8, 2)


def room(formula: Callable[..., Any], params: Any, *inputs: Floats, dtype: str = "float32") -> float:
    """4 x the rounding noise of a formula in a dtype."""
    found = noise(lambda number: formula(mapped(number, params), *map(number, inputs)))
    return 4 * found * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]


def attended(*args: Any, **options: Any) -> Any:
    return formulas.multihead(*args, **options)[0]


# dropout

DROPPING = [
    layers.MultiHeadAttention(8, 2, dropout_rate=0.5),
    layers.CausalSelfAttention(8, 2, context_length=5, dropout_rate=0.5),
    layers.AdditiveAttention(8, 6, dropout_rate=0.5),
    layers.LuongAttention(8, score="general", dropout_rate=0.5),
    layers.MLP(8, 16, activation="relu", dropout_rate=0.5),
]
BLOCK = layers.EncoderBlock.preset("torch", 8, 2, 16, dropout_rate=0.5)


@on_every_library
@pytest.mark.parametrize("layer", [*DROPPING, BLOCK], ids=lambda x: type(x).__name__)
def test_the_same_seed_drops_the_same_on_every_library(library: str, layer: Any) -> None:
    params, x = drawn(layer), normal(3, 5, 8)
    here = applied(library, layer, params, x, dropout_seed=7)
    there = applied("numpy", layer, params, x, dropout_seed=7, dtype="float64")
    bound = room(lambda p, x: layer(p, x, dropout_seed=7), params, x)
    assert np.abs(here - there).max() <= bound < 1e-4
    assert np.abs(applied("numpy", layer, params, x, dropout_seed=8) - there).max() > 0.1


@pytest.mark.parametrize("library", ["numpy", "strict", "torch"])
@pytest.mark.parametrize("layer", [DROPPING[0], BLOCK], ids=["MultiHeadAttention", "EncoderBlock"])
def test_without_a_seed_nothing_is_dropped(library: str, layer: Any) -> None:
    params, x = drawn(layer), normal(2, 5, 8)
    never = replace(layer, dropout_rate=0.0)
    if layer is BLOCK:
        never = layers.EncoderBlock.preset("torch", 8, 2, 16, dropout_rate=0.0)
    without = applied(library, layer, params, x)
    assert np.array_equal(without, applied(library, never, params, x))
    assert np.array_equal(without, applied(library, never, params, x, dropout_seed=7))


@pytest.mark.parametrize(
    ("layer", "has"),
    [
        (MHA, False),
        (layers.MultiHeadAttention(8, 2, dropout_rate=0.1), True),
        (layers.Encoder(BLOCK, 2), True),
        (layers.Encoder(layers.EncoderBlock.preset("flax", 8, 2, 16), 2), False),
        (replace(layers.EncoderBlock.preset("flax", 8, 2, 16), dropout_rate=0.1), True),
        (layers.Decoder(layers.DecoderBlock.preset("torch", 8, 2, 16), 1), True),
        (layers.LayerNorm(8, epsilon=1e-5), False),
        (layers.MLP(8, 16, activation="relu", dropout_rate=0.1), True),
    ],
)
def test_has_dropout_says_whether_any_part_drops(layer: layers.Layer, has: bool) -> None:
    assert layer.has_dropout == has


@pytest.mark.parametrize("layer", DROPPING, ids=lambda x: type(x).__name__)
def test_the_mean_over_many_masks_is_the_result_without_dropout(layer: Any) -> None:
    """4000 items of one batch draw their masks independently."""
    params, x = drawn(layer), normal(5, 8)
    many = layer(params, np.broadcast_to(x, (4000, 5, 8)), dropout_seed=3)
    deviation = many.mean(0) - layer(params, x)
    assert (many.std(0) > 0).all()
    assert (np.abs(deviation) <= 6 * many.std(0) / math.sqrt(4000)).all()


def test_dropped_weights_are_zero_and_kept_ones_grow() -> None:
    x = np.eye(8)
    layer = layers.SelfAttention(8, head_dim=8, dropout_rate=0.5)
    params = {**drawn(layer), "w_v": np.eye(8)[:, None, :]}  # values are the identity: out is the weights
    weights, dropped = layer(params, x), layer(params, x, dropout_seed=5)
    assert np.array_equal(dropped, np.where(dropped > 0, 2 * weights, 0))
    # 64 fair coins: further from 32 than 6 sigma = 24 about once in 10^9
    assert 8 < np.count_nonzero(dropped) < 56


def test_every_place_of_dropout_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyattn.layers import attending, blocks, dense

    seeds: list[Any] = []

    def recording(f: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            seeds.append(options["dropout_seed"] if "dropout_seed" in options else args[2])
            return f(*args, **options)

        return run

    monkeypatch.setattr(blocks, "drop", recording(blocks.drop))
    monkeypatch.setattr(dense, "drop", recording(dense.drop))
    monkeypatch.setattr(attending, "attend", recording(attending.attend))
    decoder = layers.Decoder(layers.DecoderBlock.preset("torch", 8, 2, 16), 3)
    decoder(drawn(decoder), normal(2, 5, 8), normal(2, 6, 8), dropout_seed=1)
    assert len(seeds) == 3 * (2 * 2 + 2)  # attention and residual twice, hidden and residual of the MLP
    assert len(set(seeds)) == len(seeds)


@on_every_library
def test_a_seed_that_is_an_array_draws_the_same_mask_as_the_int(library: str) -> None:
    layer, bench = DROPPING[0], bench_of(library)
    params, x = drawn(layer), normal(2, 5, 8)
    given = mapped(lambda w: bench.array(w, "float32"), params)

    def call(p: Any, x: Any, seed: Any) -> Any:
        return layer(p, x, dropout_seed=fold_in(seed, 3))

    call = jax.jit(call) if library == "jax" else call
    out = call(given, bench.array(x, "float32"), bench.array(np.asarray(7, np.int32)))
    plain = layer(params, x, dropout_seed=fold_in(7, 3))
    bound = room(lambda p, x: layer(p, x, dropout_seed=fold_in(7, 3)), params, x)
    assert np.abs(bench.numpy(out) - plain).max() <= bound < 1e-4


# shapes


@on_every_library
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=["rank 2", "rank 3", "rank 4"])
def test_leading_axes_are_independent_problems(library: str, lead: tuple[int, ...]) -> None:
    layer = layers.MultiHeadAttention(8, 4, num_kv_heads=2, context_dim=6)
    params, x, context = drawn(layer), normal(*lead, 4, 8), normal(*lead, 5, 6)
    out = applied(library, layer, params, x, context)
    assert out.shape == (*lead, 4, 8)
    assert np.abs(out - attended(params, x, context)).max() <= room(attended, params, x, context)


@pytest.mark.parametrize("lead", [(), (2, 3)], ids=["rank 2", "rank 4"])
@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (layers.AdditiveAttention(8, 6), lambda p, x: formulas.additive(p, x, x)[0]),
        (layers.LuongAttention(8, score="dot"), lambda p, x: formulas.luong(p, x, x)[0]),
        (layers.LayerNorm(8, epsilon=1e-5), partial(formulas.layer_norm, epsilon=1e-5)),
        (layers.MLP(8, 16, activation="relu"), formulas.mlp),
        (layers.Linear(8, 3), lambda p, x: formulas.affine(x, p["w"], p["b"])),
        (BLOCK, lambda p, x: formulas.encoder_block(p, x, norm_first=False, epsilon=1e-5)[0]),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, layers.Layer) else "",
)
def test_every_layer_takes_any_number_of_leading_axes(
    layer: Any, formula: Callable[..., Any], lead: tuple[int, ...]
) -> None:
    params, x = drawn(layer), normal(*lead, 5, 8)
    true = formula(params, x)
    for library in ("numpy", "torch"):
        out = applied(library, layer, params, x, dtype="float64")
        assert out.shape == true.shape
        assert np.abs(out - true).max() <= room(formula, params, x, dtype="float64")


@on_every_library
def test_empty_lengths_give_empty_results_or_the_bias(library: str) -> None:
    params, x = drawn(MHA), normal(2, 4, 8)
    if library != "jax":  # a compilation each
        assert applied(library, MHA, params, x[:, :0]).shape == (2, 0, 8)
        assert applied(library, BLOCK, drawn(BLOCK), x[:, :0]).shape == (2, 0, 8)
        assert applied(library, MHA, params, x[:0]).shape == (0, 4, 8)
    out = applied(library, MHA, params, x, x[:, :0])  # nothing to see: 0 for every head
    assert np.array_equal(out, np.broadcast_to(params["b_o"], (2, 4, 8)))


# dtypes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (MHA, attended),
        (layers.AdditiveAttention(8, 6), lambda p, x: formulas.additive(p, x, x)[0]),
        (
            layers.MLP(8, 16, activation="gelu_tanh"),
            lambda p, x: formulas.mlp(p, x, formulas.gelu_tanh),
        ),
    ],
    ids=["MultiHeadAttention", "AdditiveAttention", "MLP"],
)
def test_half_precision_comes_back_as_precise_as_it_is(
    layer: Any, formula: Callable[..., Any], library: str, dtype: str
) -> None:
    params = mapped(lambda w: round_to(w, dtype), drawn(layer))
    x = round_to(normal(2, 5, 8), dtype)
    bench = bench_of(library)
    given = mapped(lambda w: bench.array(w, dtype), params)
    out = (jax.jit(layer) if library == "jax" else layer)(given, bench.array(x, dtype))
    assert str(out.dtype).rpartition(".")[2] == dtype
    assert np.abs(bench.numpy(out) - formula(params, x)).max() <= room(formula, params, x, dtype=dtype)


def test_float64_stays_float64_in_jax() -> None:
    params, x = drawn(MHA), normal(2, 5, 8)
    out = applied("jax", MHA, params, x, dtype="float64")
    assert np.abs(out - attended(params, x)).max() <= room(attended, params, x, dtype="float64") < 1e-13


# transforms


def test_a_layer_is_a_hashable_value_and_a_static_argument() -> None:
    layer = layers.Encoder(layers.EncoderBlock.preset("flax", 8, 2, 16), 1)
    same = layers.Encoder(layers.EncoderBlock.preset("flax", 8, 2, 16), 1)
    assert layer == same
    assert hash(layer) == hash(same)
    assert layer != replace(layer, depth=2)
    traces = []

    def run(layer: Any, params: Any, x: Any) -> Any:
        traces.append(layer)
        return layer(params, x)

    compiled = jax.jit(run, static_argnums=0)
    params = mapped(lambda w: jnp.asarray(w, jnp.float32), drawn(layer))
    x = jnp.asarray(normal(2, 5, 8), jnp.float32)
    assert np.array_equal(compiled(layer, params, x), compiled(same, params, x))
    assert len(traces) == 1


@pytest.mark.parametrize(
    "layer",
    [
        layers.MultiHeadAttention(8, 2, mask=masks.window(3, 0) & masks.causal()),
        layers.MultiHeadAttention(8, 2, score_mod=mods.softcap(2.0), qk_norm=layers.RMSNorm(4, epsilon=1e-6)),
        layers.MultiHeadAttention(8, 2, score_mod=mods.alibi(2)),
        layers.AdditiveAttention(8, 2, initializer=layers.Normal(0.02)),
    ],
    ids=["mask", "softcap", "alibi", "initializer"],
)
def test_layers_with_masks_and_mods_are_hashable_too(layer: layers.Layer) -> None:
    assert {layer: 1}[layer] == 1


def test_vmap_over_the_batch_is_the_batch() -> None:
    params, x = drawn(MHA), normal(3, 5, 8)
    true, bound = attended(params, x), room(attended, params, x)
    given = mapped(lambda w: jnp.asarray(w, jnp.float32), params)
    out = jax.jit(jax.vmap(MHA, (None, 0)))(given, jnp.asarray(x, jnp.float32))
    assert np.abs(out - true).max() <= bound
    given = mapped(lambda w: torch.from_numpy(w).float(), params)
    vmapped = torch.func.vmap(MHA, (None, 0))(given, torch.from_numpy(x).float())
    assert np.abs(vmapped.numpy() - true).max() <= bound


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_call_changes_neither_params_nor_inputs(library: str) -> None:
    bench = bench_of(library)
    params = mapped(lambda w: bench.array(w, "float32"), drawn(BLOCK))
    x = bench.array(normal(2, 5, 8), "float32")
    first = bench.numpy(BLOCK(params, x))
    assert np.array_equal(first, bench.numpy(BLOCK(params, x)))
    assert np.array_equal(bench.numpy(x), normal(2, 5, 8))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(mapped(bench.numpy, params)), jax.tree.leaves(drawn(BLOCK)), strict=True
        )
    )


# options of a layer


def single_head(
    p: Any,
    x: Any,
    *,
    bend: Any = lambda s: s,
    norm: Any = lambda p, x: x,
    weigh: Any = formulas.softmax,
    allowed: Any = 1.0,
) -> Any:
    """One head without biases: scores through `bend` and then `weigh`, q and k through `norm`."""
    q, k, v = (x @ p[f"w_{name}"][:, 0] for name in "qkv")
    q, k = norm(p.get("q_norm"), q), norm(p.get("k_norm"), k)
    scores = bend(q @ k.swapaxes(-1, -2) / 2.0)  # 1 / sqrt(4)
    return weigh(scores, allowed) @ v


def rms(p: Any, x: Any) -> Any:
    return x / ((x * x).sum(-1)[..., None] / 4 + 1e-6) ** 0.5 * p["scale"]


BAND = abs(np.arange(6)[:, None] - np.arange(6)) <= 1
BEHIND = np.tril(np.ones((6, 6)))
OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any], Any]] = [
    ("scale", {"scale": 0.25}, {}, partial(single_head, bend=lambda s: s / 2)),
    ("mask", {"mask": masks.window(1, 1)}, {}, partial(single_head, allowed=BAND)),
    ("both masks", {"mask": masks.window(1, 1)}, {"mask": BEHIND > 0}, partial(single_head, allowed=BAND * BEHIND)),
    ("a function as mask", {"mask": masks.window(1, 1)}, {"mask": lambda b, h, q, kv: kv <= q}, partial(single_head, allowed=BAND * BEHIND)),
    ("score_mod", {"score_mod": mods.softcap(2.0)}, {}, partial(single_head, bend=lambda s: 2 * np.tanh(s / 2))),
    ("qk_norm", {"qk_norm": layers.RMSNorm(4, epsilon=1e-6)}, {}, partial(single_head, norm=rms)),
    ("normalizer", {"normalizer": "sigmoid"}, {}, partial(single_head, weigh=lambda s, allowed: formulas.sigmoid(s) * allowed)),
    ("is_causal", {"is_causal": True}, {}, partial(single_head, allowed=BEHIND)),
    ("is_causal in the call", {}, {"is_causal": True}, partial(single_head, allowed=BEHIND)),
    ("is_causal taken back", {"is_causal": True}, {"is_causal": False}, single_head),
]  # fmt: skip


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("name", "of_layer", "of_call", "formula"), OPTIONS, ids=[name for name, *_ in OPTIONS]
)
def test_options_enter_where_the_formula_has_them(
    name: str, of_layer: Any, of_call: Any, formula: Any, library: str
) -> None:
    layer = layers.SelfAttention(8, head_dim=4, **of_layer)
    params, x = drawn(layer), normal(2, 6, 8)
    out = applied(library, layer, params, x, **of_call)
    assert np.abs(out - formula(params, x)).max() <= room(formula, params, x) < 1e-4
    if formula is not single_head:
        assert np.abs(out - single_head(params, x)).max() > 0.01


def grouped(p: Any, x: Any) -> Any:
    """Four query heads, two key heads, with the norms and the gate that p has; values of the keys where p has no w_v."""

    def projected(name: str, w: Any) -> list[Any]:
        heads = [x @ w[:, h] for h in range(w.shape[1])]
        if f"{name}_norm" not in p:
            return heads
        scale = p[f"{name}_norm"].get("scale", 1.0)
        if isinstance(scale, float) or len(scale) == 3:
            return [formulas.rms_norm(scale, head, 1e-6) for head in heads]
        whole = formulas.rms_norm(scale, formulas.of(x).concatenate(heads, -1), 1e-6)
        return [whole[..., 3 * h : 3 * h + 3] for h in range(len(heads))]

    q, k, v = projected("q", p["w_q"]), projected("k", p["w_k"]), projected("v", p.get("w_v", p["w_k"]))
    out = 0
    for h in range(4):
        head = formulas.attend(q[h], k[h // 2], v[h // 2])[0]
        if "w_g" in p:
            gate = p["w_g"][:, h]  # (E,) for a head, (E, D) for its entries
            head = head * formulas.sigmoid(x @ (gate if gate.ndim == 2 else gate[:, None]))
        out = out + head @ p["w_o"][h]
    return out


def norm_of(dim: int, **more: Any) -> layers.RMSNorm:
    return layers.RMSNorm(dim, epsilon=1e-6, **more)


PLAIN: dict[str, Any] = {"num_kv_heads": 2, "head_dim": 3, "qkv_bias": False, "out_bias": False}
GROUPED: dict[str, dict[str, Any]] = {
    "v_norm": {"v_norm": norm_of(3)},
    "v_norm without scale": {"v_norm": norm_of(3, use_scale=False)},
    "tied_kv": {"tied_kv": True},
    "tied_kv, before the norms": {"tied_kv": True, "qk_norm": norm_of(3), "v_norm": norm_of(3)},
    "a gate for each head": {"output_gate": "head"},
    "a gate for each entry": {"output_gate": "entry"},
    "qk_norm over all heads": {"qk_norm": (norm_of(12), norm_of(6))},
    "qk_norm of each head": {"qk_norm": (norm_of(3), norm_of(3))},
}


@on_every_library
@pytest.mark.parametrize("name", GROUPED)
def test_norms_gates_and_ties_enter_where_the_formula_has_them(name: str, library: str) -> None:
    layer = layers.MultiHeadAttention(8, 4, **PLAIN, **GROUPED[name])
    params, x = drawn(layer), normal(2, 5, 8)
    out = applied(library, layer, params, x)
    assert np.abs(out - grouped(params, x)).max() <= room(grouped, params, x) < 1e-4
    if GROUPED[name] != {"tied_kv": True}:
        bare = {n: w for n, w in params.items() if n in ("w_q", "w_k", "w_v", "w_o")}
        assert np.abs(out - grouped(bare, x)).max() > 0.01


@pytest.mark.parametrize("name", GROUPED)
def test_gradients_of_norms_gates_and_ties_are_those_of_the_formula(name: str) -> None:
    """No further from the formula in float64 than four times what the formula in float32 is."""
    layer = layers.MultiHeadAttention(8, 4, **PLAIN, **GROUPED[name])
    params, x = drawn(layer), normal(2, 5, 8)
    true, plain = (torch_gradients(grouped, params, x, dtype) for dtype in ("float64", "float32"))
    found = torch_gradients(layer, params, x, "float32")
    assert all(gradient.any() for gradient in found)
    assert apart(found, true) <= 4 * apart(plain, true) < 1e-3


def test_query_offset_moves_the_diagonal() -> None:
    layer = layers.MultiHeadAttention(8, 2, is_causal=True)
    params, x, context = drawn(layer), normal(2, 3, 8), normal(2, 6, 8)
    position, key = np.arange(3)[:, None], np.arange(6)
    for offset, start in ((0, 0), (2, 2), ("end", 3)):
        true = attended(params, x, context, allowed=key <= position + start)
        out = layer(params, x, context, query_offset=offset)
        bound = room(partial(attended, allowed=key <= position + start), params, x, context, dtype="float64")
        assert np.abs(out - true).max() <= bound


def test_lse_and_scores_come_as_aux_too() -> None:
    layer = layers.AdditiveAttention(8, 6)
    params, x = drawn(layer), normal(2, 5, 8)
    aux = layer.run(params, x, return_aux=AuxRequest(lse=True, scores=True)).aux
    scores = formulas.additive_scores(x @ params["w_q"], x @ params["w_k"], params["v"])
    assert aux.scores.shape == (2, 1, 5, 5)
    bound = room(
        lambda p, x: formulas.additive_scores(x @ p["w_q"], x @ p["w_k"], p["v"]), params, x, dtype="float64"
    )
    assert np.abs(aux.scores[:, 0] - scores).max() <= bound
    # log-sum-exp moves by no more than the largest of its scores, and rounds
    lse = np.log(np.exp(scores).sum(-1))
    assert np.abs(aux.lse[:, 0] - lse).max() <= bound + 8 * UNIT_ROUNDOFF["float64"] * np.abs(lse).max()


@pytest.mark.parametrize(
    "wish", ["reference", "blockwise", Blockwise(2, 3), Reference(max_bytes=2**20)], ids=str
)
def test_a_layer_runs_the_implementation_that_it_was_made_for(wish: Any) -> None:
    for plain in (MHA, layers.CausalSelfAttention(8, 2, context_length=5, sinks=True)):
        layer = replace(plain, implementation=wish)
        params, x = drawn(layer), normal(2, 5, 8)
        found = layer.run(params, x, return_aux=AuxRequest(lse=True))
        kind = "blockwise" if wish in ("blockwise", Blockwise(2, 3)) else "reference"
        assert found.aux.implementation.startswith(kind)
        formula = partial(attended, allowed=np.tri(5) if layer.is_causal else 1.0)
        assert np.abs(found.out - formula(params, x)).max() <= room(formula, params, x, dtype="float64")
    heads = normal(2, 2, 5, 4)
    found = layers.ScaledDotProductAttention(implementation=wish).run(
        {}, heads, heads, heads, return_aux=AuxRequest(lse=True)
    )
    assert found.aux.implementation.startswith(kind)
    assert np.array_equal(found.out, attention(heads, heads, heads, implementation=wish))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_blocks_and_stacks_hand_a_bias_to_their_attention(library: str) -> None:
    """A bias of -inf hides what a mask hides, in either attention of a decoder."""
    own, other = np.where(np.tri(5) > 0, 0.0, -np.inf), np.where(np.arange(6)[None] < 4, 0.0, -np.inf)
    context, x = normal(2, 6, 8), normal(2, 5, 8)
    decoder = layers.DecoderBlock.preset("torch", 8, 2, 16)
    for layer, inputs, hidden in (
        (BLOCK, (x,), {"mask": own == 0}),
        (layers.Encoder(BLOCK, 2), (x,), {"mask": own == 0}),
        (decoder, (x, context), {"mask": own == 0, "context_mask": other == 0}),
        (layers.Decoder(decoder, 2), (x, context), {"mask": own == 0, "context_mask": other == 0}),
    ):
        params = drawn(layer)
        free = {} if len(inputs) == 1 else {"is_causal": False}
        by_mask = lambda p, *xs: layer(p, *xs, **free, **hidden)  # noqa: B023, E731
        biases = {name.replace("mask", "bias"): np.where(m, 0.0, -np.inf) for name, m in hidden.items()}
        out = applied(library, layer, params, *inputs, **free, **biases)
        assert np.abs(out - by_mask(params, *inputs)).max() <= room(by_mask, params, *inputs) < 1e-4
        assert np.abs(out - layer(params, *inputs, **free)).max() > 0.01


# what comes back

CACHE = MHA.empty_cache(2, 6, like=np.zeros(()))
ASKED = {"cache": CACHE, "return_aux": AuxRequest(lse=True)}


@pytest.mark.parametrize("asked", [(), ("cache",), ("return_aux",), ("cache", "return_aux")])
def test_run_gives_one_type_and_a_call_the_array_alone(asked: tuple[str, ...]) -> None:
    params, x = drawn(MHA), normal(2, 5, 8)
    found = MHA.run(params, x, is_causal=True, **{name: ASKED[name] for name in asked})
    assert type(found) is layers.LayerResult
    assert np.abs(found.out - MHA(params, x, is_causal=True)).max() <= room(
        partial(attended, allowed=np.tri(5)), params, x, dtype="float64"
    )
    assert (found.cache is None, found.aux is None) == ("cache" not in asked, "return_aux" not in asked)
    assert found.cache is None or found.cache.length == 5
    assert found.aux is None or found.aux.lse.shape == (2, 2, 5)


@pytest.mark.parametrize(
    "layer",
    [
        MHA,
        layers.CausalSelfAttention(8, 2, context_length=5),
        layers.AdditiveAttention(8, 6),
        BLOCK,
        layers.Encoder(BLOCK, 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_call_that_asks_for_more_is_told_the_line_to_write(layer: Any) -> None:
    params, x = drawn(layer), normal(2, 5, 8)
    for asked in (["cache"], ["return_aux"], ["cache", "return_aux"]):
        with pytest.raises(TypeError) as caught:
            layer(params, x, **dict.fromkeys(asked))
        line = ", ".join(f"{name}=..." for name in asked)
        assert str(caught.value) == (
            f"{layer.name}: expected neither cache nor return_aux in a call, which returns an array alone, got "
            f"{' and '.join(asked)}; write out, cache, aux = layer.run(params, x, ..., {line})"
        )


def test_what_does_not_attend_runs_too() -> None:
    norm = layers.LayerNorm(8, epsilon=1e-5)
    params, x = drawn(norm), normal(2, 5, 8)
    out, cache, aux = norm.run(params, x)
    assert np.array_equal(out, norm(params, x))
    assert cache is None
    assert aux is None
