"""MoBA and native sparse attention as layers: what the table of layers does not ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch
from shared.running import bench_of, decoded, drawn, mapped, normal

from polyattn import AuxRequest, layers
from polyattn.caches import CircularCache, PagedCache
from polyattn.calls import shown
from polyattn.layers import MixtureOfBlockAttention, NativeSparseAttention
from polyattn.rotary import Rotary
from polyattn.selection import moba_attention, nsa_attention
from polyattn.truth.rounding import noise

N = 21
X = normal(2, N, 8)
GROUPED: dict[str, Any] = {"num_kv_heads": 2, "rotary": Rotary(), "qk_norm": layers.RMSNorm(2, epsilon=1e-6)}
MOBA = MixtureOfBlockAttention(8, 4, block_size=3, count=2, output_gate="head", **GROUPED)
NSA = NativeSparseAttention(8, 4, block_size=3, count=4, window_size=4, **GROUPED)
each = pytest.mark.parametrize("layer", [MOBA, NSA], ids=lambda layer: type(layer).__name__)


def room(layer: Any, params: Any, dtype: str = "float64") -> float:
    """4 times the rounding of the layer itself."""
    found = 4 * noise(lambda number: layer(mapped(number, params), number(X)))
    return found * (2.0**-29 if dtype == "float64" else 1.0)


@each
@pytest.mark.parametrize("pieces", [(1,) * N, (3,) * 7, (17, 1, 3)], ids=["1", "3", "17"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_decoding_in_pieces_gives_the_rows_of_the_whole(
    library: str, pieces: tuple[int, ...], layer: Any
) -> None:
    bench, params = bench_of(library), drawn(layer)
    given, x = mapped(lambda w: bench.array(w, "float64"), params), bench.array(X, "float64")
    rows, _ = decoded(layer.run, given, x, layer.empty_cache(2, N + 4, like=x), pieces)
    whole = layer(params, X)
    assert np.abs(np.concatenate([bench.numpy(r) for r in rows], 1) - whole).max() <= room(layer, params)


@each
def test_one_compiled_step_serves_every_position(layer: Any) -> None:
    params, programs = drawn(layer), []

    @jax.jit
    def step(params: Any, x: Any, *, cache: Any) -> Any:
        programs.append(1)
        return layer.run(params, x, cache=cache)

    x = jnp.float32(X)
    cache = layer.empty_cache(2, N, like=x)._replace(length=jnp.asarray(0))
    rows, _ = decoded(step, mapped(jnp.float32, params), x, cache, (1,) * N)
    assert np.abs(np.concatenate(rows, 1) - layer(params, X)).max() <= room(layer, params, "float32")
    assert len(programs) == 1


@each
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Dynamo, of array_api_compat
def test_it_compiles_whole(layer: Any) -> None:
    torch.compiler.reset()
    params = mapped(torch.tensor, drawn(layer))
    compiled = torch.compile(lambda p, x: layer(p, x), fullgraph=True, backend="eager")
    out = compiled(params, torch.tensor(X))
    assert np.abs(out.numpy() - layer(drawn(layer), X)).max() <= room(layer, drawn(layer))


def test_moba_of_all_blocks_is_multi_head_attention_with_the_same_params() -> None:
    whole = layers.MultiHeadAttention(8, 4, is_causal=True, output_gate="head", qkv_bias=False, out_bias=False, **GROUPED)  # fmt: skip
    every = MixtureOfBlockAttention(8, 4, block_size=3, count=7, output_gate="head", **GROUPED)
    assert every.shapes() == whole.shapes()
    params = drawn(whole)
    assert np.abs(every(params, X) - whole(params, X)).max() <= room(whole, params)
    assert np.abs(MOBA(params, X) - whole(params, X)).max() > 0.01


def test_they_are_the_functions_of_the_room_of_selection_between_projections() -> None:
    params = drawn(NSA)
    q, k, v = NSA.project(params, X, X)
    q, k = (Rotary()(x, np.arange(N)) for x in (q, k))

    def blocks(p: Any, x: Any) -> Any:
        hidden = np.einsum("bhmnd,ndf->bhmf", x.reshape(2, 2, 7, 3, 2) + p["position"], p["w_in"])
        return hidden / (1 + np.exp(-hidden)) @ p["w_out"]

    made = (blocks(params["compress_k"], k), blocks(params["compress_v"], v))
    gates = 1 / (1 + np.exp(-np.einsum("ble,ehg->bhlg", X, params["w_b"])))
    heads = nsa_attention(q, k, v, *made, gates, block_size=3, count=4, window=4)
    true = np.einsum("bhld,hde->ble", heads, params["w_o"])
    assert np.abs(NSA(params, X) - true).max() <= room(NSA, params)
    plain = MixtureOfBlockAttention(8, 4, block_size=3, count=2, scale=0.5)
    params = drawn(plain)
    heads = moba_attention(*plain.project(params, X, X), block_size=3, count=2, scale=0.5)
    true = np.einsum("bhld,hde->ble", heads, params["w_o"])
    assert np.abs(plain(params, X) - true).max() <= room(plain, params)


def test_an_empty_slot_changes_no_bit() -> None:
    for layer in (MOBA, NSA):
        params = drawn(layer)
        cache = layer.run(params, X[:, :5], cache=layer.empty_cache(2, 12, like=X)).cache
        dirty = cache._replace(key=cache.key.copy(), value=cache.value.copy())
        dirty.key[:, :, 5:], dirty.value[:, :, 5:] = np.nan, np.inf
        with np.errstate(invalid="ignore", over="ignore"):
            outs = [layer.run(params, X[:, 5:7], cache=c).out for c in (cache, dirty)]
        assert np.array_equal(*outs)


def test_a_block_takes_them_as_its_attention() -> None:
    norm, mlp = layers.RMSNorm(8, epsilon=1e-6), layers.MLP(8, 12, activation="swiglu")
    both = tuple(layers.EncoderBlock(part, mlp, norm, norm_first=True) for part in (MOBA, NSA))
    stack = layers.Encoder(both, 2)
    params = drawn(stack)
    found = stack.run(params, X, cache=stack.empty_cache(2, N, like=X), dropout_seed=1, is_causal=True)
    assert np.abs(found.out - stack(params, X)).max() <= room(stack, params)


ADVICE = "blocks are of neighbouring slots, so take a KVCache"
PAGES = PagedCache.empty(2, 2, 2, pages=9, page_size=4, pages_per_sequence=3, like=X)
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "block_size": (lambda: MixtureOfBlockAttention(8, 4, block_size=0, count=2), "MixtureOfBlockAttention: expected block_size to be a positive int, got 0; give a size of at least 1"),
    "count": (lambda: NativeSparseAttention(8, 4, block_size=2, count=0, window_size=2), "NativeSparseAttention: expected count to be a positive int, got 0; give a size of at least 1"),
    "window_size": (lambda: NativeSparseAttention(8, 4, block_size=2, count=1, window_size=0), "NativeSparseAttention: expected window_size to be a positive int, got 0; give a size of at least 1"),
    "local": (lambda: NativeSparseAttention(8, 4, block_size=2, count=1, window_size=2, local=-1), "NativeSparseAttention: expected local >= 0, got -1; pass a larger number"),
    "not causal": (lambda: MOBA(drawn(MOBA), X, is_causal=False), "MixtureOfBlockAttention: expected is_causal=True, got False; blocks are selected among earlier ones, take MultiHeadAttention"),
    "aux": (lambda: NSA.run(drawn(NSA), X, return_aux=AuxRequest(lse=True)), f"NativeSparseAttention: expected no return_aux, got {shown(AuxRequest(lse=True))}; every row has keys of its own, and no matrix of weights is made"),
    "a ring": (lambda: MOBA.run(drawn(MOBA), X, cache=CircularCache.empty(2, 2, 4, 2, like=X)), f"MixtureOfBlockAttention: expected a cache whose slots are in the order of the tokens and may be read as one array, got a CircularCache; {ADVICE}"),
    "pages": (lambda: NSA.run(drawn(NSA), X, cache=PAGES), f"NativeSparseAttention: expected a cache whose slots are in the order of the tokens and may be read as one array, got a PagedCache; {ADVICE}"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused_with_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == f"polyattn.layers.{sentence}"
