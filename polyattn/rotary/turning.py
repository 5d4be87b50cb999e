"""Pairs of entries, turned by given angles."""

from __future__ import annotations

from polyattn.arrays import Array
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
    xp = backend.xp
    compute = backend.compute_dtype(x.dtype)
    width = 2 * cos.shape[-1]
    turned, cos, sin = (backend.astype(part, compute) for part in (x[..., :width], cos, sin))
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        pair = xp.stack((a * cos - b * sin, a * sin + b * cos), axis=-1)
        turned = xp.reshape(pair, turned.shape)
    else:
        a, b = turned[..., : width // 2], turned[..., width // 2 :]
        turned = xp.concat((a * cos - b * sin, a * sin + b * cos), axis=-1)
    return xp.concat((backend.astype(turned, x.dtype), x[..., width:]), axis=-1)
