"""NumPy with autograd on the test bench."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from polyattn.arrays import Array
from polyattn.parity.bench import Function
from polyattn.truth.spec import Floats
from polyattn_autograd import Tracked, backend, vjp

__all__ = ["AutogradBench", "bench"]


class AutogradBench:
    """NumPy with derivatives: what `attention_vjp` does not reach, layers and functions as score_mod."""

    name: str = "autograd"
    version = version("autograd")
    dtypes = ("float64", "float32")

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        return Tracked(x.copy() if x.dtype.kind != "f" or dtype is None else x.astype(dtype))

    def numpy(self, x: Array) -> Floats:
        values: Floats = backend.to_numpy(x)
        return values if values.dtype.kind in "biu" else values.astype(np.float64)

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        kept: list[Array] = []

        def out_of(leaves: Mapping[str, Array]) -> Array:
            out, lse = f(leaves)
            kept.append(Tracked(backend.to_numpy(lse)))
            return out

        with np.errstate(invalid="ignore"):  # NaN that was planted in hidden keys
            if cotangent is None:
                return (*f(arrays), None)
            out, pullback = vjp(out_of, {name: backend.to_numpy(x) for name, x in arrays.items()})
            found = pullback(backend.to_numpy(cotangent))
        return Tracked(out), kept[0], {name: Tracked(x) for name, x in found.items()}


bench = AutogradBench
