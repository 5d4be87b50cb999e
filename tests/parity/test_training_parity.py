"""Who trains the same layer on PyTorch, on JAX or on NumPy sees the same loss curve, up to what rounding explains."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def training() -> Iterator[dict[str, Any]]:
    """The functions of the script that draws the figure; one thread, since its arrays are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(DOCS / "figures" / "loss_curves.py"))
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_three_users_who_train_the_same_layer_see_the_same_losses(training: dict[str, Any]) -> None:
    true, bound = training["in_float64"]()
    torch_losses, jax_losses = training["with_torch"](), training["with_jax"]()
    assert true.shape == (100,)
    assert true[-10:].mean() < true[:10].mean() / 5  # something is learnt
    assert (np.abs(torch_losses / true - 1) <= bound).all()
    assert (np.abs(jax_losses / true - 1) <= bound).all()
    assert (np.abs(training["with_numpy"]() / true - 1) <= bound).all()
    # The bound tells the curves of two trainings apart: it is far below what one step changes.
    assert bound.max() < np.median(np.abs(true[1:] / true[:-1] - 1)) / 1000


def test_the_roundings_of_a_step_are_those_of_float32(training: dict[str, Any]) -> None:
    """The model of rounding against real roundings: a long sum, taken one by one, of numbers of one sign and of both."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        rounded = jax.jit(training["rounded"](lambda x: x.sum()))
        for low in (0.0, -1.0):
            x = rng.uniform(low, 1.0, 4096).astype(np.float32)
            signs = rng.choice([-1.0, 1.0], (64, 8))
            wide = jnp.asarray(x, np.float64)
            modelled = np.asarray([rounded(jnp.asarray(s), wide) for s in signs]) - x.sum(dtype=np.float64)
            orders = (rng.permutation(x) for _ in range(64))
            real = np.asarray([np.cumsum(y)[-1] for y in orders], np.float64) - x.sum(dtype=np.float64)
            ratio = np.sqrt(np.mean(modelled**2) / np.mean(real**2))
            # Real roundings are uniform up to a bound of u/2 to u of the number, so the model's, +-u, are sqrt(3) to
            # 2 sqrt(3) times as large in the mean; a quarter more or less, since 64 sums are few.
            assert 0.75 * 3**0.5 < ratio < 1.25 * 2 * 3**0.5
