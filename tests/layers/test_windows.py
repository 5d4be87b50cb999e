"""Layers with a window, which bring a ring of its size: the same rows, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.running import decoded, drawn, mapped, normal

from polyattn import layers, masks
from polyattn.caches import CircularCache, KVCache
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

B, N, W = 2, 21, 4
PIECES = [(1,) * N, (3,) * 7, (17, 1, 3)]
IDS = ["1", "3", "17"]
NORM, MLP = layers.RMSNorm(8, epsilon=1e-6), layers.MLP(8, 12, activation="relu")
NEAR, FAR = (
    layers.EncoderBlock(
        layers.MultiHeadAttention(8, 4, num_kv_heads=2, is_causal=True, rotary=Rotary(), mask=mask),
        MLP,
        NORM,
        norm_first=True,
    )
    for mask in (masks.sliding_window(W), None)
)
X = normal(B, N, 8)


def size(caches: Any) -> int:
    return sum(c.key.size + c.value.size for c in caches)


@pytest.mark.parametrize("pieces", PIECES, ids=IDS)
def test_a_window_keeps_a_ring_of_its_size_and_gives_the_same_rows(pieces: tuple[int, ...]) -> None:
    """Five blocks with a window for one without, and no capacity for the five."""
    layer = layers.Encoder((NEAR,) * 5 + (FAR,), 6)
    params = drawn(layer)
    empty = layer.empty_cache(B, N, like=X, circular=True)
    assert [type(c).__name__ for c in empty] == ["CircularCache"] * 5 + ["KVCache"]
    rows, caches = decoded(layer.run, params, X, empty, pieces)
    right = 4 * noise(lambda number: layer(mapped(number, params), number(X))) * 2.0**-29
    assert np.abs(np.concatenate(rows, 1) - layer(params, X)).max() <= right
    if max(pieces) == 1:  # no piece is longer than the ring has room for
        assert size(caches) == size(empty)
    token = 2 * 2 * B * 2
    assert [size([c]) for c in empty] == [W * token] * 5 + [N * token]
    longer = layer.empty_cache(B, 100 * N, like=X, circular=True)
    assert size(longer[:5]) == size(empty[:5])
    model = layers.LanguageModel(layers.Embedding(5, 8), layer)
    assert size(model.empty_cache(B, N, like=X, circular=True)) == size(empty)
    assert size(layer.empty_cache(B, N, like=X)) == 6 * N * token


@pytest.mark.parametrize(
    ("mask", "window"),
    [
        (masks.sliding_window(3), 3),
        (masks.window(2, None) & masks.causal(), 3),
        (masks.sliding_window(5) & ~masks.prefix(2), 5),
        (masks.chunked(4) & masks.causal(), 4),
        (masks.causal(), None),
        (masks.window(2, 2), None),
        (masks.sliding_window(3) | masks.prefix(1), None),
        (~masks.sliding_window(3), None),
        (None, None),
    ],
    ids=str,
)
def test_a_window_is_what_a_mask_says_by_distance_alone(mask: Any, window: int | None) -> None:
    layer = layers.MultiHeadAttention(8, 2, mask=mask)
    assert layer.window == window
    if window is None:
        assert isinstance(layer.empty_cache(1, 12, like=X), KVCache)
        return
    cache, rows = layer.empty_cache(B, 12, like=X, circular=True), []
    assert isinstance(cache, CircularCache)
    assert isinstance(
        layer.empty_cache(B, window, like=X, circular=True), KVCache
    )  # no more tokens than a window
    params = drawn(layer)
    for n in (5, 1, 1, 5):
        start = cache.length
        out, cache, _ = layer.run(params, X[:, start : start + n], cache=cache)
        rows.append(out)
    right = 4 * noise(lambda number: layer(mapped(number, params), number(X[:, :12]))) * 2.0**-29
    assert np.abs(np.concatenate(rows, 1) - layer(params, X[:, :12])).max() <= right


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no window in a stack": (lambda: layers.Encoder(FAR, 2).empty_cache(1, 2, like=X, circular=True), "Encoder: expected a block with a window with circular=True, such as one with mask=masks.sliding_window(n), got none; leave circular out"),
    "no window in a layer": (lambda: FAR.empty_cache(1, 2, like=X, circular=True), "MultiHeadAttention: expected a window with circular=True, such as mask=masks.sliding_window(n), got None; leave circular out"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_ring_without_a_window_is_refused_with_a_sentence(name: str) -> None:
    call, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == f"polyattn.layers.{sentence}"
