"""Pairs of entries, turned by given angles."""

from __future__ import annotations

from polyattn.arrays import Array, backend_of
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, flag, real, shown


@answers("polyattn.rotary.rotate")
def rotate(x: SameArray, cos: Array, sin: Array, *, interleaved: bool = False) -> SameArray:
    """Pairs (a, b) of the first entries of x as (a cos - b sin, a sin + b cos), the other entries as they are.

    x (..., D); cos and sin (..., width/2) broadcast to its leading axes, width <= D. Pairs as `Rotary` has them.

    >>> import numpy as np
    >>> rotate(np.array([1.0, 2.0, 7.0]), np.array([0.0]), np.array([1.0]))
    array([-2.,  1.,  7.])
    """
    who = "polyattn.rotary.rotate"
    backend = real(who, "x", x)
    for name, given in (("cos", cos), ("sin", sin)):
        if real(who, name, given) is not backend or given.ndim == 0:
            raise TypeError(
                f"{who}: expected {name} of the library of x, (..., width / 2), got {shown(given)}; convert it"
            )
    if x.ndim == 0:
        raise ValueError(f"{who}: expected x of shape (..., width), got a single number; give it an axis")
    interleaved = flag(who, "interleaved", interleaved)
    shape, lead = tuple(cos.shape), tuple(x.shape[:-1])
    fits = len(shape) <= x.ndim and all(
        n in (1, m) for n, m in zip(reversed(shape[:-1]), reversed(lead), strict=False)
    )
    if tuple(sin.shape) != shape or 2 * shape[-1] > x.shape[-1] or not fits:
        raise ValueError(
            f"{who}: expected cos and sin of one shape that broadcasts to {(*lead, x.shape[-1] // 2)}, or narrower, got "
            f"{shape} and {tuple(sin.shape)}; give one angle for each pair of entries"
        )
    compute, width = backend.compute_dtype(x.dtype), 2 * shape[-1]
    pairs, cos, sin = (backend.astype(part, compute) for part in (x[..., :width], cos, sin))
    turned = _turned(pairs, cos, sin, interleaved)
    return backend.xp.concat((backend.astype(turned, x.dtype), x[..., width:]), axis=-1)


def _turned(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Pairs (a, b) as (a cos - b sin, a sin + b cos): neighbours, or an entry and that half a width further."""
    xp, half = backend_of(x).xp, x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = a * cos - b * sin, a * sin + b * cos
    return xp.reshape(xp.stack(turned, axis=-1), x.shape) if interleaved else xp.concat(turned, axis=-1)
