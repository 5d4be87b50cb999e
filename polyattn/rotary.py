"""Where a token stands, said in its vector: sinusoidal and rotary position embeddings."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.arrays.numbers import SameArray
from polyattn.calls import answers, array, check_layout, flag, integer, number, real, shown, size

__all__ = ["Rotary", "angles", "rotate", "sinusoidal"]

_WHO = "polyattn.rotary.Rotary"


@answers("polyattn.rotary.Rotary", "settings")
@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: pairs of entries are turned by position * base^(-2i / width).

        (a, b) -> (a cos t - b sin t, a sin t + b cos t),   t = position * base^(-2i / width), i = 0, 1, ...

    Then q . k depends on positions only by their difference. width: the entries that are turned, the first
    ones of D (None = all). interleaved: pairs are (0, 1), (2, 3), ... (Meta's Llama); otherwise entry i
    and entry i + width/2 (Hugging Face, Equinox, ONNX). See `polyattn.weights.interleaved_to_half`.
    Angles are reduced to one turn exactly, so that positions up to 2^17 cost float32 no accuracy.

    Source: Su 2021, arXiv:2104.09864, equation 34.

    >>> import numpy as np
    >>> Rotary()(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])).round(4)
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """

    _: KW_ONLY
    base: float = 10000.0
    width: int | None = None
    interleaved: bool = False

    def __post_init__(self) -> None:
        _checked_base(_WHO, self.base)
        if self.width is not None:
            integer(_WHO, "width", self.width)
        flag(_WHO, "interleaved", self.interleaved)

    @answers(_WHO, line="rotary")
    def __call__(self, x: SameArray, positions: Array, *, layout: str = "BHLD") -> SameArray:
        """x (..., H, L, D), or (..., L, H, D) with layout "BLHD", turned to positions, integers (L,) or (B, L)."""
        backend = real(_WHO, "x", x)
        check_layout(_WHO, layout, "x (batch, heads, length, width)")
        if x.ndim < (2 if layout == "BHLD" else 3):
            raise ValueError(
                f"{_WHO}: expected x of shape (..., length, width), got {tuple(x.shape)}; add the axes that are missing"
            )
        width = x.shape[-1] if self.width is None else self.width
        if width % 2 or not 0 < width <= x.shape[-1]:
            raise ValueError(
                f"polyattn.rotary.Rotary: expected an even width of at most {x.shape[-1]}, the width of x, got "
                f"{width}; entries are turned in pairs"
            )
        _check_positions(x, positions, layout)
        angle = angles(positions, width, self.base, backend.compute_dtype(x.dtype))  # (L|B L, width/2)
        if layout == "BLHD":
            angle = angle[..., None, :]
        elif positions.ndim > 1 and x.ndim > 3:
            angle = angle[:, None, ...]
        return rotate(x, backend.cos(angle), backend.xp.sin(angle), interleaved=self.interleaved)


def _checked_base(who: str, base: Any) -> float:
    found = number(who, "base", base)
    if not 0 < found < math.inf:
        raise ValueError(f"{who}: expected base > 0 and finite, got {base!r}; it is 10000.0 in most models")
    return found


def _check_positions(x: Array, positions: Any, layout: str) -> None:
    backend = array(_WHO, "positions", positions, "one for each token")
    if backend is not backend_of(x):
        raise TypeError(
            f"{_WHO}: expected positions of the library of x, {backend_of(x).name}, got {backend.name}; convert them"
        )
    length = x.shape[-3] if layout == "BLHD" else x.shape[-2]
    if not backend.isdtype(positions.dtype, ("integral", "real floating")):
        raise TypeError(f"{_WHO}: expected positions of numbers, got {positions.dtype}; number the tokens")
    shape = tuple(positions.shape)
    if (
        len(shape) == 0
        or shape[-1] not in (1, length)
        or (len(shape) > 1 and shape[0] not in (1, x.shape[0]))
    ):
        raise ValueError(
            f"{_WHO}: expected positions of shape ({length},) or (B, {length}), one for each token of x "
            f"{tuple(x.shape)} in layout {layout}, got {shape}; write arange({length}) + offset"
        )


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
    base = _checked_base(who, base)
    backend = real(who, "like", like, "which gives the library, the dtype and the device")
    xp = backend.xp
    compute = backend.compute_dtype(like.dtype)
    angle = angles(backend.arange(0, length, like), dim, base, compute)
    waves = xp.reshape(xp.stack((xp.sin(angle), backend.cos(angle)), axis=-1), (length, dim))
    return backend.astype(waves, like.dtype)


def angles(positions: Array, width: int, base: float, dtype: Any) -> Array:
    """position * base^(-2i / width) for i < width/2, reduced to [-pi, pi]: (..., width/2).

    A frequency in turns is cut into digits of 7 bits: a position below 2^17 times a digit is exact in
    float32, and so is what remains of it after whole turns. Only the last digits round.
    """
    backend = backend_of(positions)
    xp = backend.xp
    position = backend.astype(positions, dtype)[..., None]
    turns = 0.0 * position
    digits = _digits(width, base)
    for k, row in enumerate(digits):
        part = position * backend.asarray(row, dtype, positions) * 2.0 ** (-7 * (k + 1))
        turns = turns + (part - xp.round(part))
    return 2.0 * math.pi * (turns - xp.round(turns))


def _digits(width: int, base: float) -> list[list[float]]:
    """The frequencies base^(-2i / width) / 2 pi in digits to base 2^7, the most significant first."""
    rest = [base ** (-2 * i / width) / (2 * math.pi) for i in range(width // 2)]
    rows = []
    for _ in range(8):
        rest = [128.0 * x for x in rest]
        rows.append([float(math.floor(x)) for x in rest])
        rest = [x - math.floor(x) for x in rest]
    return rows
