"""A cache that was given up is written into, one that was not never is; and nothing is paid for slots that are empty."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
from shared import formulas
from shared.libraries import torch
from shared.running import LIBRARIES, bench_of, drawn, mapped, normal

from polyattn import AuxRequest, attention, layers, masks
from polyattn.arrays import backend_of, giving
from polyattn.caches import KVCache, LatentCache, QuantizedCache, cached_attention
from polyattn.truth.rounding import noise

IN_PLACE = ["numpy", "torch"]


def tokens(library: str, n: int = 1) -> Any:
    return bench_of(library).array(normal(2, 2, n, 4), "float32")


def empty(library: str, capacity: int = 8) -> KVCache:
    return KVCache.empty(2, 2, capacity, 4, like=tokens(library))


def appending(cache: Any, library: str, given_up: int | None = 0) -> Any:
    """The append as a program, to which the cache is given up."""
    return backend_of(cache[0]).jit(lambda cache, *new: cache.append(*new), given_up=given_up)


def place(x: Any) -> int:
    return int(x.data_ptr() if hasattr(x, "data_ptr") else x.ctypes.data)


@pytest.mark.parametrize("library", IN_PLACE)
def test_what_is_given_up_is_written_into(library: str) -> None:
    cache = empty(library).append(tokens(library, 3), tokens(library, 3))
    plain = cache.append(tokens(library), tokens(library))
    assert place(plain.key) != place(cache.key)
    again = appending(cache, library, None)(cache, tokens(library), tokens(library))
    assert place(again.key) != place(cache.key)
    longer = appending(cache, library)(cache, tokens(library), tokens(library))
    assert (place(longer.key), place(longer.value)) == (place(cache.key), place(cache.value))
    assert longer.length == 4
    number = bench_of(library).numpy
    assert (number(longer.key) == number(plain.key)).all()
    outside = longer.append(tokens(library), tokens(library))  # only inside that call
    assert place(outside.key) != place(longer.key)


@pytest.mark.parametrize("library", LIBRARIES)
def test_two_ways_on_from_one_cache_do_not_meet(library: str) -> None:
    """A beam: whoever goes on from what was given up already gets a copy; a compiler takes it away instead."""
    bench = bench_of(library)
    first, other = tokens(library, 2), -tokens(library, 2)
    start = empty(library).append(tokens(library, 3), tokens(library, 3))
    step = appending(start, library)
    held = [step(start, first, first)]
    if library == "jax":
        with pytest.raises((RuntimeError, ValueError), match=r"deleted|donated"):
            step(start, other, other)
        return
    held.append(step(start, other, other))
    held.append(step(start, other[:, :, :1, :], other[:, :, :1, :]))
    held.append(step(held[0]._replace(length=4), other, other))  # one token back
    held.append(step(held[0], first, first))
    for cache, pieces in zip(held, ([first], [other], [other[:, :, :1, :]], [first[:, :, :1, :], other], [first, first]), strict=True):  # fmt: skip
        expected = np.concatenate([bench.numpy(x) for x in (tokens(library, 3), *pieces)], 2)
        assert cache.length == expected.shape[2]
        assert (bench.numpy(cache.key)[:, :, : cache.length] == expected).all()
        assert (bench.numpy(cache.value)[:, :, : cache.length] == expected).all()


@pytest.mark.parametrize("library", IN_PLACE)
def test_two_appends_in_one_call_do_not_meet(library: str) -> None:
    cache, number = empty(library), bench_of(library).numpy
    new = tokens(library)

    def both(cache: KVCache) -> Any:
        return cache.append(new, new), cache.append(-new, -new)

    one, other = backend_of(new).jit(both, given_up=0)(cache)
    assert (number(one.key)[:, :, :1] == number(new)).all()
    assert (number(other.key)[:, :, :1] == -number(new)).all()


@pytest.mark.parametrize("library", IN_PLACE)
@pytest.mark.parametrize("kind", ["latent", "quantised"])
def test_other_caches_that_only_grow_do_the_same(library: str, kind: str) -> None:
    if kind == "latent":
        cache: Any = LatentCache.empty(2, 8, 3, 1, like=tokens(library))
        new = (tokens(library)[:, 0, :, :3], tokens(library)[:, 0, :, :1])
    else:
        cache, new = QuantizedCache.empty(2, 2, 8, 4, like=tokens(library)), (tokens(library),) * 2
    plain = cache.append(*new)
    longer = appending(cache, library)(cache, *new)
    assert place(longer[0]) == place(cache[0]) != place(plain[0])
    assert (bench_of(library).numpy(longer.key) == bench_of(library).numpy(plain.key)).all()


def test_what_cannot_be_written_is_copied() -> None:
    new = tokens("numpy")
    wide = np.broadcast_to(np.zeros((1, 1, 8, 4), np.float32), (2, 2, 8, 4))
    longer = appending(KVCache(wide, wide), "numpy")(KVCache(wide, wide), new, new)
    assert (longer.key[:, :, :1] == new).all()
    assert not wide.any()


def test_autograd_vmap_and_inference_of_torch_are_as_before() -> None:
    new = tokens("torch").requires_grad_()
    start = empty("torch")
    step = appending(start, "torch")
    once = step(start, new, new)
    twice = step(once, 2.0 * new, new)
    (twice.key.sum() + once.key.sum()).backward()
    assert (new.grad == 4.0).all()
    assert not start.key.any()
    many = torch.func.vmap(lambda x: step(start, x, x).key)(torch.stack([new.detach(), -new.detach()]))
    assert torch.equal(many[1, :, :, 0], -new.detach()[:, :, 0])
    assert not start.key.any()
    with torch.inference_mode():
        inside = step(empty("torch"), new.detach(), new.detach())
        assert place(step(inside, new.detach(), new.detach()).key) == place(inside.key)
    assert place(step(inside, new.detach(), new.detach()).key) != place(inside.key)


def test_nothing_is_remembered_of_arrays_that_are_gone() -> None:
    gc.collect()
    before = len(giving._WRITTEN)
    cache = empty("numpy")
    cache = appending(cache, "numpy")(cache, tokens("numpy"), tokens("numpy"))
    assert len(giving._WRITTEN) == before + 2
    del cache
    gc.collect()
    assert len(giving._WRITTEN) == before


def test_a_step_takes_memory_for_the_tokens_that_are_there() -> None:
    """At a capacity of 2**16 keys and values are 4 MiB, which were copied, and a row of scores for all of them."""
    cache, new = empty("numpy", 2**16), tokens("numpy")

    def step(cache: KVCache, new: Any) -> Any:
        cache = cache.append(new, new)
        return cache, cached_attention(new, cache, is_causal=True)

    run = backend_of(new).jit(step, given_up=0)
    cache, _ = run(cache, new)
    tracemalloc.start()
    cache, out = run(cache, new)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**17
    keys = np.concatenate([new, new], 2)
    assert np.array_equal(out, attention(new, keys, keys, is_causal=True, query_offset="end"))


LAYER = layers.MultiHeadAttention(8, 2, is_causal=True)
PARAMS = drawn(LAYER)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("mask", [None, masks.sliding_window(2), "by slots"], ids=str)
def test_empty_slots_are_cut_off_where_nothing_goes_by_them(library: str, mask: Any) -> None:
    """A mask, a bias, weights of the caller have one column for each slot, and keep it."""
    bench = bench_of(library)
    params = mapped(lambda w: bench.array(w, "float32"), PARAMS)
    x, met = bench.array(normal(1, 3, 8), "float32"), []
    given = bench.array(np.ones((1, 1, 3, 7), bool)) if isinstance(mask, str) else mask
    attend = layers.MultiHeadAttention.attend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers.MultiHeadAttention, "attend", lambda self, q, k, v, **o: met.append(k.shape[-2]) or attend(self, q, k, v, **o))  # fmt: skip
        out, cache, _ = LAYER.run(params, x, cache=LAYER.empty_cache(1, 7, like=x), mask=given)
        assert met == [7 if mask == "by slots" else 3]
        _, _, aux = LAYER.run(params, x, cache=LAYER.empty_cache(1, 7, like=x), mask=given, return_aux=AuxRequest(weights=True))  # fmt: skip
        assert aux.weights.shape[-1] == 7
        _, _, aux = LAYER.run(params, x, cache=LAYER.empty_cache(1, 7, like=x), mask=given, return_aux=AuxRequest(lse=True))  # fmt: skip
    assert met[-1] == met[0]
    assert cache.length == 3
    allowed = np.tri(3, dtype=bool) & (~np.tri(3, k=-2, dtype=bool) if isinstance(mask, masks.Mask) else True)

    def formula(number: Any) -> Any:
        return formulas.multihead(mapped(number, PARAMS), number(normal(1, 3, 8)), allowed=allowed)[0]

    assert np.abs(bench.numpy(out) - formula(lambda x: x)).max() <= 4 * noise(formula)
