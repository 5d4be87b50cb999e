"""Attention with linear biases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyattn.arrays import Array, backend_of, is_array
from polyattn.calls import answers, integer, number, real, shown
from polyattn.mods.mod import Mod, to_all
from polyattn.places import Positions, look_up

_WHO = "polyattn.mods.alibi"


@dataclass(frozen=True, eq=False)
class Alibi(Mod):
    slopes: tuple[float, ...] | Array
    compares_positions = True

    @property
    def heads(self) -> int:  # type: ignore[override]
        return len(self.slopes) if isinstance(self.slopes, tuple) else int(self.slopes.shape[-1])

    @property
    def batch(self) -> int | None:  # type: ignore[override]
        return None if isinstance(self.slopes, tuple) or self.slopes.ndim == 1 else int(self.slopes.shape[0])

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        backend = backend_of(score)
        slopes = self.slopes
        if isinstance(slopes, tuple):
            slope = look_up(slopes, h, score.dtype)
        else:
            slope = slopes[(h,) if slopes.ndim == 1 else (b, h)]
        distance = backend.astype(abs(q_idx - kv_idx), score.dtype)
        return score - backend.astype(slope, score.dtype) * distance

    def derivative(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        if not is_array(self.slopes):
            return cotangent, ()
        backend = backend_of(score)
        distance = backend.astype(abs(at.q - at.kv), score.dtype)
        found = -backend.xp.sum(cotangent * distance, axis=(2, 3))  # (b, h) of the tile
        if self.batch is None:
            found = backend.xp.sum(found, axis=0, keepdims=True)
        found = to_all(found, at.h, self.heads)
        if self.batch is None:
            return cotangent, (found[0, :],)
        turned = backend.xp.matrix_transpose
        return cotangent, (turned(to_all(turned(found), at.b, self.batch)),)


@answers("polyattn.mods.alibi")
def alibi(slopes: int | Sequence[float] | Array) -> Mod:
    """s -> s - slope_h * |q - kv|: attention with linear biases (Press 2021, arXiv:2108.12409, section 3).

    slopes: (Hq,) numbers, or an array that autodiff can see, (Hq,) or (B, Hq) with slopes of their own for each
    batch item; an integer asks for the paper's slopes of that many heads (`alibi_slopes`). Under a causal mask |q - kv| is the paper's q - kv.

    >>> import numpy as np
    >>> q, kv, h = np.arange(2)[:, None], np.arange(2), np.array(0)
    >>> alibi([0.5])(np.zeros((2, 2)), None, h, q, kv)
    array([[ 0. , -0.5],
           [-0.5,  0. ]])
    """
    if isinstance(slopes, int):
        slopes = alibi_slopes(slopes)
    if is_array(slopes):
        real(_WHO, "slopes", slopes)
        if slopes.ndim not in (1, 2):
            raise ValueError(
                f"{_WHO}: expected slopes of shape (Hq,) or (B, Hq), got {tuple(slopes.shape)}; give one "
                "per head, or one per batch item and head"
            )
        return Alibi(slopes)
    if not isinstance(slopes, Sequence) or isinstance(slopes, str):
        raise TypeError(
            f"{_WHO}: expected slopes as numbers or an array of shape (Hq,), or the number of heads, got "
            f"{shown(slopes)}; write mods.alibi(8) for the slopes of the paper for 8 heads"
        )
    return Alibi(tuple(float(number(_WHO, "every slope", slope)) for slope in slopes))


@answers("polyattn.mods.alibi_slopes")
def alibi_slopes(heads: int) -> list[float]:
    """The slopes of ALiBi: 2^(-8/n), 2^(-16/n), ... for a power of two n, else those of the power below
    followed by every other one of the power above.

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    heads = integer("polyattn.mods.alibi_slopes", "heads", heads, 1, "pass the number of heads", most=2**16)
    below = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    return slopes + [2.0 ** (-4 * (i + 1) / below) for i in range(0, 2 * (heads - below), 2)]
