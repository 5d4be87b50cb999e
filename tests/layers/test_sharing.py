"""Stacks whose blocks share keys and values: the formula, with every cache, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from shared import formulas, mechanisms
from shared.libraries import jax, jnp
from shared.running import (
    LIBRARIES,
    Floats,
    apart,
    applied,
    bench_of,
    decoded,
    drawn,
    mapped,
    normal,
    torch_gradients,
)

from polyattn import AuxRequest, layers, masks
from polyattn.caches import CircularCache, EvictingCache, KVCache, PagedCache, QuantizedCache
from polyattn.generation import generate
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise
from polyattn.weights import from_format, to_format

B, N, W, EPSILON = 2, 21, 4, 1e-6
PIECES = [(1,) * N, (3,) * 7, (17, 1, 3)]
IDS = ["1", "3", "17"]
NORM, MLP = layers.RMSNorm(8, epsilon=EPSILON), layers.MLP(8, 12, activation="relu")


def block(**more: Any) -> layers.EncoderBlock:
    norms = {"qk_norm": layers.RMSNorm(2, epsilon=EPSILON), "v_norm": layers.RMSNorm(2, epsilon=EPSILON)}
    options = {"num_kv_heads": 2, "is_causal": True, "rotary": Rotary(), "qkv_bias": False, **norms, **more}
    return layers.EncoderBlock(layers.MultiHeadAttention(8, 4, **options), MLP, NORM, norm_first=True)


NEAR, FAR = block(mask=masks.sliding_window(W)), block()
SOURCES = (None, None, 0, 1, 1)
LAYER = layers.Encoder((NEAR, FAR, NEAR, FAR, NEAR), 5, final_norm=NORM, kv_from=SOURCES)
PARAMS, X = drawn(LAYER), normal(B, N, 8)


def formula(p: Any, x: Any, kept: Callable[[Any], Any] = lambda x: x) -> Any:
    """Head by head; kept: what becomes of a key or value (..., L, D) before it is attended to."""

    def normed(params: Any, x: Any) -> Any:
        return formulas.rms_norm(params["scale"], x, EPSILON)

    left: list[Any] = []
    for i, source in enumerate(SOURCES):
        own = p[f"block_{i}"]
        w, given = own["attention"], normed(own["norm_1"], x)
        if source is None:
            keys = [mechanisms.turned_halves(normed(w["k_norm"], given @ w["w_k"][:, h])) for h in range(2)]
            values = [normed(w["v_norm"], given @ w["w_v"][:, h]) for h in range(2)]
            left.append([[kept(x) for x in some] for some in (keys, values)])
        else:
            left.append(left[source])
        seen = np.tri(N) if LAYER.blocks[i].window is None else np.tri(N) - np.tri(N, k=-W)
        for h in range(4):
            q = mechanisms.turned_halves(normed(w["q_norm"], given @ w["w_q"][:, h]))
            k, v = (some[h // 2] for some in left[i])
            x = x + formulas.attend(q, k, v, allowed=seen)[0] @ w["w_o"][h]
        x = x + w["b_o"]
        x = x + formulas.mlp(own["mlp"], normed(own["norm_2"], x))
    return normed(p["norm"], x)


@cache
def true() -> Floats:
    out: Floats = formula(PARAMS, X)
    return out


@cache
def room(dtype: str = "float32") -> float:
    return (
        4 * noise(lambda number: formula(mapped(number, PARAMS), number(X))) * UNIT_ROUNDOFF[dtype] / 2**-24
    )


def test_who_shares_has_neither_projections_nor_norms_of_keys_and_values() -> None:
    shapes = LAYER.shapes()
    assert set(shapes["block_0"]["attention"]) - set(shapes["block_2"]["attention"]) == {"w_k", "w_v", "k_norm", "v_norm"}  # fmt: skip
    assert set(shapes["block_2"]["attention"]) == {"w_q", "q_norm", "w_o", "b_o"}
    assert LAYER.sources == SOURCES
    assert LAYER.blocks[:2] == (NEAR, FAR)
    assert replace(LAYER, kv_from=None).blocks[2] == NEAR


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_stack_that_shares_is_its_formula(library: str) -> None:
    assert np.abs(applied(library, LAYER, PARAMS, X) - true()).max() <= room() < 1e-3
    if library in ("numpy", "torch"):
        precise = applied(library, LAYER, PARAMS, X, dtype="float64")
        assert np.abs(precise - true()).max() <= room("float64")


def test_packed_documents_share_their_keys_and_values_too() -> None:
    """Each sees itself alone, at positions that begin anew."""
    out = LAYER(PARAMS, X, cu_seqlens=np.array([0, 4, N]))
    for part in (slice(0, 4), slice(4, N)):
        assert np.abs(out[:, part] - LAYER(PARAMS, X[:, part])).max() <= room("float64")


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_gradients_are_those_of_the_formula(library: str) -> None:
    """Those of a key and value that three blocks attend to as well."""
    exact, rough = (torch_gradients(formula, PARAMS, X, dtype) for dtype in ("float64", "float32"))
    if library == "torch":
        found = torch_gradients(LAYER, PARAMS, X, "float32")
    else:
        slope = jax.jit(jax.grad(lambda p, x: (LAYER(p, x) * x).sum(), argnums=(0, 1)))
        given = mapped(lambda w: jnp.asarray(w, jnp.float32), PARAMS)
        grads, last = slope(given, jnp.asarray(X, jnp.float32))
        in_order: list[Floats] = []
        mapped(lambda w: in_order.append(np.asarray(w, np.float64)), nested_as(PARAMS, grads))
        found = [*in_order, np.asarray(last, np.float64)]
    for ours, theirs, right in zip(found, rough, exact, strict=True):
        assert np.abs(right).max() > 0
        error = max(apart([theirs], [right]), UNIT_ROUNDOFF["float32"] * float(np.abs(right).max()))
        assert apart([ours], [right]) <= 4 * error


def nested_as(order: Any, tree: Any) -> Any:
    """A tree with its names in the order of another one."""
    return {k: nested_as(order[k], tree[k]) if isinstance(order[k], dict) else tree[k] for k in order}


# caches


def ring(block: layers.EncoderBlock, x: Any) -> Any:
    return (
        CircularCache.empty(B, 2, W, 2, capacity=W + 2, like=x)
        if block.window
        else KVCache.empty(B, 2, N, 2, like=x)
    )


KINDS: dict[str, Callable[[layers.EncoderBlock, Any], Any]] = {
    "linear": lambda block, x: KVCache.empty(B, 2, N + 3, 2, like=x),
    "circular": ring,
    "paged": lambda block, x: PagedCache.empty(B, 2, 2, pages=13, page_size=4, pages_per_sequence=6, like=x),
    "evicting": lambda block, x: EvictingCache.empty(B, 2, N + 3, 2, like=x),
    "quantised": lambda block, x: QuantizedCache.empty(B, 2, N + 3, 2, like=x),
}


def in_bytes(x: Any) -> Any:
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(x / scale) * scale


@pytest.mark.parametrize("pieces", PIECES, ids=IDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_decoding_in_pieces_gives_the_rows_with_every_cache(
    library: str, kind: str, pieces: tuple[int, ...]
) -> None:
    bench = bench_of(library)
    given, x = mapped(lambda w: bench.array(w, "float64"), PARAMS), bench.array(X, "float64")
    pairs = zip(LAYER.blocks, SOURCES, strict=True)
    caches = tuple(KINDS[kind](block, x) if source is None else None for block, source in pairs)
    rows, caches = decoded(LAYER.run, given, x, caches, pieces)
    expected = formula(PARAMS, X, in_bytes) if kind == "quantised" else true()
    assert np.abs(np.concatenate([bench.numpy(r) for r in rows], 1) - expected).max() <= room("float64")
    assert [cache is None for cache in caches] == [False, False, True, True, True]


@pytest.mark.parametrize("circular", [False, True])
def test_one_compiled_step_of_jax_serves_every_position(circular: bool) -> None:
    given, x = (mapped(jnp.float32, PARAMS), jnp.float32(X))
    programs: list[int] = []

    @jax.jit
    def step(params: Any, x: Any, *, cache: Any) -> Any:
        programs.append(1)
        return LAYER.run(params, x, cache=cache)

    empty = LAYER.empty_cache(B, N, like=x, circular=circular)
    caches = tuple(c if c is None else c._replace(length=jnp.asarray(0)) for c in empty)
    rows, _ = decoded(step, given, x, caches, (1,) * N)
    assert np.abs(np.concatenate(rows, 1) - true()).max() <= room()
    assert len(programs) == 1


def size(caches: Any) -> int:
    return sum(c.key.size + c.value.size for c in caches if c is not None)


def test_what_shares_keeps_nothing() -> None:
    alone, shared = (replace(LAYER, kv_from=kv).empty_cache(B, N, like=X) for kv in (None, SOURCES))
    assert size(shared) * 5 == size(alone) * 2
    assert shared[2:] == (None, None, None)


def test_aux_of_a_block_that_shares_has_its_own_weights() -> None:
    aux = LAYER.run(PARAMS, X, return_aux=AuxRequest(weights=True)).aux
    assert [a.weights.shape for a in aux] == [(B, 4, N, N)] * 5
    assert np.abs(aux[2].weights - aux[0].weights).max() > 0.01


@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_a_language_model_that_shares_goes_on_with_a_text(library: str) -> None:
    model = layers.LanguageModel(layers.Embedding(40, 8), LAYER)
    bench, params, text = bench_of(library), drawn(model), [3, 1, 4, 1, 5]
    expected = list(text)
    for _ in range(4):
        expected.append(int(model(params, np.asarray(expected))[-1].argmax()))
    given = mapped(lambda w: bench.array(w, "float32"), params)
    assert [t.number for t in generate(model, given, text, length=4, piece=3)] == expected[5:]


def test_formats_leave_out_what_is_shared_or_refuse() -> None:
    layer = layers.MultiHeadAttention(8, 4, qkv_bias=False, out_bias=False, shares_kv=True)
    params = drawn(layer)
    arrays = to_format(layer, params, "llama")
    assert sorted(arrays) == ["o_proj.weight", "q_proj.weight"]
    again = from_format(layer, arrays, "llama")
    assert all(np.array_equal(again[name], params[name]) for name in params)
    for name in ("torch", "phi3"):  # which have one matrix for q, k and v
        with pytest.raises(ValueError, match=f"expected a layer that '{name}' has"):
            to_format(layer, params, name)


# what is refused


def stack(*kv_from: Any, blocks: Any = (NEAR, FAR)) -> Callable[[], Any]:
    return lambda: layers.Encoder(blocks, 4, kv_from=kv_from)


OTHER = {"rotary": Rotary(base=5.0)}
READER = layers.MultiHeadAttention(8, 4, num_kv_heads=2, is_causal=True, shares_kv=True)
SHORT = KVCache.empty(B, 2, 30, 2, like=X)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "too few entries": (stack(None, None, 0), "Encoder: expected kv_from to be a tuple of 4 entries, one for each block, got (None, None, 0); None stands for keys and values of its own, a number for those of the block of that number"),
    "a later one": (stack(None, 2, None, None), "Encoder: expected kv_from[1] to be None or the number of an earlier block, got 2; a block shares the keys and values of one that came before it"),
    "itself": (stack(None, None, 2, None), "Encoder: expected kv_from[2] to be None or the number of an earlier block, got 2; a block shares the keys and values of one that came before it"),
    "a negative one": (stack(None, None, None, -1), "Encoder: expected kv_from[3] to be None or the number of an earlier block, got -1; a block shares the keys and values of one that came before it"),
    "one that shares": (stack(None, None, 0, 2), "Encoder: expected kv_from[3] to be a block with keys and values of its own, got 2, which shares those of 0; name that one"),
    "a narrower window": (stack(None, None, None, 0), "Encoder: expected block 3 to look back no further than block 0, whose keys and values it shares and whose cache may keep no more, got a window of None beside one of 4; make them alike"),
    "other kv heads": (stack(None, None, 0, 1, blocks=(NEAR, FAR, NEAR, block(num_kv_heads=4))), "Encoder: expected the kv_heads of block 1 in block 3, which shares its keys and values, got 4 beside 2; make them alike"),
    "another width": (stack(None, None, 0, 1, blocks=(NEAR, FAR, NEAR, block(head_dim=4, qk_norm=None, v_norm=None))), "Encoder: expected the width of block 1 in block 3, which shares its keys and values, got 4 beside 2; make them alike"),
    "another rotary": (stack(None, None, 0, 1, blocks=(NEAR, FAR, NEAR, block(**OTHER))), f"Encoder: expected the rotary of block 1 in block 3, which shares its keys and values, got {Rotary(base=5.0)} beside {Rotary()}; make them alike"),
    "nobody named": (lambda: layers.Encoder(LAYER.blocks[2], 1), "Encoder: expected kv_from to say whose keys and values block 0 shares, which has shares_kv=True, got None; write the number of an earlier block"),
    "a cache for what shares": (lambda: LAYER.run(PARAMS, X, cache=(SHORT,) * 5), "Encoder: expected None as the cache of block 2, which shares the keys and values of block 0, got a KVCache; make them with empty_cache"),
    "nothing to share": (lambda: READER(drawn(READER), X), "MultiHeadAttention: expected with shares_kv the cache that the layer left whose keys and values these are, got None; write cache=layer.run(params, x, cache=...).cache, or take an Encoder with kv_from"),
    "too early": (lambda: READER.run(drawn(READER), X, cache=SHORT), "MultiHeadAttention: expected with shares_kv a cache that has the 21 tokens of x already, got one of 0; run the layer first that appends to it"),
    "norms of what is not there": (lambda: layers.MultiHeadAttention(8, 2, shares_kv=True, tied_kv=True), "MultiHeadAttention: expected no tied_kv, no v_norm and one qk_norm, that of q, with shares_kv, got another; keys and values come as the layer left them that has them"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused_with_a_sentence(name: str) -> None:
    call, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == f"polyattn.layers.{sentence}"


def test_layers_of_another_kind_share_nothing() -> None:
    other = replace(FAR, attention=layers.ForgettingAttention(8, 4))
    with pytest.raises(TypeError) as caught:
        layers.Encoder((FAR, other), 2, kv_from=(None, 0))
    assert str(caught.value) == "polyattn.layers.Encoder: expected MultiHeadAttention in blocks 0 and 1, which share keys and values, got ForgettingAttention; let each of them have its own"  # fmt: skip
    with pytest.raises(
        TypeError, match="expected a layer with keys and values of its own, got one that shares"
    ):
        READER.empty_cache(1, 2, like=X)


def test_a_loop_of_ones_own_shares_through_the_cache() -> None:
    """As YOCO has it: one layer makes keys and values, the others read its cache."""
    lower = replace(READER, shares_kv=False)
    p, q = drawn(lower), drawn(READER, seed=1)
    _, left, _ = lower.run(p, X, cache=lower.empty_cache(B, N, like=X))
    out, same, _ = READER.run(q, X, cache=left)
    assert same is left
    whole = {**q, **{name: p[name] for name in ("w_k", "b_k", "w_v", "b_v")}}
    right = 4 * noise(lambda number: lower(mapped(number, whole), number(X))) * 2.0**-29
    assert np.abs(out - lower(whole, X)).max() <= right
