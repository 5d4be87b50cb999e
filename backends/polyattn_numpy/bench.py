"""NumPy on the test bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyattn.arrays import Array
from polyattn.parity.bench import Function
from polyattn.truth.spec import Floats

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

__all__ = ["NumpyBench", "bench"]


class NumpyBench:
    """NumPy: no compiler, no derivatives."""

    name: str = "numpy"
    version = np.__version__
    dtypes = ("float64", "float32", "float16", *(() if bfloat16 is None else ("bfloat16",)))

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        if x.dtype.kind != "f" or dtype is None:
            return x.copy()
        with np.errstate(over="ignore"):
            return x.astype(bfloat16 if dtype == "bfloat16" else dtype)

    def numpy(self, x: Array) -> Floats:
        values: Floats = x if x.dtype.kind in "biu" else x.astype(np.float64)
        return values

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        with np.errstate(invalid="ignore"):  # NaN that was planted in hidden keys
            return (*f(arrays), None)


bench = NumpyBench
