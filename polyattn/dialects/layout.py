"""Where the axes of query, key, value and result lie."""

from __future__ import annotations

from polyattn.arrays import Array, backend_of

__all__ = ["pack", "unpack"]


def pack(layout: str, x: Array) -> Array:
    """(B, H, L, D) in a layout."""
    xp = backend_of(x).xp
    b, h, n, d = x.shape
    if layout == "BLHD":
        return xp.permute_dims(x, (0, 2, 1, 3))
    if layout == "LB(HD)":
        return xp.reshape(xp.permute_dims(x, (2, 0, 1, 3)), (n, b, h * d))
    if layout == "LBHD":
        return xp.permute_dims(x, (2, 0, 1, 3))
    if layout == "LHD":
        return xp.permute_dims(x[0, ...], (1, 0, 2))
    if layout in ("B(L HD)", "BL(HD)"):
        return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (b, n, h * d))
    if layout == "THD":
        return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (b * n, h, d))
    return x


def unpack(layout: str, x: Array, heads: int) -> Array:
    """An array in a layout as (B, H, L, D); of rank 2 and 3 too, where the layout has them.

    In "THD" all sequences are one item.
    """
    xp = backend_of(x).xp
    if layout in ("THD", "LHD"):
        return xp.permute_dims(x, (1, 0, 2))[None, ...]
    if layout == "LBHD":
        return xp.permute_dims(x, (1, 2, 0, 3))
    if layout in ("BHLD", "BLHD"):
        if x.ndim < 4:
            x = xp.reshape(x, (*(1,) * (4 - x.ndim), *x.shape))
        return x if layout == "BHLD" else xp.permute_dims(x, (0, 2, 1, 3))
    if layout == "LB(HD)":
        if x.ndim == 2:
            x = x[:, None, :]
        n, b = x.shape[:2]
        return xp.permute_dims(xp.reshape(x, (n, b, heads, x.shape[2] // max(heads, 1))), (1, 2, 0, 3))
    if x.ndim == 2:
        x = x[None, :, :]
    b, n = x.shape[:2]
    return xp.permute_dims(xp.reshape(x, (b, n, heads, x.shape[2] // max(heads, 1))), (0, 2, 1, 3))
