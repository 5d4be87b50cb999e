"""Tensor product attention: outer products written out, rotary factors, the cache of factors, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import mechanisms
from shared.running import bench_of, drawn, mapped, normal

from polyattn import layers
from polyattn.layers import TensorProductAttention
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

LAYER = TensorProductAttention(16, 4, q_rank=3, k_rank=2, v_rank=1, rotary=Rotary(), is_causal=True)
PARAMS, X = drawn(LAYER, seed=1, size=0.25), normal(2, 7, 16, seed=2)


def formula(number: Callable[[Any], Any]) -> Any:
    return mechanisms.tensor_product(mapped(number, PARAMS), number(X), allowed=np.tri(7), rotary=True)[0]


TRUE = formula(lambda x: x)


def room(dtype: str) -> float:
    return 4 * noise(formula) * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]


@pytest.mark.parametrize("library", ["numpy", "strict", "torch"])
def test_decoding_beside_a_cache_of_factors_equals_the_whole_sequence(library: str) -> None:
    """Factors are turned to their positions once, and every head with them."""
    bench = bench_of(library)
    params, x = mapped(lambda w: bench.array(w, "float32"), PARAMS), bench.array(X, "float32")
    cache, outs = LAYER.empty_cache(2, 9, like=x), []
    assert (cache.key.shape, cache.value.shape) == ((2, 1, 9, 2 * (4 + 4)), (2, 1, 9, 1 * (4 + 4)))
    for t, n in ((0, 4), (4, 1), (5, 2)):
        out, cache, _ = LAYER.run(params, x[:, t : t + n, :], cache=cache)
        outs.append(bench.numpy(out))
    assert np.abs(np.concatenate(outs, 1) - TRUE).max() <= room("float32") < 1e-4


def test_factors_that_pick_a_head_are_multi_head_attention() -> None:
    """With as many ranks as heads, rank h giving R to head h and nothing to others, for tokens that know a constant."""
    plain = layers.MultiHeadAttention(16, 4, qkv_bias=False, out_bias=False, rotary=Rotary(), is_causal=True)
    layer = TensorProductAttention(16, 4, q_rank=4, k_rank=4, v_rank=4, rotary=Rotary(), is_causal=True)
    theirs, x = drawn(plain), X.copy()
    x[..., 0] = 1.0
    pick = np.zeros((16, 4, 4))
    pick[0] = 4 * np.eye(4)
    params = (
        {"w_o": theirs["w_o"]}
        | {f"w_a{name}": pick for name in "qkv"}
        | {f"w_b{name}": theirs[f"w_{name}"] for name in "qkv"}
    )
    assert np.abs(layer(params, x) - plain(theirs, x)).max() <= room("float64")


def test_texts_of_different_length_share_a_cache() -> None:
    cache = LAYER.run(PARAMS, X[:, :3], cache=LAYER.empty_cache(2, 9, like=X)).cache
    out = LAYER.run(PARAMS, X[:, 3:5], cache=cache._replace(length=np.array([3, 1], np.int32))).out
    for item, n in enumerate((3, 1)):
        alone = np.concatenate([X[item, :n], X[item, 3:5]])
        assert np.abs(out[item] - LAYER(PARAMS, alone)[n:]).max() <= room("float64")


WHO = "polyattn.layers.TensorProductAttention"
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "rank": (
        lambda: TensorProductAttention(8, 2, q_rank=0, k_rank=1, v_rank=1),
        f"{WHO}: expected q_rank to be a positive int, got 0; give a size of at least 1",
    ),
    "heads": (
        lambda: TensorProductAttention(8, 3, q_rank=1, k_rank=1, v_rank=1),
        f"{WHO}: expected num_heads to divide embed_dim, got embed_dim=8 and num_heads=3; change one of them, or give "
        "head_dim",
    ),
    "context": (
        lambda: LAYER(PARAMS, X, X),
        f"{WHO}: expected params, x by position, the others by name, got 3 arguments by position; write layer(params, x, "
        "mask=...)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == sentence
