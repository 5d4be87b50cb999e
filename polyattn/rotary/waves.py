"""Sinusoidal positions, which are added to embeddings."""

from __future__ import annotations

from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, real, size
from polyattn.rotary.angle import angles
from polyattn.rotary.scalings import checked_base, plain


@answers("polyattn.rotary.sinusoidal")
def sinusoidal(length: int, dim: int, like: SameArray, *, base: float = 10000.0) -> SameArray:
    """sin and cos of position * base^(-2i / dim) side by side, (length, dim), to be added to embeddings.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.5.

    >>> import numpy as np
    >>> sinusoidal(2, 2, np.zeros(())).round(4)
    array([[0.    , 1.    ],
           [0.8415, 0.5403]])
    """
    who = "polyattn.rotary.sinusoidal"
    length, dim = size(who, "length", length), size(who, "dim", dim)
    if dim < 2 or dim % 2:
        raise ValueError(f"{who}: expected an even dim of at least 2, got {dim}; sines come with cosines")
    base = checked_base(who, base)
    backend = real(who, "like", like, "which gives the library, the dtype and the device")
    xp = backend.xp
    compute = backend.compute_dtype(like.dtype)
    angle = angles(backend.arange(0, length, like)[:, None], plain(dim, base), compute)
    waves = xp.reshape(xp.stack((xp.sin(angle), backend.cos(angle)), axis=-1), (length, dim))
    return backend.astype(waves, like.dtype)
