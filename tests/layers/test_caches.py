"""The KV cache: a value, in any library, whose length a compiler may trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from shared import formulas
from shared.libraries import jax, jnp, torch
from shared.running import LIBRARIES, Floats, bench_of, drawn, mapped, normal

from polyattn import attention, layers, masks, rotary
from polyattn.arrays import backend_of
from polyattn.caches import Cache, KVCache
from polyattn.testing import Bench
from polyattn.truth.rounding import noise

on_every_library = pytest.mark.parametrize("library", LIBRARIES)

LAYER = layers.MultiHeadAttention(8, 2, is_causal=True)
PARAMS = drawn(LAYER)
X = normal(2, 6, 8)
COMPILED = jax.jit(LAYER.run)


def full() -> Floats:
    out: Floats = formulas.multihead(PARAMS, X, allowed=np.tri(6))[0]
    return out


def room() -> float:
    def f(number: Callable[[Any], Any]) -> Any:
        return formulas.multihead(mapped(number, PARAMS), number(X), allowed=np.tri(6))[0]

    return 4 * noise(f)


def given(bench: Bench) -> tuple[dict[str, Any], Any]:
    return mapped(lambda w: bench.array(w, "float32"), PARAMS), bench.array(X, "float32")


def filled(bench: Bench, n: int, length: Any = 0) -> KVCache:
    like = bench.array(np.zeros(()), "float32")
    cache = KVCache.empty(2, 2, 5, 4, 3, like=like)._replace(length=length)
    return cache.append(*(bench.array(normal(2, 2, n, d), "float32") for d in (4, 3)))


@on_every_library
def test_a_cache_holds_what_was_appended_and_zeros_behind(library: str) -> None:
    bench = bench_of(library)
    cache = filled(bench, 3)
    assert (cache.length, cache.capacity) == (3, 5)
    assert np.array_equal(bench.numpy(cache.key)[:, :, :3], normal(2, 2, 3, 4))
    assert np.array_equal(bench.numpy(cache.value)[:, :, :3], normal(2, 2, 3, 3))
    assert not bench.numpy(cache.key)[:, :, 3:].any()
    assert cache.key.dtype == bench.array(np.zeros(()), "float32").dtype


@on_every_library
def test_appending_makes_a_new_cache_and_leaves_the_old_one(library: str) -> None:
    bench = bench_of(library)
    old = filled(bench, 2)
    key, value = bench.numpy(old.key).copy(), bench.numpy(old.value).copy()
    ones = (bench.array(np.ones((2, 2, 1, d)), "float32") for d in (4, 3))
    new = old.append(*ones)
    assert (old.length, new.length) == (2, 3)
    assert np.array_equal(bench.numpy(old.key), key)
    assert np.array_equal(bench.numpy(old.value), value)
    assert np.array_equal(bench.numpy(new.key)[:, :, :2], key[:, :, :2])
    assert (bench.numpy(new.key)[:, :, 2] == 1).all()


@on_every_library
def test_nothing_appended_changes_nothing(library: str) -> None:
    bench = bench_of(library)
    cache = filled(bench, 2)
    nothing = (bench.array(np.ones((2, 2, 0, d)), "float32") for d in (4, 3))
    same = cache.append(*nothing)
    assert same.length == 2
    assert np.array_equal(bench.numpy(same.key), bench.numpy(cache.key))


@on_every_library
@pytest.mark.parametrize("pieces", [(6,), (1, 1, 1, 1, 1, 1), (4, 2)], ids=["whole", "one by one", "two"])
def test_prefill_in_pieces_gives_the_rows_of_the_full_causal_result(
    library: str, pieces: tuple[int, ...]
) -> None:
    bench = bench_of(library)
    params, x = given(bench)
    cache, rows, start = LAYER.empty_cache(2, 7, like=x), [], 0
    call = COMPILED if library == "jax" else LAYER.run
    for n in pieces:
        out, cache, _ = call(params, x[:, start : start + n, :], cache=cache)
        rows.append(bench.numpy(out))
        start += n
    assert np.abs(np.concatenate(rows, 1) - full()).max() <= room() < 1e-4

    def keys(number: Callable[[Any], Any]) -> Any:
        w, b = number(PARAMS["w_k"]), number(PARAMS["b_k"])
        return np.stack([number(X) @ w[:, h] + b[h] for h in range(2)], 1)

    error = bench.numpy(cache.key)[:, :, :6] - keys(lambda x: x)
    assert np.abs(error).max() <= 4 * noise(keys)


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_one_compiled_step_serves_every_position(library: str) -> None:
    bench = bench_of(library)
    params, x = given(bench)
    programs: list[Any] = []

    def step(params: Any, x: Any, cache: KVCache) -> Any:
        if library == "jax":
            programs.append(step)
        return LAYER.run(params, x, cache=cache)

    def kept(graph: Any, inputs: Any) -> Any:
        programs.append(graph)
        return graph.forward

    if library == "jax":
        call, length = jax.jit(step), jnp.asarray(0)
    else:
        torch.compiler.reset()
        call, length = torch.compile(step, fullgraph=True, backend=kept), torch.tensor(0)
    cache, rows = LAYER.empty_cache(2, 7, like=x)._replace(length=length), []
    for i in range(6):
        out, cache, _ = call(params, x[:, i : i + 1], cache)
        rows.append(bench.numpy(out))
    assert int(cache.length) == 6
    assert np.abs(np.concatenate(rows, 1) - full()).max() <= room()
    assert len(programs) == 1


@on_every_library
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_what_lies_beyond_length_has_no_influence_by_one_bit(library: str, poison: float) -> None:
    bench = bench_of(library)
    params, x = given(bench)
    call = COMPILED if library == "jax" else LAYER.run
    cache = call(params, x[:, :4, :], cache=LAYER.empty_cache(2, 8, like=x)).cache

    def poisoned(a: Any) -> Any:
        values = bench.numpy(a).copy()
        values[:, :, 4:] = poison
        return bench.array(values, "float32")

    other = cache._replace(key=poisoned(cache.key), value=poisoned(cache.value))
    with np.errstate(invalid="ignore", over="ignore"):  # what is hidden is multiplied all the same
        for n in (1, 2) if library != "jax" else (2,):
            clean, dirty = (call(params, x[:, 4 : 4 + n, :], cache=c).out for c in (cache, other))
            assert np.array_equal(bench.numpy(clean), bench.numpy(dirty))


@on_every_library
def test_the_mask_of_a_cache_hides_what_is_not_there_in_attention_itself(library: str) -> None:
    bench = bench_of(library)
    cache = filled(bench, 3)
    q = bench.array(normal(2, 2, 2, 4, seed=8), "float32")
    attend = partial(attention, mask=cache.mask)
    out = (jax.jit(attend) if library == "jax" else attend)(q, cache.key, cache.value)

    def there(number: Callable[[Any], Any]) -> Any:
        three = (normal(2, 2, 2, 4, seed=8), normal(2, 2, 3, 4), normal(2, 2, 3, 3))
        return formulas.attend(*map(number, three))[0]

    assert np.abs(bench.numpy(out) - there(np.asarray)).max() <= 4 * noise(there)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_without_a_causal_mask_all_that_is_there_is_seen_and_nothing_else(library: str) -> None:
    bench = bench_of(library)
    params, x = given(bench)
    cache, seen = LAYER.empty_cache(2, 9, like=x), 0
    for n in (4, 2):
        new = slice(seen, seen + n)
        out, cache, _ = LAYER.run(params, x[:, new], cache=cache, is_causal=False)
        seen += n
        true = formulas.multihead(PARAMS, X[:, new], X[:, :seen])[0]
        assert np.abs(bench.numpy(out) - true).max() <= room()


def test_a_mask_of_the_call_covers_the_capacity_of_the_cache() -> None:
    """Keys 0 and 1 hidden, by an array and by a mask of positions."""
    cache = LAYER.run(PARAMS, X[:, :4], cache=LAYER.empty_cache(2, 7, like=X)).cache
    allowed = np.tri(6) * (np.arange(6) >= 2)
    true = formulas.multihead(PARAMS, X, allowed=allowed)[0][:, 4:]
    for mask in (np.arange(7) >= 2, masks.mask_mod(lambda b, h, q, kv: kv >= 2), ~masks.prefix(2)):
        given = mask[None, None, None] if isinstance(mask, np.ndarray) else mask
        out = LAYER.run(PARAMS, X[:, 4:], cache=cache, mask=given).out
        assert np.abs(out - true).max() <= room() * 2.0**-29


def test_a_cache_is_a_pytree_whose_length_is_a_leaf() -> None:
    cache = filled(bench_of("jax"), 2)
    assert len(jax.tree.leaves(cache)) == 3
    grown = jax.jit(lambda c, k, v: c.append(k, v))(cache, jnp.ones((2, 2, 2, 4)), jnp.ones((2, 2, 2, 3)))
    assert isinstance(grown, KVCache)
    assert int(grown.length) == 4


def test_the_gradient_reaches_the_tokens_of_earlier_pieces() -> None:
    bench = bench_of("torch")
    params, x = given(bench)
    x.requires_grad_()
    cache = LAYER.run(params, x[:, :4], cache=LAYER.empty_cache(2, 6, like=x)).cache
    LAYER.run(params, x[:, 4:], cache=cache).out.square().sum().backward()
    assert (x.grad.abs().amax(-1) > 0).all()


# texts of different length


@pytest.mark.parametrize(
    ("library", "traced"),
    [("numpy", False), ("strict", False), ("torch", False), ("torch", True), ("jax", True)],
)
def test_each_item_goes_on_from_its_own_length_as_if_it_were_alone(library: str, traced: bool) -> None:
    """Two texts that differ in length by two, in one batch, with rotary positions: three tokens, then one."""
    bench = bench_of(library)
    layer = layers.MultiHeadAttention(8, 2, is_causal=True, rotary=rotary.Rotary())
    params, x = given(bench)
    call: Any = layer.run
    if library == "jax":
        call = jax.jit(layer.run)
    elif traced:
        torch.compiler.reset()
        call = torch.compile(layer.run, fullgraph=True, backend="aot_eager")
    alone = []
    for i, held in enumerate((2, 0)):
        own = LAYER.empty_cache(1, 6, like=x)
        alone.append(layer.run(params, x[i : i + 1, :held, :], cache=own).cache if held else own)
    key, value = (
        bench.array(np.concatenate([bench.numpy(getattr(c, name)) for c in alone]), "float32")
        for name in ("key", "value")
    )
    together = KVCache(key, value, bench.array(np.array([2, 0]), "int32"))
    for start, n in ((2, 3), (5, 1)):
        out, together, _ = call(params, x[:, start : start + n, :], cache=together)
        for i in range(2):
            true, alone[i], _ = layer.run(params, x[i : i + 1, start : start + n, :], cache=alone[i])
            assert np.abs(bench.numpy(out)[i : i + 1] - bench.numpy(true)).max() <= 2 * room()
            assert np.abs(bench.numpy(together.key)[i] - bench.numpy(alone[i].key)[0]).max() <= 2 * room()
    assert bench.numpy(together.length).tolist() == [6, 4]
    assert bench.numpy(together.positions).tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, -1, -1]]


def test_an_item_that_does_not_fit_reads_as_nan_and_the_others_as_they_are() -> None:
    params, x = given(bench_of("jax"))
    cache = LAYER.empty_cache(2, 4, like=x)._replace(length=jnp.asarray([4, 1]))
    out, cache, _ = COMPILED(params, x[:, :1], cache=cache)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
    assert cache.length.tolist() == [5, 2]


# any cache


class Latest(NamedTuple):
    """Keeps no more than five tokens, the latest in front."""

    key: Any
    value: Any
    length: int = 0

    @property
    def mask(self) -> masks.Mask:
        return masks.key_lengths(min(self.length, 5))

    in_order = False

    @property
    def positions(self) -> Any:
        return np.maximum(self.length - 1 - np.arange(5), -1)

    def append(self, key: Any, value: Any) -> Latest:
        def put(old: Any, new: Any) -> Any:
            return np.concatenate([new[..., ::-1, :], old], -2)[..., :5, :]

        return Latest(put(self.key, key), put(self.value, value), self.length + key.shape[-2])


def test_a_layer_works_with_whatever_is_a_cache() -> None:
    """One token sees the latest five, in whatever order a cache keeps them."""
    empty = Latest(*np.zeros((2, 2, 2, 5, 4)))
    for cache in (empty, filled(bench_of("numpy"), 1)):
        assert isinstance(cache, Cache)
    assert not isinstance((empty.key, empty.value), Cache)
    cache = LAYER.run(PARAMS, X[:, :5], cache=empty, is_causal=False).cache
    out, cache, _ = LAYER.run(PARAMS, X[:, 5:], cache=cache, is_causal=False)
    assert (cache.length, cache.positions.tolist()) == (6, [5, 4, 3, 2, 1])
    true = formulas.multihead(PARAMS, X[:, 5:], X[:, 1:])[0]
    assert np.abs(out - true).max() <= room() * 2.0**-29
    # Causal, several tokens at once: what counts is where a key stands, not the slot that it has.
    causal = LAYER.run(PARAMS, X[:, :5], cache=empty, is_causal=True).out
    assert np.abs(causal - LAYER(PARAMS, X[:, :5], is_causal=True)).max() <= room() * 2.0**-29


def test_a_context_length_bounds_the_longest_text_of_a_batch() -> None:
    layer = replace(LAYER, context_length=4)
    cache = KVCache(*np.zeros((2, 2, 2, 5, 4)), length=np.asarray([1, 3], np.int32))
    cache = layer.run(PARAMS, X[:, :1], cache=cache).cache
    assert cache.length.tolist() == [2, 4]
    with pytest.raises(ValueError, match=r"expected at most context_length=4 tokens, got 5; cut the input"):
        layer.run(PARAMS, X[:, :1], cache=cache)


# what does not fit


@pytest.mark.parametrize("length", [4, np.asarray(4, np.int32)], ids=["int", "array"])
def test_tokens_that_do_not_fit_are_refused_where_the_length_is_known(length: Any) -> None:
    with pytest.raises(ValueError) as caught:
        filled(bench_of("numpy"), 2, length)
    assert str(caught.value) == (
        "polyattn.caches.KVCache.append: expected at most 1 more tokens, got 2; the cache has room for 5 and holds 4, "
        "so make a larger one"
    )


def test_more_tokens_than_any_cache_holds_are_refused_under_a_compiler_too() -> None:
    with pytest.raises(ValueError, match="expected at most 5 more tokens, got 6"):
        jax.jit(lambda n: filled(bench_of("jax"), 6, n))(0)


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_tokens_that_do_not_fit_read_as_nan_where_a_compiler_traces_the_length(library: str) -> None:
    bench = bench_of(library)
    params, x = given(bench)

    def step(params: Any, x: Any, cache: KVCache) -> Any:
        return LAYER.run(params, x, cache=cache)

    if library == "jax":
        call, length = jax.jit(step), jnp.asarray(3)
    else:
        torch.compiler.reset()
        call, length = torch.compile(step, fullgraph=True, backend="aot_eager"), torch.tensor(3)
    cache = LAYER.empty_cache(2, 4, like=x)._replace(length=length)
    out, cache, _ = call(params, x[:, :1], cache)
    assert np.isfinite(bench.numpy(out)).all()
    for _ in range(2):
        out, cache, _ = call(params, x[:, :1], cache)
        assert np.isnan(bench.numpy(out)).all()


def test_tokens_of_another_shape_or_dtype_are_refused_with_a_sentence() -> None:
    cache = filled(bench_of("numpy"), 2)
    k, v = np.zeros((2, 2, 1, 4), np.float32), np.zeros((2, 2, 1, 3), np.float32)
    for key, value, sentence in (
        (k[:1], v[:1], "expected key of shape (2, 2, 'n', 4) and dtype float32, got (1, 2, 1, 4) and float32; make the cache for this batch"),
        (k[..., :3], v, "expected key of shape (2, 2, 'n', 4) and dtype float32, got (2, 2, 1, 3) and float32; make the cache for this batch"),
        (k, v.astype(np.float64), "expected value of shape (2, 2, 'n', 3) and dtype float32, got (2, 2, 1, 3) and float64; make the cache for this batch"),
        (k, np.zeros((2, 2, 2, 3), np.float32), "expected as many values as keys, got 2 and 1; every key needs its value"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            cache.append(key, value)
        assert str(caught.value) == f"polyattn.caches.KVCache.append: {sentence}"


def test_lengths_of_another_kind_are_refused_with_a_sentence() -> None:
    cache, each = filled(bench_of("numpy"), 2), "one number for all batch items, or one for each"
    tokens = np.zeros((2, 2, 1, 4), np.float32), np.zeros((2, 2, 1, 3), np.float32)
    for length, error, sentence in (
        ([2, 1], TypeError, "expected length to be an integer, or an array of one for each batch item, got [2, 1]; make it an array of the library of key"),
        (np.array([2, 1, 0]), ValueError, f"expected length of integers and of shape () or (2,), got int64 of shape (3,); {each}"),
        (np.array([2.0, 1.0]), ValueError, f"expected length of integers and of shape () or (2,), got float64 of shape (2,); {each}"),
        (np.array([2, 5]), ValueError, "expected at most 0 more tokens, got 1; the cache has room for 5 and holds 5, so make a larger one"),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            cache._replace(length=length).append(*tokens)
        assert str(caught.value) == f"polyattn.caches.KVCache.append: {sentence}"


@on_every_library
@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("axis", [-1, -2])
def test_what_is_put_stands_there_and_the_old_array_stays(library: str, start: int, axis: int) -> None:
    bench = bench_of(library)
    x, tile = normal(2, 6, 6), normal(2, 2, 6) if axis == -2 else normal(2, 6, 2)
    old = bench.array(x)
    found = backend_of(old).put(old, start, bench.array(tile), axis)
    expected = x.copy()
    np.moveaxis(expected, axis, 0)[start : start + 2] = np.moveaxis(tile, axis, 0)
    assert (bench.numpy(found) == expected).all()
    assert (bench.numpy(old) == x).all()
