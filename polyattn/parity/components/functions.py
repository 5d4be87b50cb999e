"""Activation functions by their names, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polyattn.layers.activations import gelu, gelu_tanh, relu, sigmoid, silu, softplus
from polyattn.truth.spec import Floats

__all__ = ["FUNCTIONS", "described"]

#: name -> function. The first are those of transformers.
FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_sigmoid": lambda x: x * sigmoid(1.702 * x),
    "silu": silu,
    "relu": relu,
    "relu_squared": lambda x: relu(x) ** 2,
    "identity": lambda x: x,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softplus": softplus,
    "mish": lambda x: x * np.tanh(softplus(x)),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "hard_swish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
}

_WORDS = {
    "gelu": "the exact GELU (erf)",
    "gelu_tanh": "the tanh approximation of GELU",
    "gelu_sigmoid": "the sigmoid approximation of GELU (quick_gelu)",
    "silu": "SiLU (swish)",
    "relu": "ReLU",
    "relu_squared": "the square of ReLU",
    "identity": "no activation",
}


def described(name: str) -> str:
    """The function of a name, in words."""
    return _WORDS.get(name, name)
