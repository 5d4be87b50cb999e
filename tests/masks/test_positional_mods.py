"""Modifications by position: forgetting gates and temperatures, with their gradients, on every way to run."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch
from shared.running import LIBRARIES, bench_of

from polyattn import AuxRequest, Blockwise, Fused, attention, attention_vjp, mods
from polyattn.arrays import backend_of
from polyattn.parity import ACCEPTANCE, Spec, eta
from polyattn.problem import pose
from polyattn.testing import Bench
from polyattn.truth import truth

RNG = np.random.default_rng(0)
B, H, N, D = 2, 4, 7, 5
Q, K, V = (RNG.normal(size=(B, H, N, D)).astype(np.float32).astype(float) for _ in range(3))
GATES = (-np.abs(RNG.normal(size=(B, H, N)))).astype(np.float32).astype(float)
CAUSAL = np.tri(N, dtype=bool)[None, None]
STRENGTH, EVERY = 0.5, 3
WAYS = ["reference", Blockwise(3, 2)]
per_item_or_for_all = pytest.mark.parametrize(
    ("way", "each"), [("reference", True), (Blockwise(3, 2), True), (Blockwise(3, 2), False)], ids=str
)
#: JAX compiled alone: eagerly it takes minutes
everywhere = pytest.mark.parametrize(
    "bench",
    ["numpy", "autograd", "strict-no-float64", "strict-flags", "jax-jit", "torch"],
    indirect=True,
)


def between(gates: Any) -> Any:
    """sum of gates[j + 1 .. i], one score at a time."""
    found = np.zeros((*gates.shape, gates.shape[-1]))
    for i in range(gates.shape[-1]):
        for j in range(i):
            found[..., i, j] = gates[..., j + 1 : i + 1].sum(-1)
    return found


def sharper(positions: Any, strength: float = STRENGTH) -> Any:
    return np.array([1 + strength * np.log(1 + (p + 1) // EVERY) for p in positions])[:, None]


def found(bench: Bench, call: Any, **arrays: Any) -> Any:
    """call(arrays), compiled where the bench compiles."""
    given = {name: bench.array(x, "float32") for name, x in arrays.items()}
    return bench.numpy(bench.run(lambda a: (call(a), None), given, None)[0])


def attend(a: Any, mod: Any, way: Any, **options: Any) -> Any:
    return attention(a["q"], a["k"], a["v"], score_mod=mod, is_causal=True, implementation=way, **options)


@everywhere
@per_item_or_for_all
def test_a_key_is_weighed_by_all_gates_after_it(bench: Bench, way: Any, each: bool) -> None:
    gates = GATES if each else GATES[0]
    shift = between(gates) if each else between(gates)[None]
    judged = truth(Spec(Q, K, V, shift=shift, allowed=CAUSAL))["out"]
    arrays = {"q": Q, "k": K, "v": V, "gates": gates}
    out = found(bench, lambda a: attend(a, mods.forgetting(a["gates"]), way), **arrays)
    assert eta(out, judged, "float32") <= ACCEPTANCE
    assert eta(found(bench, lambda a: attend(a, None, way), **arrays), judged, "float32") > 100


@everywhere
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_late_queries_are_sharper(bench: Bench, way: Any) -> None:
    judged = truth(Spec(Q * sharper(range(N)), K, V, allowed=CAUSAL))["out"]
    arrays = {"q": Q, "k": K, "v": V, "strength": np.array(STRENGTH)}
    for strength in (lambda a: STRENGTH, lambda a: a["strength"]):
        out = found(bench, lambda a, f=strength: attend(a, mods.temperature(f(a), EVERY), way), **arrays)
        assert eta(out, judged, "float32") <= ACCEPTANCE


@everywhere
@per_item_or_for_all
def test_gates_and_strengths_have_gradients(bench: Bench, way: Any, each: bool) -> None:
    """Against autograd of the formula as PyTorch writes it with whole matrices, in float64."""
    gates, cotangent = (GATES if each else GATES[0]), np.sign(RNG.normal(size=Q.shape))
    arrays = {"query": Q, "key": K, "value": V, "gates": gates, "strength": np.array(STRENGTH)}
    given = {name: bench.array(x, "float32") for name, x in arrays.items()}

    def made(a: Any) -> mods.Mod:
        return mods.compose(mods.temperature(a["strength"], EVERY), mods.forgetting(a["gates"]))

    def f(a: Any) -> Any:
        out, aux = attention(
            a["query"], a["key"], a["value"], score_mod=made(a), is_causal=True, implementation=way,
            return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        return out, aux.lse

    *_, gradients = bench.run(f, given, bench.array(cotangent, "float32"))
    if gradients is None:
        tiles = Blockwise(3, 2) if way == "reference" else way
        options = {"score_mod": made(given), "is_causal": True, "implementation": tiles}
        _, pullback = attention_vjp(*(given[n] for n in ("query", "key", "value")), **options)
        gradients = pullback(bench.array(cotangent, "float32"))
        d_strength, d_kept = gradients["score_mod"]
        # of the sums that the mod holds: those from each position on, without what stands behind them
        d_gates = np.flip(np.cumsum(np.flip(bench.numpy(d_kept)[..., :-1], -1), -1), -1)
        gradients |= {"gates": bench.array(d_gates, "float32"), "strength": d_strength}
    true = formula_gradients(arrays, cotangent)
    steps = np.log(1.0 + (np.arange(N) + 1) // EVERY)[:, None]
    terms = (
        true["query"] * Q * steps / (1 + STRENGTH * steps)
    )  # whose sum, in which they cancel, is that of the strength
    sizes = {name: np.abs(x).max() for name, x in true.items()} | {"strength": np.abs(terms).sum()}
    for name, size in sizes.items():
        # sums of at most B H N N numbers, each of some roundings
        assert np.abs(bench.numpy(gradients[name]) - true[name]).max() <= 256 * 2.0**-24 * size, name


def formula_gradients(arrays: Any, cotangent: Any) -> dict[str, Any]:
    leaves = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
    q, k, v, gates, strength = leaves.values()
    i, j, m = np.ogrid[:N, :N, :N]
    after = torch.tensor((j < m) & (m <= i), dtype=torch.float64)  # (i, j, l): whether gate l lies between
    steps = torch.tensor(np.log(1.0 + (np.arange(N) + 1) // EVERY))[:, None]
    s = (q * (1 + strength * steps)) @ k.mT / D**0.5 + torch.einsum("...l,ijl->...ij", gates, after)
    w = s.masked_fill(~torch.tensor(CAUSAL), -torch.inf).softmax(-1)
    ((w @ v) * torch.tensor(cotangent)).sum().backward()
    return {name: x.grad.numpy() for name, x in leaves.items()}


@everywhere
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_decoding_needs_the_gates_of_all_tokens_and_gives_the_last_rows(bench: Bench, way: Any) -> None:
    whole = Spec(Q * sharper(range(N)), K, V, shift=between(GATES), allowed=CAUSAL)
    late = Spec(whole.q[:, :, 5:], K, V, shift=between(GATES)[:, :, 5:], allowed=CAUSAL[:, :, 5:])
    judged = truth(late)["out"]
    places = {"query_positions": bench.array(np.array([5, 6])), "key_positions": bench.array(np.arange(N))}

    def both(a: Any) -> mods.Mod:
        return mods.compose(mods.temperature(STRENGTH, EVERY), mods.forgetting(a["gates"]))

    for options in ({"query_offset": "end"}, places):
        out = found(
            bench, lambda a, o=options: attend(a, both(a), way, **o), q=Q[:, :, 5:], k=K, v=V, gates=GATES
        )
        assert eta(out, judged, "float32") <= ACCEPTANCE


def test_where_queries_stand_is_not_guessed() -> None:
    for mod in (mods.temperature(STRENGTH, EVERY), mods.forgetting(GATES)):
        with pytest.raises(ValueError, match="query_offset=0 aligns"):
            attention(Q[:, :, 5:], K, V, score_mod=mod)


@everywhere
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_score_that_no_gate_reaches_is_nan_unless_it_is_hidden(bench: Bench, way: Any) -> None:
    arrays = {"q": Q, "k": K, "v": V, "gates": GATES}
    known, out = (
        found(bench, lambda a, n=n: attend(a, mods.forgetting(a["gates"][..., :n]), way), **arrays)
        for n in (N, 5)
    )
    assert np.isnan(out[:, :, 5:]).all()
    assert (out[:, :, :5] == known[:, :, :5]).all()  # keys 5 and 6 are hidden from them


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_empty_slot_has_no_gate_and_needs_none(way: Any) -> None:
    there = {"key_positions": np.array([0, 1, 2, -1, -(2**20), 3, 4]), "query_positions": np.arange(5)}
    arrays = {"q": Q[:, :, :5], "k": K, "v": V}
    assert np.isfinite(attend(arrays, mods.forgetting(GATES[..., :5]), way, **there)).all()


def test_the_factor_is_that_of_the_models_to_a_rounding() -> None:
    from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

    at = np.array([0, 1, 8190, 8191, 8192, 16383, 16384, 10**6])
    theirs = get_llama_4_attn_scale(torch.tensor(at)[None], 0.1, 8192)[0, 0, :, 0].double().numpy()
    ours = mods.temperature(0.1, 8192, first=0)(np.ones(8), None, None, at, None)  # type: ignore[arg-type]
    assert np.abs(ours - theirs).max() <= 4 * 2.0**-24 * ours.max()
    # Llama4TextAttention.forward, line by line
    scale = torch.log1p(torch.floor((torch.tensor(at).float() + 1.0) / 8192)) * 0.1 + 1.0
    ours = mods.temperature(0.1, 8192)(np.ones(8), None, None, at, None)  # type: ignore[arg-type]
    assert np.abs(ours - scale.double().numpy()).max() <= 4 * 2.0**-24 * ours.max()
    assert (ours[3], ours[2]) == (1 + 0.1 * np.log(2.0), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_they_are_part_of_the_fused_kernel(platform: str) -> None:
    tile = {"tpu": (4, 5), "gpu": (16, 16)}[platform]
    given = [jnp.asarray(x, jnp.float32) for x in (Q, K, V, GATES, STRENGTH)]
    said: list[str] = []

    def loss(way: Any, q: Any, k: Any, v: Any, gates: Any, strength: Any) -> Any:
        mod = mods.compose(mods.temperature(strength, EVERY), mods.forgetting(gates))
        out, aux = attention(
            q, k, v, score_mod=mod, is_causal=True, implementation=way, return_aux=AuxRequest(lse=True)
        )
        said.append(aux.implementation)
        return jnp.sum(out * out)

    found, true = (
        jax.jit(jax.value_and_grad(loss, argnums=(1, 2, 3, 4, 5)), static_argnums=0)(way, *given)
        for way in (Fused(*tile, platform=platform, interpret=True), "reference")
    )
    assert said == ["fused", "reference"]
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True):
        assert np.abs(x - y).max() <= 256 * 2.0**-24 * np.abs(y).max()


def test_few_rows_of_grouped_heads_are_folded_unless_each_head_has_keys_of_its_own() -> None:
    """Otherwise the heads that read one kv head are rows of one tile of the kernel."""
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (Q, K[:, :2], V[:, :2]))
    judged = truth(Spec(Q, K[:, :2], V[:, :2], shift=between(GATES), allowed=CAUSAL))["out"]
    mod = mods.compose(mods.forgetting(jnp.asarray(GATES, jnp.float32)))
    fused = Fused(platform="tpu", interpret=True)
    out = attention(q, k, v, score_mod=mod, is_causal=True, implementation=fused)
    assert eta(np.asarray(out), judged, "float32") <= ACCEPTANCE


@pytest.mark.parametrize("each", [True, False], ids=["per item", "for all"])
def test_they_run_unchanged_in_flex_attention(each: bool) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    gates = GATES if each else GATES[0]
    mod = mods.compose(mods.temperature(STRENGTH, EVERY), mods.forgetting(torch.tensor(gates)))
    signed = between(gates) - np.swapaxes(between(gates), -1, -2)  # nothing is hidden here
    judged = truth(Spec(Q * sharper(range(N)), K, V, shift=signed if each else signed[None]))["out"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather be compiled
        out = flex_attention(*map(torch.tensor, (Q, K, V)), score_mod=mod)
    assert eta(out.numpy(), judged, "float64") <= ACCEPTANCE


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: mods.forgetting(-1.0), TypeError, "polyattn.mods.forgetting: expected log_forget to be an array of an array API library (NumPy, JAX, PyTorch, ...), of shape (Hq, N) or (B, Hq, N), got float; convert it, for example with numpy.asarray"),
        (lambda: mods.forgetting(np.zeros(3)), ValueError, "polyattn.mods.forgetting: expected log_forget of shape (Hq, N) or (B, Hq, N), got (3,); give log f of every head and position"),
        (lambda: mods.forgetting(np.zeros((2, 3), int)), TypeError, "polyattn.mods.forgetting: expected log_forget of a real floating dtype, got int64; cast it"),
        (lambda: attention(Q, K, V, score_mod=mods.forgetting(GATES[:, :3])), ValueError, "polyattn.attention: expected score_mod to have parameters for 4 heads, got 3; give one slope or column per head, and per batch item only for all of them"),
        (lambda: mods.temperature(0.1, 0), ValueError, "polyattn.mods.temperature: expected every >= 1, got 0; pass a larger number"),
        (lambda: mods.temperature(0.1, 8, first=2), ValueError, "polyattn.mods.temperature: expected first <= 1, got 2; pass a smaller number"),
        (lambda: mods.temperature("hot", 8), TypeError, "polyattn.mods.temperature: expected strength to be a Python number, got 'hot'; pass a Python float"),
        (lambda: mods.temperature(np.ones(4), 8), ValueError, "polyattn.mods.temperature: expected strength to be a number or a 0-d array, got shape (4,); take one number"),
    ],
)  # fmt: skip
def test_wrong_modifications_are_refused_with_a_sentence(make: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("items", [1, 2])
def test_sums_by_index_are_those_of_a_loop(library: str, items: int) -> None:
    bench, rng = bench_of(library), np.random.default_rng(1)
    x, index = rng.integers(-9, 9, size=(2, 3, 20)), rng.integers(-2, 8, size=(items, 20)).astype(np.int32)
    expected = np.zeros((2, 3, 6))
    for b, h, i in np.ndindex(x.shape):
        if 0 <= (place := index[b % items, i]) < 6:
            expected[b, h, place] += x[b, h, i]
    array = bench.array(x.astype(float), "float32")
    found = backend_of(array).summed_at(array, bench.array(index), 6)
    assert (bench.numpy(found) == expected).all()  # of small integers, so exact


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_gradient_of_a_tile_does_not_grow_with_all_positions(library: str) -> None:
    """It was a product of a tile with one row for each position: 64 x 2**16 numbers."""
    bench, n, count = bench_of(library), 64, 2**16
    kept = bench.array(np.zeros((1, count), np.float32), "float32")
    q, k, v = (bench.array(np.zeros((1, 1, n, 1), np.float32), "float32") for _ in range(3))
    mod = mods.forgetting(kept)
    at = pose("test", q, k, v, score_mod=mod).positions()
    sizes: list[int] = []
    backend = backend_of(q)
    product = backend.matmul
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(backend), "matmul", lambda self, a, b: sizes.append(math.prod(b.shape)) or product(a, b)
        )
        scores = bench.array(np.zeros((1, 1, n, n)), "float32")
        _, (gradient,) = mod.derivative(scores, at, scores + 1.0)
    assert gradient.shape == (1, count + 1)
    assert max(sizes) == 1  # of heads
