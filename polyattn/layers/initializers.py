"""Initial weights: the same numbers on every array library for the same seed.

The words of the counter-based generator of `polyattn.dropout` are integers, equal everywhere; a uniform
number is one rounding away from them, and a normal one goes through the standard library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from polyattn.arrays import Array, backend_of, numpy_backend
from polyattn.calls import answers, flag, number, shown
from polyattn.dropout import key_of, threefry2x32

__all__ = ["Constant", "Distribution", "Normal", "Uniform"]


class Distribution:
    """What the entries of a parameter are drawn from, independently."""

    def draw(self, shape: tuple[int, ...], seed: int, stream: int, like: Array) -> Array:
        """An array of `shape` in the library, dtype and on the device of `like`."""
        raise NotImplementedError


@answers("polyattn.layers.Constant", "settings")
@dataclass(frozen=True)
class Constant(Distribution):
    """Every entry is `value`."""

    value: float

    def __post_init__(self) -> None:
        number("polyattn.layers.Constant", "value", self.value)

    def draw(self, shape: tuple[int, ...], seed: int, stream: int, like: Array) -> Array:
        backend = backend_of(like)
        return backend.xp.full(shape, self.value, dtype=like.dtype, device=backend.device(like))


@answers("polyattn.layers.Uniform", "settings")
@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform on [-limit, limit)."""

    limit: float

    def __post_init__(self) -> None:
        number("polyattn.layers.Uniform", "limit", self.limit)

    def draw(self, shape: tuple[int, ...], seed: int, stream: int, like: Array) -> Array:
        backend, xp = backend_of(like), numpy_backend().xp
        # 24 bits with a sign are exact in float32, so that one product is the only rounding.
        numbers = xp.astype(_words(shape, seed, stream) >> 8, xp.float32) * (self.limit * 2.0**-23)
        return backend.astype(backend.from_numpy(numbers, like), like.dtype)


@answers("polyattn.layers.Normal", "settings")
@dataclass(frozen=True)
class Normal(Distribution):
    """Normal with mean 0; cut at two standard deviations and widened to `std` again if truncated."""

    std: float
    truncated: bool = False

    def __post_init__(self) -> None:
        number("polyattn.layers.Normal", "std", self.std)
        flag("polyattn.layers.Normal", "truncated", self.truncated)

    def draw(self, shape: tuple[int, ...], seed: int, stream: int, like: Array) -> Array:
        backend = backend_of(like)
        normal = NormalDist()
        low = normal.cdf(-2.0) if self.truncated else 0.0
        # std of the cut distribution: 1 - 4 pdf(2) / (1 - 2 cdf(-2)) is its variance
        std = self.std / math.sqrt(1 - 4 * normal.pdf(2) / (1 - 2 * low)) if self.truncated else self.std
        words = _words((math.prod(shape),), seed, stream).tolist()
        numbers = [std * normal.inv_cdf(low + (1 - 2 * low) * ((w + 2**31 + 0.5) * 2.0**-32)) for w in words]
        # By way of the compute dtype everywhere, as PyTorch goes to half precision: two roundings.
        xp, wide = numpy_backend().xp, backend.xp.finfo(backend.compute_dtype(like.dtype)).bits > 32
        drawn = xp.reshape(xp.asarray(numbers, dtype=xp.float64 if wide else xp.float32), shape)
        return backend.astype(backend.from_numpy(drawn, like), like.dtype)


def _words(shape: tuple[int, ...], seed: int, stream: int) -> Array:
    """Random int32 words, a function of seed, stream and index alone; drawn on NumPy, which compiles nothing."""
    xp = numpy_backend().xp
    index = xp.arange(0, math.prod(shape), dtype=xp.int32)
    zero = xp.zeros_like(index)
    key0, key1 = key_of(seed, stream)
    word, _ = threefry2x32(zero + xp.int32(key0), zero + xp.int32(key1), zero, index)
    return xp.reshape(word, shape)


ZEROS = Constant(0.0)
ONES = Constant(1.0)

#: Names of the field -> the distribution for a weight that takes fan_in numbers to fan_out.
INITIALIZERS: dict[str, Any] = {
    "glorot_uniform": lambda fan_in, fan_out: Uniform(math.sqrt(6 / (fan_in + fan_out))),
    "lecun_normal": lambda fan_in, fan_out: Normal(math.sqrt(1 / fan_in), truncated=True),
    "torch_linear": lambda fan_in, fan_out: Uniform(math.sqrt(1 / fan_in)),
}


def initializer(who: str, name: str | Distribution, fan_in: int, fan_out: int) -> Distribution:
    """The distribution of that name, or the one given.

    glorot_uniform: U(+-sqrt(6 / (fan_in + fan_out))), Glorot and Bengio 2010, equation 16 (Keras).
    lecun_normal: N(0, 1 / fan_in), cut at two standard deviations (Flax). torch_linear: U(+-1/sqrt(fan_in)),
    as torch.nn.Linear. xavier_packed (attention only): query, key and value drawn as one glorot_uniform matrix
    and the output as torch_linear, as torch.nn.MultiheadAttention does.
    """
    if isinstance(name, Distribution):
        return name
    if not isinstance(name, str) or name not in INITIALIZERS:
        known = ", ".join((*INITIALIZERS, "xavier_packed (attention)"))
        raise ValueError(
            f"{who}: expected an initializer among {known}, or a Distribution, got {shown(name)}; take one of these, for "
            "example layers.Normal(0.02)"
        )
    found: Distribution = INITIALIZERS[name](max(fan_in, 1), max(fan_out, 1))
    return found
