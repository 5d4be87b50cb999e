"""A layer on a library: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, torch

from polyattn.testing import Bench, MissingBench, load_bench

Floats = np.ndarray[Any, Any]
LIBRARIES = ["numpy", "autograd", "strict", "jax", "torch"]  # those that compute


@cache
def bench_of(library: str) -> Bench:
    try:
        return load_bench(library)
    except MissingBench:
        pytest.skip(f"{library} is not installed")


def mapped(f: Callable[[Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """f of every leaf of nested dicts."""
    return {name: mapped(f, x) if isinstance(x, Mapping) else f(x) for name, x in tree.items()}


def sixteen(x: Floats) -> Floats:
    """Rounded to 8 binary places, so that float16 holds it."""
    return np.round(x * 256) / 256


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> Floats:
    return sixteen(np.random.default_rng([seed, *shape]).normal(size=shape) * size)


def drawn(layer: Any, seed: int = 0, size: float = 0.5) -> dict[str, Any]:
    """Random float64 params for a layer, biases and norms too."""
    rng = np.random.default_rng(seed)
    return mapped(lambda shape: sixteen(rng.normal(size=shape) * size), layer.shapes())


def applied(
    library: str, layer: Any, params: Mapping[str, Any], *inputs: Any, dtype: str = "float32", **options: Any
) -> Any:
    """layer(params, *inputs, **options) with the arrays in that dtype, compiled by JAX.

    Options that are arrays are converted, others are constants. Gives NumPy arrays.
    """
    bench = bench_of(library)

    def given(x: Any) -> Any:
        return bench.array(x, dtype) if isinstance(x, np.ndarray) else x

    options = {name: given(x) for name, x in options.items()}

    def run(params: Any, *inputs: Any) -> Any:
        return layer(params, *inputs, **options)

    with jax.enable_x64(dtype == "float64") if library == "jax" else nullcontext():
        f = jax.jit(run) if library == "jax" else run
        return numpied(bench, f(mapped(given, params), *map(given, inputs)))


def decoded(
    run: Callable[..., Any], params: Any, x: Any, cache: Any, pieces: Sequence[int]
) -> tuple[list[Any], Any]:
    """The rows (B, n, E) of every piece of x (B, L, E), and the cache in the end."""
    rows, start = [], 0
    for n in pieces:
        out, cache, _ = run(params, x[:, start : start + n, :], cache=cache)
        rows.append(out)
        start += n
    return rows, cache


def numpied(bench: Bench, found: Any) -> Any:
    """Arrays as NumPy arrays, tuples (named ones too) part by part."""
    if isinstance(found, tuple):
        parts = (numpied(bench, x) for x in found)
        return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)
    return bench.numpy(found) if hasattr(found, "dtype") else found


def torch_gradients(f: Callable[..., Any], params: Mapping[str, Any], x: Floats, dtype: str) -> list[Floats]:
    """Of (f(params, x) * x).sum() in PyTorch: of every parameter, in their order, then of x."""
    leaves: list[Any] = []

    def leaf(w: Floats) -> Any:
        leaves.append(torch.from_numpy(w).to(getattr(torch, dtype)).requires_grad_())
        return leaves[-1]

    held, at = mapped(leaf, params), leaf(x)
    (f(held, at) * at).sum().backward()
    return [w.grad.double().numpy() for w in leaves]


def apart(some: Sequence[Floats], others: Sequence[Floats]) -> float:
    """The largest difference of any two entries."""
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))
