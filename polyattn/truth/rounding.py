"""What rounding alone does to a computation: Monte Carlo arithmetic (Parker 1997) on NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Rounded", "noise"]

Floats = np.ndarray[Any, Any]


class Rounded(np.ndarray[Any, Any]):
    """float64 whose every operation errs like float32 with sums taken one by one (Monte Carlo arithmetic)."""

    rng = np.random.default_rng(0)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(x) for x in inputs]
        into = options.pop("out", None)
        out = np.asarray(getattr(ufunc, method)(*plain, **options))
        if out.dtype.kind != "f" or into is not None:  # in place: the division inside a mean
            return out if into is None else np.ndarray.__setitem__(into[0], ..., out) or into[0]
        size = np.abs(out)
        if ufunc is np.matmul:
            size = size + np.sqrt(plain[0].shape[-1] / 2 * (plain[0] ** 2 @ plain[1] ** 2))
        elif method == "reduce":
            size = size + np.sqrt(plain[0].size / out.size / 2 * np.add.reduce(plain[0] ** 2, **options))
        sign = 2.0 * self.rng.integers(0, 2, size=out.shape, dtype=np.int8) - 1.0
        return (out + 2.0**-24 * sign * size).view(Rounded)


def noise(f: Callable[[Callable[[Floats], Floats]], Floats], draws: int = 4) -> float:
    """The largest deviation of f in `draws` runs with float32 rounding from f in float64.

    f computes from arrays that it passes through the function it is given: `lambda number: layer(number(w), ...)`.
    """
    true = np.asarray(f(lambda x: np.asarray(x, np.float64)))
    rounded = (np.asarray(f(lambda x: np.asarray(x, np.float64).view(Rounded))) for _ in range(draws))
    return max(float(np.abs(x - true).max()) for x in rounded)
