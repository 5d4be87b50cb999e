"""JAX on the test bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from polyattn.arrays import Array
from polyattn.parity.bench import Function
from polyattn.truth.spec import Floats

__all__ = ["JaxBench", "bench"]


class JaxBench:
    """JAX, compiled by default; float64 inside a local x64 scope, the global flag untouched."""

    name: str = "jax"
    version: str = jax.__version__
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")
    pace = 0.4  # seconds for a result, most of them to compile (2026-11)

    notes: Mapping[str, tuple[str, ...]] = {"float64": ("x64 was enabled for this call alone",)}

    def __init__(self, jit: bool = True) -> None:
        self.jit = jit

    @property
    def uncompiled(self) -> JaxBench:
        return JaxBench(jit=False)

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        with jax.enable_x64(dtype == "float64"):
            return jax.numpy.asarray(x, dtype if x.dtype.kind == "f" else None)

    def numpy(self, x: Array) -> Floats:
        values = np.asarray(x)
        return values if values.dtype.kind in "biu" else values.astype(np.float64)

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        wide = any(x.dtype == np.float64 for x in arrays.values())

        def everything(arrays: Any, cotangent: Any) -> Any:
            if cotangent is None:
                return (*f(arrays), None)
            out, pullback, lse = jax.vjp(f, arrays, has_aux=True)
            return out, lse, pullback(cotangent)[0]

        with jax.enable_x64(wide):
            return (jax.jit(everything) if self.jit else everything)(dict(arrays), cotangent)


bench = JaxBench
