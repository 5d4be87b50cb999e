"""Activation functions by the names of the field, on any array library."""

from __future__ import annotations

import math
from collections.abc import Callable

from polyattn.arrays import Array, backend_of

__all__ = [
    "ACTIVATIONS",
    "GATED",
    "clipped_swiglu",
    "gelu",
    "gelu_tanh",
    "relu",
    "sigmoid",
    "silu",
    "softplus",
]


def relu(x: Array) -> Array:
    """max(x, 0)."""
    xp = backend_of(x).xp
    return xp.where(x > 0, x, xp.zeros_like(x))


def gelu(x: Array) -> Array:
    """x Phi(x), exact: Phi from the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2).

    >>> import numpy as np
    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(6).tolist()
    [-0.158655, 0.0, 0.841345]
    """
    return _widely(lambda x: 0.5 * x * (1.0 + backend_of(x).erf(x * math.sqrt(0.5))), x)


def gelu_tanh(x: Array) -> Array:
    """The approximation 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (same source; GPT-2, and JAX by default)."""

    def formula(x: Array) -> Array:
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1.0 + backend_of(x).xp.tanh(inner))

    return _widely(formula, x)


def silu(x: Array) -> Array:
    """x / (1 + exp(-x)), also called swish."""
    return _widely(lambda x: x * sigmoid(x), x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), as exp(-softplus(-x)): it cannot overflow, and is as precise where it is small.

    >>> import numpy as np
    >>> sigmoid(np.array([0.0, -50.0, -1e9]))
    array([5.00000000e-01, 1.92874985e-22, 0.00000000e+00])
    """
    return _widely(lambda x: backend_of(x).xp.exp(-softplus(-x)), x)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), which is x where x is large.

    >>> import numpy as np
    >>> softplus(np.array([0.0, 1e9])).round(3).tolist()
    [0.693, 1000000000.0]
    """
    return _widely(lambda x: backend_of(x).xp.logaddexp(x, backend_of(x).xp.zeros_like(x)), x)


def _widely(f: Callable[[Array], Array], x: Array) -> Array:
    """f in the compute dtype."""
    backend = backend_of(x)
    return backend.astype(f(backend.astype(x, backend.compute_dtype(x.dtype))), x.dtype)


#: name -> function
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
}


def clipped_swiglu(gate: Array, up: Array) -> Array:
    """g sigmoid(1.702 g) (u + 1), with the gate g at most 7 and u between -7 and 7 (gpt-oss)."""
    xp = backend_of(gate).xp
    gate, up = xp.minimum(gate, xp.full_like(gate, 7.0)), xp.clip(up, -7.0, 7.0)
    return gate * sigmoid(1.702 * gate) * (up + 1.0)


#: The hidden layer of an `MLP` of that name from its gate and the rest.
GATED: dict[str, Callable[[Array, Array], Array]] = {
    "swiglu": lambda gate, up: silu(gate) * up,
    "geglu": lambda gate, up: gelu(gate) * up,
    "geglu_tanh": lambda gate, up: gelu_tanh(gate) * up,
    "clipped_swiglu": clipped_swiglu,
}
