"""Dropout: one mask for every library, fair, independent along every axis, and a function of the position."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch

from polyattn import AuxRequest, attention
from polyattn.dropout import threefry2x32
from polyattn.parity import ACCEPTANCE, Spec, eta, round_to
from polyattn.testing import Bench, NumpyBench
from polyattn.truth import truth

pytestmark = pytest.mark.rule("rule-11")

# Salmon 2011, known-answer vectors of Threefry-2x32-20: key, counter, words.
KNOWN = [
    ("00000000 00000000", "00000000 00000000", "6b200159 99ba4efe"),
    ("ffffffff ffffffff", "ffffffff ffffffff", "1cb996fc bb002be7"),
    ("13198a2e 03707344", "243f6a88 85a308d3", "c4923a9c 483df7a0"),
]


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32).view(np.int32)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return round_to(np.random.default_rng([seed, *shape]).normal(size=shape), "float16")


def kept(
    bench: Bench, batch: int, heads: int, rows: int, keys: int, rate: float, seed: Any, **options: Any
) -> Any:
    """Where a weight survives: V is the identity, so the result is the weights after dropout."""
    q, k = (np.ones((batch, heads, n, 1), np.float32) for n in (rows, keys))
    v = np.broadcast_to(np.eye(keys, dtype=np.float32), (batch, heads, keys, keys))
    given = (bench.array(x, "float32") for x in (q, k, v))
    out = attention(*given, dropout_rate=rate, dropout_seed=seed, **options)
    return bench.numpy(out) != 0


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_threefry_gives_its_known_answers(eager: Bench, key: str, counter: str, expected: str) -> None:
    given = [eager.array(x[None]) for x in (*words(key), *words(counter))]
    got = [eager.numpy(word) for word in threefry2x32(*given)]
    assert [int(word[0]) for word in got] == words(expected).tolist()


def test_threefry_equals_the_one_of_jax(eager: Bench) -> None:
    rng = np.random.default_rng(0)
    key, counter = rng.integers(0, 2**32, (2, 1), np.uint32), rng.integers(0, 2**32, (2, 4096), np.uint32)
    theirs = jax.extend.random.threefry_2x32(jnp.asarray(key[:, 0]), jnp.asarray(counter.reshape(-1)))
    given = (*key.view(np.int32), *counter.view(np.int32))
    ours = threefry2x32(*(eager.array(np.broadcast_to(x, 4096)) for x in given))
    for mine, other in zip(ours, np.asarray(theirs).reshape(2, 4096), strict=True):
        assert np.array_equal(eager.numpy(mine).astype(np.int32).view(np.uint32), other)


@pytest.mark.parametrize(("rate", "seed"), [(0.1, 0), (0.5, 2**31), (0.9, 2**64 - 1)])
def test_every_bench_keeps_the_same_weights(bench: Bench, rate: float, seed: int) -> None:
    def f(given: Any) -> Any:
        out, aux = attention(**given, dropout_rate=rate, dropout_seed=seed, return_aux=AuxRequest(lse=True))
        return out, aux.lse

    arrays = {n: np.ones((2, 3, 5, 1), np.float32) for n in ("query", "key")}
    arrays["value"] = np.broadcast_to(np.eye(5, dtype=np.float32), (2, 3, 5, 5))
    out, _, _ = bench.run(f, {n: bench.array(x, "float32") for n, x in arrays.items()}, None)
    assert np.array_equal(bench.numpy(out) != 0, kept(NumpyBench(), 2, 3, 5, 5, rate, seed))


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.75])
def test_the_share_of_kept_weights_is_right(rate: float) -> None:
    shape = (4, 4, 64, 64)
    share = kept(NumpyBench(), *shape, rate, 7).mean()
    assert abs(share - (1 - rate)) <= 5 * sqrt(rate * (1 - rate) / np.prod(shape))


def test_the_mask_differs_along_every_axis_and_for_every_seed() -> None:
    a, other = (kept(NumpyBench(), 2, 2, 64, 64, 0.5, seed) for seed in (7, 8))
    n = 64 * 64
    pairs = {
        "batch": (a[0, 0], a[1, 0]),
        "head": (a[0, 0], a[0, 1]),
        "batch and head": (a[0, 1], a[1, 0]),
        "query": (a[0, 0], np.roll(a[0, 0], 1, axis=0)),
        "key": (a[0, 0], np.roll(a[0, 0], 1, axis=1)),
        "query and key": (a[0, 0], a[0, 0].T),
        "seed": (a[0, 0], other[0, 0]),
    }
    for name, (x, y) in pairs.items():
        # two fair coins agree half the time
        assert abs((x == y).mean() - 0.5) <= 5 * sqrt(0.25 / n) * (
            sqrt(2) if name == "query and key" else 1
        ), name


def test_all_words_of_a_long_seed_matter() -> None:
    masks = [kept(NumpyBench(), 1, 1, 16, 16, 0.5, seed) for seed in (3, 3 + 2**32, 3 + 2**63)]
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])


def test_kept_weights_are_divided_by_the_rate_of_keeping(eager: Bench) -> None:
    q, k, v = draw(2, 4, 6, 8), draw(2, 2, 6, 8), draw(2, 2, 6, 3)
    keep = kept(NumpyBench(), 2, 4, 6, 6, 0.25, 9) / 0.75
    out = attention(*(eager.array(x, "float32") for x in (q, k, v)), dropout_rate=0.25, dropout_seed=9)
    assert eta(eager.numpy(out), truth(Spec(q, k, v, keep=keep))["out"], "float32") <= ACCEPTANCE


def test_dropout_is_unbiased() -> None:
    keys, rate, seeds = 8, 0.25, 400
    given = np.ones((1, 1, 64, 1)), np.ones((1, 1, keys, 1)), np.ones((1, 1, keys, 1))
    means = [attention(*given, dropout_rate=rate, dropout_seed=s).mean() for s in range(seeds)]
    deviation = sqrt(rate / (1 - rate) / (keys * 64 * seeds))
    assert abs(np.mean(means) - 1) <= 5 * deviation


def test_weights_and_lse_are_reported_before_dropout(eager: Bench) -> None:
    given = [eager.array(draw(2, 4, 6, 8, seed=i), "float32") for i in range(3)]
    ask = AuxRequest(weights=True, lse=True)
    _, plain = attention(*given, return_aux=ask)
    out, aux = attention(*given, dropout_rate=0.5, dropout_seed=1, return_aux=ask)
    assert np.array_equal(eager.numpy(aux.weights), eager.numpy(plain.weights))
    assert np.array_equal(eager.numpy(aux.lse), eager.numpy(plain.lse))
    assert not np.array_equal(eager.numpy(out), eager.numpy(attention(*given)))


def test_a_rate_of_zero_is_no_dropout_bit_for_bit(eager: Bench) -> None:
    given = [eager.array(draw(2, 4, 6, 8, seed=i), "float32") for i in range(3)]
    out = attention(*given, dropout_rate=0.0, dropout_seed=3)
    assert np.array_equal(eager.numpy(out), eager.numpy(attention(*given)))


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_slice_of_the_queries_draws_the_bits_of_its_positions(eager: Bench, start: int) -> None:
    whole = kept(eager, 2, 2, 8, 8, 0.5, 11)
    part = kept(eager, 2, 2, 3, 8, 0.5, 11, query_offset=start)
    assert np.array_equal(part, whole[:, :, start : start + 3])


def test_a_slice_of_the_keys_draws_the_same_bits(eager: Bench) -> None:
    whole = kept(eager, 2, 2, 8, 8, 0.5, 11)
    assert np.array_equal(kept(eager, 2, 2, 8, 5, 0.5, 11, query_offset=0), whole[..., :5])


def test_dropout_offsets_may_differ_within_a_batch(eager: Bench) -> None:
    whole = kept(eager, 2, 2, 8, 8, 0.5, 11)
    offset = eager.array(np.array([4, 1], np.int32))
    part = kept(eager, 2, 2, 3, 8, 0.5, 11, query_offset=offset)
    assert np.array_equal(part[0], whole[0, :, 4:7])
    assert np.array_equal(part[1], whole[1, :, 1:4])


def test_the_layout_does_not_change_the_bits(eager: Bench) -> None:
    q, k, v = (draw(2, 3, 5, 4, seed=i) for i in range(3))
    straight = attention(*(eager.array(x, "float32") for x in (q, k, v)), dropout_rate=0.5, dropout_seed=1)
    turned = (eager.array(x.swapaxes(1, 2).copy(), "float32") for x in (q, k, v))
    out = attention(*turned, dropout_rate=0.5, dropout_seed=1, layout="BLHD")
    judged = truth(Spec(q, k, v, keep=2.0 * kept(eager, 2, 3, 5, 5, 0.5, 1)))["out"]
    assert eta(eager.numpy(straight), judged, "float32") <= ACCEPTANCE
    assert eta(eager.numpy(out).swapaxes(1, 2), judged, "float32") <= ACCEPTANCE


def test_leading_axes_are_one_batch_in_row_major_order(eager: Bench) -> None:
    q, k, v = (draw(6, 3, 5, 4, seed=i) for i in range(3))
    flat = attention(*(eager.array(x, "float32") for x in (q, k, v)), dropout_rate=0.5, dropout_seed=1)
    deep = (eager.array(x.reshape(2, 3, 3, 5, 4), "float32") for x in (q, k, v))
    out = eager.numpy(attention(*deep, dropout_rate=0.5, dropout_seed=1))
    judged = truth(Spec(q, k, v, keep=2.0 * kept(eager, 6, 3, 5, 5, 0.5, 1)))["out"]
    assert eta(eager.numpy(flat), judged, "float32") <= ACCEPTANCE
    assert eta(out.reshape(6, 3, 5, 4), judged, "float32") <= ACCEPTANCE


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1])
def test_a_seed_may_be_an_array_and_traced(eager: Bench, seed: int) -> None:
    expected = kept(NumpyBench(), 2, 2, 5, 5, 0.5, seed)
    array = eager.array(np.array(seed, np.int32))
    assert np.array_equal(kept(eager, 2, 2, 5, 5, 0.5, array), expected)
    if eager.name == "jax":
        q, v = jnp.ones((2, 2, 5, 1)), jnp.broadcast_to(jnp.eye(5), (2, 2, 5, 5))
        f = jax.jit(lambda s: attention(q, q, v, dropout_rate=0.5, dropout_seed=s))
        assert np.array_equal(np.asarray(f(array)) != 0, expected)


def test_compiled_torch_draws_the_same_bits_for_a_tensor_seed() -> None:
    torch.compiler.reset()
    q, v = torch.ones(2, 2, 5, 1), torch.eye(5).expand(2, 2, 5, 5)
    f = torch.compile(
        lambda s: attention(q, q, v, dropout_rate=0.5, dropout_seed=s), fullgraph=True, backend="aot_eager"
    )
    for seed in (3, 4):
        out = f(torch.tensor(seed))
        assert np.array_equal(out.numpy() != 0, kept(NumpyBench(), 2, 2, 5, 5, 0.5, seed))


def test_the_gradient_uses_the_mask_of_the_forward_pass(bench: Bench) -> None:
    q, k, v = draw(2, 4, 6, 8, seed=1), draw(2, 2, 6, 8, seed=2), draw(2, 2, 6, 3, seed=3)
    cotangent = draw(2, 4, 6, 3, seed=4)
    keep = kept(NumpyBench(), 2, 4, 6, 6, 0.25, 9) / 0.75

    def f(given: Any) -> Any:
        out, aux = attention(**given, dropout_rate=0.25, dropout_seed=9, return_aux=AuxRequest(lse=True))
        return out, aux.lse

    arrays = {n: bench.array(x, "float32") for n, x in {"query": q, "key": k, "value": v}.items()}
    out, _, grads = bench.run(f, arrays, bench.array(cotangent, "float32"))
    judged = truth(Spec(q, k, v, keep=keep), cotangent)
    got = {"out": out} | {"d" + name[0]: x for name, x in (grads or {}).items()}
    for name, x in got.items():
        assert eta(bench.numpy(x), judged[name], "float32") <= ACCEPTANCE, name


def test_a_rate_next_to_one_drops_everything_but_one_in_four_billion() -> None:
    x = np.ones((1, 1, 8, 4))
    assert not attention(x, x, x, dropout_rate=1 - 2.0**-50, dropout_seed=0).any()
