"""Arithmetic that the array API standard leaves open: dtypes of sums, precision of products, special functions."""

from __future__ import annotations

from typing import Any, TypeVar

import array_api_compat

from polyattn.arrays.special import erf

Array = Any
#: In a signature: what comes out is an array of the library, and of the type, of what went in.
SameArray = TypeVar("SameArray", bound=Any)
Namespace = Any


class Numbers:
    """The part of a `Backend` that computes."""

    xp: Namespace

    def compute_dtype(self, dtype: Any) -> Any:
        """The dtype in which sums over `dtype` are carried, or None if it is not real floating.

        At least float32; float64 stays float64.
        """
        xp = self.xp
        if not self.isdtype(dtype, "real floating"):
            return None
        return xp.float32 if xp.finfo(dtype).bits < 32 else dtype

    def isdtype(self, dtype: Any, kind: str | tuple[str, ...]) -> bool:
        """As the standard has it; False for what a library has beside the standard, as keys and bfloat16."""
        try:
            return bool(self.xp.isdtype(dtype, kind))
        except (TypeError, ValueError):
            return False

    def astype(self, x: Array, dtype: Any) -> Array:
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def matmul(self, a: Array, b: Array) -> Array:
        """`a @ b` of two arrays in the compute dtype, to the full precision of that dtype."""
        return self.xp.matmul(a, b)

    def linear(self, x: Array, w: Array) -> Array:
        """`x @ w` of (n, a) and (a, b) in x's dtype, summed in the compute dtype, as precise as the user has set."""
        compute = self.compute_dtype(x.dtype)
        return self.astype(self.matmul(self.astype(x, compute), self.astype(w, compute)), x.dtype)

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        """x at the places `indices`, (n,) integers of any width, along an axis."""
        xp = self.xp
        if xp.iinfo(indices.dtype).bits < 32:  # no index for PyTorch
            indices = self.astype(indices, xp.int32)
        return xp.take(x, indices, axis=axis)

    def clip(self, x: Array, least: int, most: int) -> Array:
        """x, brought to the nearer of two bounds."""
        return self.xp.clip(x, least, most)

    def cos(self, x: Array) -> Array:
        """The cosine, to the full precision of x's dtype."""
        return self.xp.cos(x)

    def cumulative_sum(self, x: Array, axis: int) -> Array:
        """The sums of the first 1, 2, ... entries along an axis."""
        return self.xp.cumulative_sum(x, axis=axis)

    def erf(self, x: Array) -> Array:
        """The error function, which the standard lacks."""
        return erf(x, self.xp)

    # making arrays

    def device(self, x: Array) -> Any:
        """The device on which new arrays for use beside `x` are made; None lets the library choose."""
        return array_api_compat.device(x)

    def arange(self, start: int, stop: int, like: Array) -> Array:
        """int32 positions start .. stop-1 on the device of `like`."""
        return self.xp.arange(start, stop, dtype=self.xp.int32, device=self.device(like))

    def asarray(self, value: Any, dtype: Any, like: Array) -> Array:
        """Python numbers as an array on the device of `like`."""
        return self.xp.asarray(value, dtype=dtype, device=self.device(like))
