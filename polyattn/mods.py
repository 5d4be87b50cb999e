"""Score modifications: functions (score, b, h, q_idx, kv_idx) -> score, as FlexAttention has them.

They act on scale * (q . k), before the bias and the mask. Those built in carry their parameters as
arrays, so autodiff sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from polyattn.arrays import Array, backend_of, is_array
from polyattn.places.positions import Positions, look_up

ScoreMod = Callable[[Array, Array, Array, Array, Array], Array]


class Mod:
    """A built-in score modification."""

    #: Whether it compares query positions with key positions, so that it needs to know the offset.
    compares_positions = False
    #: The number of heads that it has parameters for; None for any.
    heads: int | None = None

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        raise NotImplementedError

    def pull_back(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        """The gradients for the score and for the arrays of the modification."""
        raise NotImplementedError

    def built_in(self) -> Iterator[Mod]:
        """The built-in modifications that this one consists of."""
        yield self

    def arrays(self) -> Iterator[Array]:
        """The arrays that the modification holds."""
        for part in self.built_in():
            for field in fields(part):  # type: ignore[arg-type]
                if is_array(value := getattr(part, field.name)):
                    yield value


@dataclass(frozen=True, eq=False)
class Softcap(Mod):
    cap: float | Array

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        return backend_of(score).xp.tanh(score / self.cap) * self.cap

    def pull_back(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        xp = backend_of(score).xp
        bent = xp.tanh(score / self.cap)
        slope = (1.0 - bent) * (1.0 + bent)
        if not is_array(self.cap):
            return cotangent * slope, ()
        return cotangent * slope, (xp.sum(cotangent * (bent - score / self.cap * slope)),)


@dataclass(frozen=True, eq=False)
class Alibi(Mod):
    slopes: tuple[float, ...] | Array
    compares_positions = True

    @property
    def heads(self) -> int:  # type: ignore[override]
        return len(self.slopes) if isinstance(self.slopes, tuple) else int(self.slopes.shape[0])

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        backend = backend_of(score)
        slopes = self.slopes
        slope = look_up(slopes, h, score.dtype) if isinstance(slopes, tuple) else slopes[(h,)]
        distance = backend.astype(abs(q_idx - kv_idx), score.dtype)
        return score - backend.astype(slope, score.dtype) * distance

    def pull_back(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        if not is_array(self.slopes):
            return cotangent, ()
        backend = backend_of(score)
        distance = backend.astype(abs(at.q - at.kv), score.dtype)
        per_head = backend.xp.sum(cotangent * distance, axis=(0, 2, 3))
        return cotangent, (-_to_heads(per_head[None, :], at.h, self.slopes.shape[0])[0, :],)


@dataclass(frozen=True, eq=False)
class RelativePositionBias(Mod):
    table: Array
    bidirectional: bool
    max_distance: int
    compares_positions = True

    @property
    def heads(self) -> int:  # type: ignore[override]
        return int(self.table.shape[1])

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        backend = backend_of(score)
        bucket = relative_bucket(
            kv_idx - q_idx,
            self.table.shape[0],
            bidirectional=self.bidirectional,
            max_distance=self.max_distance,
        )
        return score + backend.astype(self.table[bucket, h], score.dtype)

    def pull_back(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        backend = backend_of(score)
        xp, buckets = backend.xp, self.table.shape[0]
        bucket = relative_bucket(
            at.kv - at.q, buckets, bidirectional=self.bidirectional, max_distance=self.max_distance
        )
        per_bucket = [xp.sum(xp.where(bucket == n, cotangent, 0.0), axis=(0, 2, 3)) for n in range(buckets)]
        return cotangent, (_to_heads(xp.stack(per_bucket), at.h, self.table.shape[1]),)


@dataclass(frozen=True, eq=False)
class Compose(Mod):
    parts: tuple[ScoreMod, ...]

    @property
    def compares_positions(self) -> bool:  # type: ignore[override]
        return any(compares_positions(part) for part in self.parts)

    def built_in(self) -> Iterator[Mod]:
        for part in self.parts:
            if isinstance(part, Mod):
                yield from part.built_in()

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, kv_idx: Array) -> Array:
        for part in self.parts:
            score = part(score, b, h, q_idx, kv_idx)
        return score

    def pull_back(self, score: Array, at: Positions, cotangent: Array) -> tuple[Array, tuple[Array, ...]]:
        entering = [score]
        for part in self.parts[:-1]:
            entering.append(part(entering[-1], at.b, at.h, at.q, at.kv))
        gradients: tuple[Array, ...] = ()
        for part, before in zip(reversed(self.parts), reversed(entering), strict=True):
            cotangent, own = _pull_back(part, before, at, cotangent)
            gradients = own + gradients
        return cotangent, gradients


def softcap(cap: float | Array) -> Mod:
    """s -> cap * tanh(s / cap): scores bounded by cap > 0 (Gemma 2, arXiv:2408.00118, section 2).

    cap: a number, or a 0-d array that autodiff can see.

    >>> import numpy as np
    >>> softcap(2.0)(np.array([0.0, 100.0]), None, None, None, None)
    array([0., 2.])
    """
    if isinstance(cap, bool) or not (isinstance(cap, (int, float)) or (is_array(cap) and cap.ndim == 0)):
        raise TypeError(f"polyattn.mods.softcap: expected a number or a 0-d array, got {cap!r}; pass cap > 0")
    known: float | None = None
    if not is_array(cap):
        known = cap
    elif (backend := backend_of(cap)).is_concrete(cap):
        known = backend.to_list(cap)
    if known is not None and not 0 < known < math.inf:
        raise ValueError(
            f"polyattn.mods.softcap: expected cap > 0 and finite, got {known!r}; leave the mod out for no cap"
        )
    return Softcap(cap)


def alibi(slopes: int | Sequence[float] | Array) -> Mod:
    """s -> s - slope_h * |q - kv|: attention with linear biases (Press 2021, arXiv:2108.12409, section 3).

    slopes: (Hq,) numbers, or an array that autodiff can see; an integer asks for the paper's slopes of
    that many heads (`alibi_slopes`). Under a causal mask |q - kv| is the paper's q - kv.

    >>> import numpy as np
    >>> q, kv, h = np.arange(2)[:, None], np.arange(2), np.array(0)
    >>> alibi([0.5])(np.zeros((2, 2)), None, h, q, kv)
    array([[ 0. , -0.5],
           [-0.5,  0. ]])
    """
    if isinstance(slopes, int):
        slopes = alibi_slopes(slopes)
    if is_array(slopes):
        if slopes.ndim != 1:
            raise ValueError(
                f"polyattn.mods.alibi: expected slopes of shape (Hq,), got {tuple(slopes.shape)}; give one per head"
            )
        return Alibi(slopes)
    return Alibi(tuple(float(slope) for slope in slopes))


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of ALiBi: 2^(-8/n), 2^(-16/n), ... for a power of two n, else those of the power below
    followed by every other one of the power above.

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    if heads < 1:
        raise ValueError(
            f"polyattn.mods.alibi_slopes: expected heads >= 1, got {heads}; pass the number of heads"
        )
    below = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    return slopes + [2.0 ** (-4 * (i + 1) / below) for i in range(0, 2 * (heads - below), 2)]


def relative_position_bias(table: Array, *, bidirectional: bool = True, max_distance: int = 128) -> Mod:
    """s -> s + table[bucket(kv - q), h]: the learned buckets of T5 (Raffel 2019, arXiv:1910.10683, section 2.1).

    table: (buckets, Hq), differentiable. bidirectional: keys after the query have buckets of their own
    (encoders); otherwise they share bucket 0 (decoders). max_distance: all keys farther share one bucket.

    >>> import numpy as np
    >>> table = np.arange(8.0)[:, None]
    >>> q, kv, h = np.arange(2)[:, None], np.arange(3), np.array(0)
    >>> relative_position_bias(table)(np.zeros((2, 3)), None, h, q, kv)
    array([[0., 5., 6.],
           [1., 0., 5.]])
    """
    if not is_array(table) or table.ndim != 2:
        raise ValueError(
            "polyattn.mods.relative_position_bias: expected a table of shape (buckets, Hq), got "
            f"{tuple(table.shape) if hasattr(table, 'dtype') else type(table).__name__}; give one column per head"
        )
    exact = table.shape[0] // (4 if bidirectional else 2)
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"polyattn.mods.relative_position_bias: expected at least {4 if bidirectional else 2} buckets and "
            f"max_distance beyond the {exact} exact ones, got {table.shape[0]} and {max_distance}; "
            "T5 has 32 buckets and 128"
        )
    return RelativePositionBias(table, bidirectional, max_distance)


def relative_bucket(distance: Array, buckets: int, *, bidirectional: bool, max_distance: int) -> Array:
    """The T5 bucket of kv - q: one each for small distances, logarithmic up to max_distance, then one.

    >>> import numpy as np
    >>> relative_bucket(np.array([-200, -8, -1, 0, 1]), 32, bidirectional=True, max_distance=128)
    array([15,  8,  1,  0, 17], dtype=int32)
    """
    backend = backend_of(distance)
    xp = backend.xp
    distance = backend.astype(distance, xp.int32)
    if bidirectional:
        buckets //= 2
        start = backend.astype(distance > 0, xp.int32) * buckets
        distance = abs(distance)
    else:
        start = 0
        distance = xp.where(distance > 0, 0, -distance)
    exact = buckets // 2
    # The logarithmic buckets begin where the integers say so: no logarithm of rounded numbers.
    bucket = xp.where(distance < exact, distance, exact)
    for step in range(1, buckets - exact):
        begins = exact * (max_distance / exact) ** (step / (buckets - exact))
        bucket = bucket + backend.astype(distance >= math.ceil(begins - 1e-9), xp.int32)
    return bucket + start


def compose(*mods: ScoreMod) -> Mod:
    """The modifications one after the other, the first one first.

    >>> import numpy as np
    >>> compose(lambda s, b, h, q, kv: s + 1, lambda s, b, h, q, kv: 2 * s)(np.array(1.0), 0, 0, 0, 0)
    np.float64(4.0)
    """
    for mod in mods:
        if not callable(mod):
            raise TypeError(
                "polyattn.mods.compose: expected functions (score, b, h, q_idx, kv_idx) -> score, "
                f"got {mod!r}; an array of additive values is attention's bias="
            )
    return Compose(mods)


def parameters(mod: ScoreMod | None) -> tuple[Array, ...]:
    """The arrays of a modification that have derivatives."""
    return tuple(mod.arrays()) if isinstance(mod, Mod) else ()


def functions(mod: ScoreMod | None) -> tuple[ScoreMod, ...]:
    """The functions in a modification that are not built in."""
    if isinstance(mod, Compose):
        return tuple(f for part in mod.parts for f in functions(part))
    return () if mod is None or isinstance(mod, Mod) else (mod,)


def pull_back(
    mod: ScoreMod, score: Array, at: Positions, cotangent: Array, allowed: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """Gradients for scale (q . k) of a tile and for `parameters(mod)`; hidden scores have none."""
    if allowed is None:
        return _pull_back(mod, score, at, cotangent)
    xp = backend_of(score).xp
    d_score, own = _pull_back(mod, xp.where(allowed, score, 0.0), at, cotangent)
    return xp.where(allowed, d_score, 0.0), own


def _pull_back(
    mod: ScoreMod, score: Array, at: Positions, cotangent: Array
) -> tuple[Array, tuple[Array, ...]]:
    if isinstance(mod, Mod):
        return mod.pull_back(score, at, cotangent)
    return backend_of(score).derivative(lambda s: mod(s, at.b, at.h, at.q, at.kv), score, cotangent), ()


def _to_heads(x: Array, h: Array, heads: int) -> Array:
    """(n, h) gradients of the heads `h` of a tile, as (n, heads) of all."""
    backend = backend_of(x)
    here = backend.xp.reshape(h, (-1, 1)) == backend.arange(0, heads, x)
    return backend.matmul(x, backend.astype(here, x.dtype))


def compares_positions(mod: ScoreMod) -> bool:
    """Whether a modification may depend on where queries and keys stand to each other."""
    return mod.compares_positions if isinstance(mod, Mod) else True
