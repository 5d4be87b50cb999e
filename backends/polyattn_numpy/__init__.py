"""polyattn on NumPy: the reference."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp

from polyattn.backend import Array, Backend


class NumpyBackend(Backend):
    def compute_dtype(self, dtype: Any) -> Any:
        # By name, because ml_dtypes.bfloat16 is not a dtype of the array API namespace.
        if dtype.name in ("float16", "bfloat16", "float32"):
            return xp.dtype(xp.float32)
        return dtype if dtype.kind == "f" and dtype.itemsize >= 8 else None

    def to_list(self, x: Array) -> Any:
        return x.tolist()


backend = NumpyBackend("numpy", xp)
