"""Values out of one library and into another."""

from __future__ import annotations

from typing import Any

from polyattn.arrays.numbers import Array, Numbers


class Interchange(Numbers):
    """The part of a `Backend` that reads values and brings them in."""

    def to_list(self, x: Array) -> Any:
        """The values of a concrete array as nested Python lists (a number if 0-d)."""
        if x.ndim == 0:
            kind = self.xp.isdtype
            return bool(x) if kind(x.dtype, "bool") else int(x) if kind(x.dtype, "integral") else float(x)
        return [self.to_list(x[i, ...]) for i in range(x.shape[0])]

    def to_numpy(self, x: Array) -> Array:
        """The values as a NumPy array of the same dtype; a copy where the library has its own memory."""
        import array_api_compat.numpy as numpy

        return numpy.asarray(x)

    def from_numpy(self, x: Array, like: Array) -> Array:
        """A copy of a NumPy array in this library, on the device of `like`, of the same dtype if it has that."""
        return self.xp.asarray(copied(x), device=self.device(like))

    def block_mask(
        self, mask: Any, b: int | None, h: int | None, rows: int, keys: int, **options: Any
    ) -> Any:
        """A polyattn mask as FlexAttention's BlockMask."""
        raise TypeError(
            "polyattn.masks: expected PyTorch, which has FlexAttention, for a BlockMask; use mask.dense"
        )


def copied(x: Any) -> Any:
    """A NumPy array anew, in the byte order of this machine and without odd strides: all that most libraries know."""
    import array_api_compat.numpy as numpy

    return numpy.asarray(x, dtype=x.dtype.newbyteorder("="), copy=True, order="C")
