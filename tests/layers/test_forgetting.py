"""Forgetting attention: gates multiplied one by one, gates that are open or shut, its cache, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import mechanisms
from shared.libraries import jax
from shared.running import bench_of, drawn, mapped, normal

from polyattn import AuxRequest, layers
from polyattn.layers import ForgettingAttention
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

LAYER = ForgettingAttention(8, 2)
PARAMS, X = drawn(LAYER, seed=1), normal(2, 7, 8, seed=2)


def room(dtype: str) -> float:
    found = noise(lambda number: mechanisms.forgetting(mapped(number, PARAMS), number(X))[0])
    return 4 * found * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]


def test_weights_are_exponentials_times_the_gates_between() -> None:
    """No logarithm and no sum: a product of gates for every pair."""
    weights = LAYER.run(PARAMS, X, return_aux=AuxRequest(weights=True)).aux.weights
    f = 1 / (1 + np.exp(-(X @ PARAMS["w_f"] + PARAMS["b_f"])))
    for b, h, i in np.ndindex(2, 2, 7):
        q, k = X[b, i] @ PARAMS["w_q"][:, h], X[b] @ PARAMS["w_k"][:, h]
        e = [np.exp(q @ k[j] / 2.0) * np.prod(f[b, j + 1 : i + 1, h]) for j in range(i + 1)]
        assert (
            np.abs(weights[b, h, i, : i + 1] - np.array(e) / sum(e)).max() <= 256 * UNIT_ROUNDOFF["float64"]
        )
        assert (weights[b, h, i, i + 1 :] == 0).all()


def test_open_gates_are_causal_attention_and_shut_ones_see_themselves_alone() -> None:
    plain = layers.MultiHeadAttention(8, 2, qkv_bias=False, out_bias=False, is_causal=True)
    shared = {name: PARAMS[name] for name in plain.shapes()}
    gate = {"w_f": np.zeros((8, 2)), "b_f": np.full(2, 800.0)}
    assert np.array_equal(LAYER(PARAMS | gate, X), plain(shared, X))
    shut = LAYER(PARAMS | gate | {"b_f": np.full(2, -800.0)}, X)
    alone = np.einsum("ble,ehd,hdf->blf", X, PARAMS["w_v"], PARAMS["w_o"])
    assert np.abs(shut - alone).max() <= room("float64")


@pytest.mark.parametrize("library", ["numpy", "strict", "torch"])
def test_decoding_beside_a_cache_equals_the_whole_sequence(library: str) -> None:
    bench = bench_of(library)
    params, x = mapped(lambda w: bench.array(w, "float32"), PARAMS), bench.array(X, "float32")
    cache, outs = LAYER.empty_cache(2, 9, like=x), []
    for t, n in ((0, 4), (4, 1), (5, 2)):
        out, cache, _ = LAYER.run(params, x[:, t : t + n, :], cache=cache)
        outs.append(bench.numpy(out))
    true = mechanisms.forgetting(PARAMS, X)[0]
    assert np.abs(np.concatenate(outs, 1) - true).max() <= room("float32") < 1e-4


def test_a_compiled_step_serves_every_position() -> None:
    step = jax.jit(lambda p, x, cache: LAYER.run(p, x, cache=cache)[:2])
    params, x = mapped(jax.numpy.float32, PARAMS), jax.numpy.float32(X)
    cache, outs = LAYER.empty_cache(2, 9, like=x)._replace(length=jax.numpy.int32(0)), []
    for t in range(7):
        out, cache = step(params, x[:, t : t + 1], cache)
        outs.append(np.asarray(out))
    assert np.abs(np.concatenate(outs, 1) - mechanisms.forgetting(PARAMS, X)[0]).max() <= room("float32")


def test_what_an_empty_slot_holds_changes_no_bit() -> None:
    before = LAYER.run(PARAMS, X[:, :3], cache=LAYER.empty_cache(2, 9, like=X)).cache
    poisoned = before._replace(key=before.key.copy(), value=before.value.copy())
    poisoned.key[:, :, 4:], poisoned.value[:, :, 4:] = np.nan, np.nan
    outs = [LAYER.run(PARAMS, X[:, 3:4], cache=cache).out for cache in (before, poisoned)]
    assert np.array_equal(*outs)


def test_norms_and_rotary_positions_go_to_queries_and_keys() -> None:
    layer = ForgettingAttention(8, 2, qk_norm=layers.RMSNorm(4, epsilon=1e-6), rotary=Rotary())
    plain = layers.MultiHeadAttention(
        8, 2, qkv_bias=False, out_bias=False, is_causal=True, qk_norm=layer.qk_norm, rotary=Rotary()
    )
    params = drawn(layer)
    gate = {"w_f": np.zeros((8, 2)), "b_f": np.full(2, 800.0)}
    shared = {name: params[name] for name in plain.shapes()}
    assert np.array_equal(layer(params | gate, X), plain(shared, X))


WHO = "polyattn.layers.ForgettingAttention"
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "heads": (
        lambda: ForgettingAttention(8, 3),
        f"{WHO}: expected num_heads to divide embed_dim, got embed_dim=8 and num_heads=3; change one of them, or give "
        "head_dim",
    ),
    "qk_norm": (
        lambda: ForgettingAttention(8, 2, qk_norm=layers.RMSNorm(8, epsilon=1e-6)),
        f"{WHO}: expected qk_norm of dim 4, the width of a head, got 8; make it for 4",
    ),
    "order": (
        lambda: LAYER.run(PARAMS, X, cache=Unordered()),  # type: ignore[arg-type]
        f"{WHO}: expected a cache whose slots are in the order of the tokens, got Unordered, whose are not; gates are "
        "summed from slot to slot, so take a KVCache",
    ),
}


class Unordered:
    """As much of a cache as is asked before it is refused."""

    append, mask, in_order, length = None, None, False, 0


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == sentence
