"""What the decays of recurrent layers begin with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from polyattn.arrays import Array, backend_of, numpy_backend
from polyattn.layers.initializers import Distribution, Uniform

__all__ = ["LOG_RATE", "TIME_STEP", "Mapped"]


@dataclass(frozen=True)
class Mapped(Distribution):
    """function(u), u uniform on [low, high): by Python's own numbers, which are the same beside every library."""

    function: Callable[[float], float]
    low: float
    high: float

    def draw(self, shape: tuple[int, ...], seed: int, stream: int, like: Array) -> Array:
        backend, xp = backend_of(like), numpy_backend().xp
        drawn = Uniform(0.5).draw((math.prod(shape),), seed, stream, xp.zeros((), dtype=xp.float64))
        width = self.high - self.low
        numbers = [self.function(self.low + width * (0.5 + u)) for u in drawn.tolist()]
        # By way of the compute dtype everywhere, as PyTorch goes to half precision: two roundings.
        wide = backend.xp.finfo(backend.compute_dtype(like.dtype)).bits > 32
        found = xp.reshape(xp.asarray(numbers, dtype=xp.float64 if wide else xp.float32), shape)
        return backend.astype(backend.from_numpy(found, like), like.dtype)


def _inverse_softplus_of_exp(u: float) -> float:
    step = math.exp(u)
    return step + math.log(-math.expm1(-step))


#: The logarithm of a rate of decay between 1 and 16, and the time step between 1e-3 and 1e-1 that it is multiplied
#: with, before its softplus: as Mamba-2 (Dao and Gu 2024, arXiv:2405.21060) and the delta layers after it begin.
LOG_RATE = Mapped(math.log, 1.0, 16.0)
TIME_STEP = Mapped(_inverse_softplus_of_exp, math.log(1e-3), math.log(1e-1))
