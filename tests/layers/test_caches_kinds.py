"""What each cache does beyond decoding: slots, pages that are shared, bytes, forgetting, and what does not fit."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch
from shared.running import Floats, bench_of, normal

from polyattn import AuxRequest, attention, layers, masks
from polyattn.caches import (
    CircularCache,
    EvictingCache,
    KVCache,
    LatentCache,
    PagedCache,
    QuantizedCache,
    RecurrentCache,
    attention_mass,
    cached_attention,
    heaviest,
)
from polyattn.linear import linear_attention
from polyattn.truth import UNIT_ROUNDOFF

ZERO = np.zeros((), np.float32)


def tokens(n: int, batch: int = 2, seed: int = 0) -> tuple[Floats, Floats]:
    """Keys (batch, 2, n, 4) and values (batch, 2, n, 3)."""
    return tuple(normal(batch, 2, n, w, seed=seed).astype(np.float32) for w in (4, 3))  # type: ignore[return-value]


def paged(batch: int = 2, pages: int = 8, per_sequence: int = 4, like: Any = ZERO) -> PagedCache:
    return PagedCache.empty(
        batch, 2, 4, 3, pages=pages, page_size=2, pages_per_sequence=per_sequence, like=like
    )


# circular


def test_a_token_stands_in_the_slot_of_its_position_modulo_the_capacity() -> None:
    cache = CircularCache.empty(2, 2, 3, 4, 3, capacity=5, like=ZERO)
    assert cache.positions.tolist() == [-1] * 5
    key, value = tokens(12)
    for i in range(12):
        cache = cache.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
        there = list(range(max(i - 4, 0), i + 1))
        at = cache.positions.tolist()
        assert sorted(p for p in at if p >= 0) == there
        assert all(at[p % 5] == p and (cache.key[:, :, p % 5] == key[:, :, p]).all() for p in there)


def test_a_longer_piece_leaves_the_window_before_it_and_itself_for_one_step() -> None:
    cache = CircularCache.empty(2, 2, 3, 4, 3, capacity=5, like=ZERO)
    key, value = tokens(14)
    cache = cache.append(key[:, :, :3], value[:, :, :3])
    assert cache.key.shape[-2] == 5  # capacity - window + 1 are written in place
    cache = cache.append(key[:, :, 3:12], value[:, :, 3:12])
    assert cache.positions.tolist() == list(range(1, 12))
    assert np.array_equal(cache.key, key[:, :, 1:12])
    cache = cache.append(key[:, :, 12:13], value[:, :, 12:13])
    assert cache.positions.tolist() == [10, 11, 12, 8, 9]
    assert np.array_equal(cache.value, value[:, :, [10, 11, 12, 8, 9]])


# paged


def whole(key: Floats, value: Floats, q: Floats) -> Floats:
    return attention(q, key, value, is_causal=True, query_offset="end")


def test_items_that_are_forked_share_full_pages_and_go_their_own_ways() -> None:
    (key, value), (more_k, more_v) = tokens(5, batch=1), tokens(3, batch=3, seed=1)
    cache = paged(batch=1).append(key, value).fork([0, 0, 0])
    assert cache.table.tolist() == [[0, 1, 2, -1], [0, 1, 3, -1], [0, 1, 4, -1]]
    assert int(cache.free.sum()) == 3
    cache = cache.append(more_k, more_v)
    q = normal(3, 4, 2, 4, seed=2).astype(np.float32)
    out = cached_attention(q, cache, is_causal=True)
    for b in range(3):
        k, v = (np.concatenate([old[:1], new[b : b + 1]], 2) for old, new in ((key, more_k), (value, more_v)))
        assert np.array_equal(cache.key[b : b + 1, :, :8], k)
        assert np.abs(out[b : b + 1] - whole(k, v, q[b : b + 1])).max() <= 2.0**-24 * 64 * np.abs(v).max()


def test_what_was_forked_does_not_write_into_its_parent_and_both_go_on() -> None:
    key, value = tokens(3)
    parent = paged().append(key, value)
    before = [x.copy() for x in parent]
    child = parent.fork(np.asarray([1, 1])).append(*tokens(2, seed=3))
    assert all(np.array_equal(x, y) for x, y in zip(before, parent, strict=True))
    assert np.array_equal(child.key[0, :, :3], key[1])
    assert np.array_equal(child.key[1, :, :3], key[1])


def test_released_pages_are_taken_again_unless_somebody_shares_them() -> None:
    cache = paged().append(*tokens(4)).fork([0, 0, 1])
    cache = cache.release(np.asarray([True, False, True]))
    assert cache.length.tolist() == [0, 4, 0]
    assert cache.free.tolist() == [False, False, *[True] * 6]  # pages 0 and 1 are those of item 1
    cache = cache.append(*tokens(2, batch=3, seed=1))
    assert cache.table.tolist() == [[2, -1, -1, -1], [0, 1, 3, -1], [4, -1, -1, -1]]


def test_the_fold_gathers_no_sequence() -> None:
    """No array of the compiled step is as large as the keys of all sequences."""
    like = jnp.zeros((), jnp.float32)
    cache = PagedCache.empty(4, 2, 16, pages=8, page_size=16, pages_per_sequence=1024, like=like)
    step = jax.jit(lambda cache, q: cache.attend(q, is_causal=True, query_offset=cache.length))
    used = step.lower(cache, jnp.zeros((4, 2, 1, 16))).compile().memory_analysis()
    gathered = 4 * 2 * 16384 * 16 * 4
    assert used.temp_size_in_bytes < gathered / 4
    reads = jax.jit(lambda cache: cache.key * 2).lower(cache).compile().memory_analysis()
    assert reads.output_size_in_bytes >= gathered


def test_pages_run_out_with_a_sentence_and_as_nan_where_a_compiler_traces() -> None:
    full = paged(pages=4).append(*tokens(3))
    with pytest.raises(ValueError) as caught:
        full.append(*tokens(2, seed=1))
    assert str(caught.value) == (
        "polyattn.caches.PagedCache.append: expected at most 0 more pages, got 2; the pool has 4, so make a larger one, "
        "or release items"
    )
    with pytest.raises(
        ValueError, match="expected at most 5 more tokens, got 6; the cache has room for 8 and holds 3"
    ):
        full.append(*tokens(6, seed=1))
    bench = bench_of("jax")
    q, (k, v) = bench.array(normal(2, 2, 1, 4), "float32"), tokens(2, seed=1)

    @jax.jit
    def step(cache: Any, k: Any, v: Any) -> Any:
        cache = cache.append(k, v)
        return cache, cache.attend(q), cache.key

    traced = PagedCache(*(bench.array(x) for x in full))
    for width in (1, 2, 1):
        fits = width == 1 and int(traced.length[0]) == 3
        traced, out, key = step(traced, k[:, :, :width], v[:, :, :width])
        assert np.isnan(np.asarray(out)).all() != fits
        assert np.isnan(np.asarray(key)).any() != fits


@pytest.mark.parametrize("wrong", [8, -1, -5])
def test_a_table_that_names_no_page_is_refused_or_reads_as_nan(wrong: int) -> None:
    bench = bench_of("jax")
    cache = paged().append(*tokens(3))
    table = cache.table.copy()
    table[1, 1] = wrong
    table[0, 3] = 99  # beyond the length nobody looks
    q = normal(2, 2, 1, 4).astype(np.float32)
    broken = cache._replace(table=table)
    for read in (lambda: broken.attend(q), lambda: broken.key):
        with pytest.raises(ValueError, match="expected pages from 0 to 7 in the table below length"):
            read()
    traced = jax.jit(lambda cache, q: cache.attend(q))(PagedCache(*(bench.array(x) for x in broken)), q)
    assert np.isfinite(np.asarray(traced)[0]).all()
    assert np.isnan(np.asarray(traced)[1]).all()


# quantised


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_bytes_are_off_by_half_a_scale(library: str, dtype: str) -> None:
    if (library, dtype) == ("numpy", "bfloat16"):
        pytest.skip("NumPy has no bfloat16")
    bench = bench_of(library)
    x = normal(2, 2, 9, 16, size=3)
    x[0, 0, 0] = 0  # a token of zeros stays one
    given = bench.array(x, dtype)
    x = bench.numpy(given).astype(np.float64)
    cache = QuantizedCache.empty(2, 2, 9, 16, like=given).append(given, given)
    u = UNIT_ROUNDOFF[dtype]
    scale = np.abs(x).max(-1, keepdims=True) / 127 * (1 + u)
    error = np.abs(bench.numpy(cache.key).astype(np.float64) - x)
    assert (error <= scale / 2 + u * np.abs(x) * (1 + 2.0**-7)).all()
    assert error.max() > scale.min() / 8


@pytest.mark.parametrize("size", [0.5, 4.0])
def test_attention_to_bytes_is_as_far_off_as_the_bound_says(size: float) -> None:
    q, k, v = (normal(2, 4, 32, 16, seed=i, size=size) for i in range(3))
    cache = QuantizedCache.empty(2, 4, 32, 16, like=k).append(k, v)
    out = cached_attention(q, cache, is_causal=True)
    true = attention(q, k, v, is_causal=True)
    largest_k, largest_v = (np.abs(x).max() for x in (k, v))
    delta = 0.25 * np.abs(q).sum(-1, keepdims=True) * largest_k / 254
    bound = (np.exp(2 * delta) - 1) * largest_v + largest_v / 254
    error = np.abs(out - true)
    assert (error <= bound).all()
    assert error.max() > 2.0**-12  # and it is not the floating cache


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_is_nan_as_a_whole(poison: float) -> None:
    key, value = tokens(3)
    key[0, 1, 2, 1] = poison
    with np.errstate(invalid="ignore"):
        held = QuantizedCache.empty(2, 2, 3, 4, 3, like=ZERO).append(key, value).key
    assert np.isnan(held[0, 1, 2]).all()
    assert np.isfinite(held[1]).all()


# evicting


def test_the_attention_mass_is_the_sum_of_the_weights_over_the_queries() -> None:
    q, k = normal(2, 4, 9, 4), normal(2, 2, 11, 4, seed=1)
    options: dict[str, Any] = {"mask": masks.sliding_window(5), "query_offset": 3, "sinks": normal(4, seed=2)}
    _, aux = attention(q, k, k, **options, return_aux=AuxRequest(weights=True))
    true = aux.weights.reshape(2, 2, 2, 9, 11).sum((2, 3))
    for library in ("numpy", "strict", "jax", "torch"):
        bench = bench_of(library)
        given = {**options, "sinks": bench.array(options["sinks"], "float32")}
        find = partial(attention_mass, **given)
        found = (jax.jit(find) if library == "jax" else find)(*(bench.array(x, "float32") for x in (q, k)))
        mass = bench.numpy(found)
        assert mass.shape == (2, 2, 11)
        # A weight is off by a few roundings of its score, |score| < 8 here, and there are 18 of them.
        assert np.abs(mass - true).max() <= 2.0**-24 * 18 * 16


def test_a_cache_without_the_keys_that_nobody_looked_at_answers_almost_the_same() -> None:
    """Keys 3 and 7 have all of the mass: the others may go."""
    rng = np.random.default_rng(0)
    key, value = rng.normal(size=(1, 1, 12, 4)) * 0.01, rng.normal(size=(1, 1, 12, 3))
    key[0, 0, [3, 7]] = 30
    q = np.ones((1, 1, 2, 4))
    cache = EvictingCache.empty(1, 1, 13, 4, 3, like=key).append(key, value)
    mass = attention_mass(q, cache.key, key_positions=cache.positions)
    kept = cache.evict(heaviest(mass[:, 0], 2))
    assert sorted(kept.positions[kept.positions >= 0].tolist()) == [3, 7]
    one = np.ones((1, 1, 1, 4)), np.ones((1, 1, 1, 3))
    both = [cached_attention(q[:, :, :1], c.append(*one), is_causal=True) for c in (cache, kept)]
    assert np.abs(both[0] - both[1]).max() < 2.0**-40
    assert kept.append(*one).positions.max() == 12


def test_positions_count_after_an_eviction_as_they_did_before() -> None:
    key, value = tokens(9)
    cache = EvictingCache.empty(2, 2, 9, 4, 3, like=ZERO).append(key, value)
    keep = np.asarray([[1, 1, 0, 0, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1, 0, 1, 1]], bool)
    cache = cache.evict(keep).append(*tokens(2, seed=4))
    all_k, all_v = (np.concatenate([a, b], 2) for a, b in zip(tokens(9), tokens(2, seed=4), strict=True))
    allowed = np.concatenate([keep, np.ones((2, 2), bool)], 1)[:, None, None]
    q = normal(2, 4, 2, 4).astype(np.float32)
    out = cached_attention(q, cache, mask=masks.sliding_window(5))
    window = masks.from_array(allowed) & masks.sliding_window(5)
    true = attention(q, all_k, all_v, mask=window, query_offset=9)
    assert np.abs(out - true).max() <= 2.0**-24 * 64 * np.abs(all_v).max()


def test_more_tokens_than_empty_slots_are_refused_or_read_as_nan() -> None:
    cache = EvictingCache.empty(2, 2, 3, 4, 3, like=ZERO).append(*tokens(2))
    with pytest.raises(
        ValueError, match="expected at most 1 more tokens, got 2; the cache has room for 3 and holds 2"
    ):
        cache.append(*tokens(2))
    bench = bench_of("jax")
    traced = cache.evict(np.asarray([[True] * 3, [False] * 3]))
    held = EvictingCache(*(bench.array(np.asarray(x)) for x in traced))
    found = jax.jit(lambda cache, k, v: cache.append(k, v))(held, *tokens(2))
    assert np.isnan(np.asarray(found.key)[0]).any()
    assert np.isfinite(np.asarray(found.key)[1]).all()


# recurrent


def test_a_recurrent_cache_goes_on_where_it_stopped() -> None:
    q, k, v = (normal(2, 3, 10, 4, seed=i) for i in range(3))
    cache, out = RecurrentCache.empty(2, 3, 4, like=q), []
    for start, stop in ((0, 3), (3, 4), (4, 10)):
        found, state = linear_attention(*(x[:, :, start:stop] for x in (q, k, v)), state=cache.state)
        cache = RecurrentCache(state, cache.tail, cache.length + stop - start)
        out.append(found)
    true, last = linear_attention(q, k, v)
    room = 2.0**-53 * 2**8
    assert np.abs(np.concatenate(out, 2) - true).max() <= room
    assert np.abs(cache.state - last).max() <= room
    assert cache.length == 10
    half = RecurrentCache.empty(1, 2, 4, 3, kernel_size=4, channels=5, like=np.zeros((), np.float16))
    assert (half.state.dtype, half.tail.dtype) == (np.float32, np.float16)
    assert (half.state.shape, half.tail.shape) == ((1, 2, 4, 3), (1, 3, 5))


# one cache, several layers


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_layer_that_shares_the_cache_of_another_reads_it_with_queries_of_its_own(library: str) -> None:
    bench = bench_of(library)
    q, (k, v) = normal(2, 4, 7, 4, seed=5), tokens(7)
    like = bench.array(ZERO, "float32")
    for cache in (
        KVCache.empty(2, 2, 9, 4, 3, like=like),
        CircularCache.empty(2, 2, 7, 4, 3, like=like),
        paged(like=like),
    ):
        out = []
        for at in (slice(0, 4), slice(4, 5), slice(5, 7)):
            cache = cache.append(*(bench.array(x[:, :, at], "float32") for x in (k, v)))
            out.append(
                bench.numpy(cached_attention(bench.array(q[:, :, at], "float32"), cache, is_causal=True))
            )
        true = attention(q, k.astype(float), v.astype(float), is_causal=True)
        assert np.abs(np.concatenate(out, 2) - true).max() <= 2.0**-24 * 64 * np.abs(v).max()


def test_a_layer_draws_its_dropout_beside_a_cache_that_folds_too() -> None:
    layer = layers.MultiHeadAttention(8, 2, is_causal=True, dropout_rate=0.5)
    x = normal(2, 6, 8)
    params = layer.init(0, like=x)
    own = PagedCache.empty(2, 2, 4, pages=8, page_size=2, pages_per_sequence=4, like=x)
    both = [layer.run(params, x, cache=c, dropout_seed=1) for c in (own, layer.empty_cache(2, 8, like=x))]
    assert np.abs(both[0].out - both[1].out).max() <= 2.0**-53 * 2**8
    aux = layer.run(params, x, cache=own, return_aux=AuxRequest(lse=True)).aux
    assert aux is not None
    assert aux.lse.shape == (2, 2, 6)


# what does not fit


def test_what_a_cache_cannot_take_is_said_in_a_sentence() -> None:
    q = np.zeros((2, 2, 1, 4), np.float32)
    cache = paged().append(*tokens(3))
    evicting = EvictingCache.empty(2, 2, 3, 4, like=ZERO)
    latent = LatentCache.empty(2, 3, 4, 2, like=ZERO)
    attend = "polyattn.caches.PagedCache.attend"
    for call, error, sentence in (
        (lambda: cache.attend(q, key_offset=3), ValueError, f"{attend}: expected no key_offset, since the cache knows where its keys stand, got one; leave it out"),
        (lambda: cache.attend(q, layout="BLHD"), ValueError, f"{attend}: expected query of layout 'BHLD', as caches are, got 'BLHD'; permute its axes"),
        (lambda: cache.attend(q[:1]), ValueError, f"{attend}: expected query of shape (2, Hq, L, 4), as the cache is, got (1, 2, 1, 4); make the cache for this batch"),
        (lambda: cache.attend(q.astype(np.float64)), TypeError, f"{attend}: expected query, key and value of one dtype, got float64, float32, float32; cast them to the dtype in which you want the result"),
        (lambda: cache.fork([0, 2]), ValueError, "polyattn.caches.PagedCache.fork: expected items below 2, got 2; they are batch items"),
        (lambda: cache.release(np.zeros(3, bool)), ValueError, "polyattn.caches.PagedCache.release: expected done to be an array of 2 bools, one for each item, got an array of shape (3,) and dtype bool; compare, as in last_token == end"),
        (lambda: evicting.evict(np.zeros((2, 4), bool)), ValueError, "polyattn.caches.EvictingCache.evict: expected keep to be an array of bools of shape (2, 3), True for the slots that stay, got an array of shape (2, 4) and dtype bool; heaviest(mass, n) makes one"),
        (lambda: latent.append(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 2), np.float32)), ValueError, "polyattn.caches.LatentCache.append: expected at most 3 more tokens, got 4; the cache has room for 3 and holds 0, so make a larger one"),
        (lambda: latent.append(np.zeros((2, 1, 3), np.float32), np.zeros((2, 1, 2), np.float32)), ValueError, "polyattn.caches.LatentCache.append: expected latent of shape (2, 'n', 4) and dtype float32, got (2, 1, 3) and float32; make the cache for this batch"),
        (lambda: CircularCache.empty(2, 2, 4, 4, capacity=3, like=ZERO), ValueError, "polyattn.caches.CircularCache.empty: expected capacity >= 4, got 3; the window has to fit"),
        (lambda: QuantizedCache.empty(2, 2, 4, 0, like=ZERO), ValueError, "polyattn.caches.QuantizedCache.empty: expected head_dim >= 1, got 0; pass a larger number"),
        (lambda: cached_attention([1], cache), TypeError, "polyattn.caches.cached_attention: expected query to be an array of an array API library (NumPy, JAX, PyTorch, ...), got list; convert it, for example with numpy.asarray"),
        (lambda: attention_mass(q, q, layout="BLHD"), ValueError, "polyattn.caches.attention_mass: expected layout 'BHLD', got 'BLHD'; permute the axes"),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == sentence


def test_overflow_reads_as_nan_where_a_compiler_traces_length() -> None:
    tensor = torch.zeros(())
    for cache, new in (
        (QuantizedCache.empty(1, 1, 2, 3, like=tensor), (torch.ones(1, 1, 1, 3),) * 2),
        (LatentCache.empty(1, 2, 3, 3, like=tensor), (torch.ones(1, 1, 3),) * 2),
    ):
        torch.compiler.reset()
        step = torch.compile(lambda cache, new: cache.append(*new), fullgraph=True, backend="eager")
        for length in (1, 2):
            held = step(cache._replace(length=torch.tensor(length)), new)
            assert bool(torch.isnan(held.key).any()) == (length == 2)
