"""Normalisation of the last axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from polyattn.arrays import Array, Backend
from polyattn.arrays.numbers import SameArray
from polyattn.layers.initializers import ONES, ZEROS
from polyattn.layers.layer import Layer, Parameter, Params

__all__ = ["LayerNorm", "Norm", "RMSNorm"]


@dataclass(frozen=True)
class LayerNorm(Layer):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba 2016, arXiv:1607.06450).

    epsilon has no default: PyTorch and Equinox take 1e-5, Flax 1e-6, Keras 1e-3. Params: scale, bias (dim,).

    >>> import numpy as np
    >>> norm = LayerNorm(2, epsilon=0.0)
    >>> norm(norm.init(0, like=np.zeros(())), np.array([[1.0, 3.0]]))
    array([[-1.,  1.]])
    """

    dim: int
    _: KW_ONLY
    epsilon: float
    use_bias: bool = True

    def __post_init__(self) -> None:
        self.check_sizes(dim=self.dim)

    def parameters(self) -> Mapping[str, Parameter]:
        bias = {"bias": Parameter((self.dim,), ZEROS)} if self.use_bias else {}
        return {"scale": Parameter((self.dim,), ONES)} | bias

    def __call__(self, params: Params, x: SameArray) -> SameArray:
        x = _scaled(self, self.check(params, self.dim, x=x), params, x, centred=True)
        return x + params["bias"] if self.use_bias else x


@dataclass(frozen=True)
class RMSNorm(Layer):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    epsilon has no default: Llama takes 1e-5 or 1e-6, Flax and Keras 1e-6. Params: scale (dim,); none without use_scale.

    >>> import numpy as np
    >>> norm = RMSNorm(2, epsilon=0.0)
    >>> norm(norm.init(0, like=np.zeros(())), np.array([[3.0, 3.0]]))
    array([[1., 1.]])
    """

    dim: int
    _: KW_ONLY
    epsilon: float
    use_scale: bool = True

    def __post_init__(self) -> None:
        self.check_sizes(dim=self.dim)

    def parameters(self) -> Mapping[str, Parameter]:
        return {"scale": Parameter((self.dim,), ONES)} if self.use_scale else {}

    def __call__(self, params: Params, x: SameArray) -> SameArray:
        return _scaled(self, self.check(params, self.dim, x=x), params, x, centred=False)


Norm = LayerNorm | RMSNorm


def _scaled(norm: Norm, backend: Backend, params: Params, x: Array, *, centred: bool) -> Array:
    """x / sqrt(mean(x^2) + epsilon) * scale in the compute dtype, of x or of x - mean(x)."""
    xp, dtype = backend.xp, x.dtype
    x = backend.astype(x, backend.compute_dtype(dtype))
    if centred:
        x = x - xp.mean(x, axis=-1, keepdims=True)
    x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + norm.epsilon)
    x = backend.astype(x, dtype)
    return x * params["scale"] if "scale" in params else x
