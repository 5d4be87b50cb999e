"""Layers of a port put into the reference, where nothing can be tapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import jnp, torch

from polyattn.parity import bisect

RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 16, 16)).astype(np.float32) / 4
X = RNG.normal(size=(2, 5, 16)).astype(np.float32)


def layer(i: int, change: float = 0.0, flipped: bool = False) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        h = x[..., ::-1] @ W[i][::-1] if flipped else x @ W[i]
        return x + np.tanh(h + np.float32(change))

    return call


def layers(wrong: dict[int, float] | None = None, flipped: bool = False) -> list[Callable[[Any], Any]]:
    return [layer(i, (wrong or {}).get(i, 0.0), flipped) for i in range(12)]


def test_right_layers_agree_whatever_the_order_of_their_sums() -> None:
    found = bisect(layers(), layers(flipped=True), X)
    assert found.agrees
    assert found.whole > 0
    assert str(found).startswith("AGREE: the layers of the port give what those of the reference give (eta ")


@pytest.mark.parametrize("wrong", [(0,), (11,), (3, 4), (2, 7, 9), tuple(range(12))])
def test_every_wrong_layer_is_found(wrong: tuple[int, ...]) -> None:
    found = bisect(layers(), layers(dict.fromkeys(wrong, 1e-3), flipped=True), X)
    assert found.wrong == wrong
    assert not found.agrees
    assert all(eta > 4 for eta in found.etas.values())
    assert f"with layer {wrong[0]} (eta " in str(found)
    assert found.runs <= 3 + 2 * len(wrong) * 4 + 1  # no more than halving takes


def test_a_model_says_itself_how_it_uses_its_layers() -> None:
    def run(stages: Any, x: Any) -> Any:
        return {"out": stages[1](stages[0](x)) + x}

    ours, theirs = layers()[:2], layers({1: 0.01})[:2]
    assert bisect(ours, theirs, X, run=run).wrong == (1,)


def test_layers_of_two_libraries_are_swapped() -> None:
    def in_torch(i: int, change: float) -> Callable[[Any], Any]:
        return lambda x: x + torch.tanh(x @ torch.from_numpy(W[i]) + change)

    def in_jax(i: int) -> Callable[[Any], Any]:
        return lambda x: x + jnp.tanh(x @ W[i])

    ours = [in_jax(i) for i in range(4)]
    convert = {
        "to_port": lambda x: torch.from_numpy(np.array(x)),
        "to_reference": lambda x: jnp.asarray(x.numpy()),
    }
    assert bisect(ours, [in_torch(i, 0.0) for i in range(4)], jnp.asarray(X), **convert).agrees
    theirs = [in_torch(i, 1e-3 * (i == 2)) for i in range(4)]
    assert bisect(ours, theirs, jnp.asarray(X), **convert).wrong == (2,)


def test_what_are_no_layers_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"polyattn\.parity\.bisect: expected a layer of the port for each .* 12 and 3"
    ):
        bisect(layers(), layers()[:3], X)
    with pytest.raises(TypeError, match="expected layers that can be called, got int; pass functions"):
        bisect([3], [4], X)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"expected run\(layers, x\) to return an array, got none"):
        bisect(layers(), layers(), X, run=lambda stages, x: None)
