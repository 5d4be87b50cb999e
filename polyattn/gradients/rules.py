"""The derivative of each function of the array API standard: one formula, one line.

A rule says how the gradient d of a loss for z = f(x, y, ...) becomes those for x, y, ...: a function (b, d, z, x, y, ...)
for each argument. b is the backend of the library that computes, b.xp its namespace. What an argument was broadcast
over is summed elsewhere, in `tape.fitted`, once for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from polyattn.arrays import Array, Backend
from polyattn.gradients.moving import ARRAYS
from polyattn.gradients.tape import Rule

__all__ = ["CONSTANT", "RULES"]

#: Functions whose results do not move with their arguments, or only in jumps: their derivative is 0.
CONSTANT = frozenset(
    [
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "bitwise_and",
        "bitwise_invert",
        "bitwise_left_shift",
        "bitwise_or",
        "bitwise_right_shift",
        "bitwise_xor",
        "ceil",
        "count_nonzero",
        "empty_like",
        "equal",
        "floor",
        "floor_divide",
        "greater",
        "greater_equal",
        "isfinite",
        "isin",
        "isinf",
        "isnan",
        "less",
        "less_equal",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "nonzero",
        "not_equal",
        "ones_like",
        "round",
        "searchsorted",
        "sign",
        "signbit",
        "trunc",
        "zeros_like",
    ]
)


# numbers: each entry of z is a function of one entry of x, and of y


def _one(slope: Callable[[Any, Array, Array], Any]) -> Rule:
    """z = f(x):  dx = f'(x) d, where slope is f' as a function of xp, x and z."""
    return (lambda b, d, z, x: d * slope(b.xp, x, z),)


def _share(larger: Callable[[Any, Any], Any], x: Any, y: Any, b: Backend, d: Array) -> Array:
    """d where x is chosen before y, and half of it where they are equal."""
    return b.xp.where(larger(x, y), d, b.xp.where(larger(y, x), 0.0, d / 2))


def _logarithm(b: Backend, x: Any, z: Array) -> Array:
    """log x, and 0 at 0, where x^y has no slope in y > 0."""
    x = x if hasattr(x, "dtype") else b.asarray(x, z.dtype, z)
    return b.xp.log(b.xp.where(x == 0, 1.0, x))


def _lowered(b: Backend, x: Array, y: Any) -> Array:
    """y x^(y - 1), and 0 where y = 0."""
    if hasattr(y, "dtype"):
        return y * x ** b.xp.where(y == 0, 1.0, y - 1.0)
    return y * x ** (1 if y == 0 else y - 1)


NUMBERS: dict[str, Rule] = {
    "add": (lambda b, d, z, x, y: d, lambda b, d, z, x, y: d),
    "subtract": (lambda b, d, z, x, y: d, lambda b, d, z, x, y: -d),
    "multiply": (lambda b, d, z, x, y: d * y, lambda b, d, z, x, y: d * x),
    "divide": (lambda b, d, z, x, y: d / y, lambda b, d, z, x, y: -d * z / y),
    "remainder": (lambda b, d, z, x, y: d, lambda b, d, z, x, y: -d * b.xp.floor(x / y)),
    "pow": (lambda b, d, z, x, y: d * _lowered(b, x, y), lambda b, d, z, x, y: d * z * _logarithm(b, x, z)),
    "maximum": (
        lambda b, d, z, x, y: _share(lambda p, q: p > q, x, y, b, d),
        lambda b, d, z, x, y: _share(lambda p, q: p > q, y, x, b, d),
    ),
    "minimum": (
        lambda b, d, z, x, y: _share(lambda p, q: p < q, x, y, b, d),
        lambda b, d, z, x, y: _share(lambda p, q: p < q, y, x, b, d),
    ),
    "logaddexp": (  # log(e^x + e^y): the weights of a softmax of two
        lambda b, d, z, x, y: d * b.xp.exp(b.xp.where(x == z, 0.0, x - z)),
        lambda b, d, z, x, y: d * b.xp.exp(b.xp.where(y == z, 0.0, y - z)),
    ),
    "atan2": (
        lambda b, d, z, x, y: d * y / (x * x + y * y),
        lambda b, d, z, x, y: -d * x / (x * x + y * y),
    ),
    "where": (  # of the condition there is none
        None,
        lambda b, d, z, c, x, y: b.xp.where(c, d, 0.0),
        lambda b, d, z, c, x, y: b.xp.where(c, 0.0, d),
    ),
    "positive": (lambda b, d, z, x: d,),
    "negative": (lambda b, d, z, x: -d,),
    "abs": _one(lambda xp, x, z: xp.sign(x)),
    "square": _one(lambda xp, x, z: 2 * x),
    "reciprocal": _one(lambda xp, x, z: -z * z),
    "sqrt": (lambda b, d, z, x: d / (2 * z),),
    "exp": _one(lambda xp, x, z: z),
    "expm1": _one(lambda xp, x, z: z + 1),
    "log": (lambda b, d, z, x: d / x,),
    "log1p": (lambda b, d, z, x: d / (1 + x),),
    "log2": (lambda b, d, z, x: d / (x * math.log(2)),),
    "log10": (lambda b, d, z, x: d / (x * math.log(10)),),
    "sin": _one(lambda xp, x, z: xp.cos(x)),
    "cos": _one(lambda xp, x, z: -xp.sin(x)),
    "tan": _one(lambda xp, x, z: 1 + z * z),
    "asin": (lambda b, d, z, x: d / b.xp.sqrt((1 - x) * (1 + x)),),
    "acos": (lambda b, d, z, x: -d / b.xp.sqrt((1 - x) * (1 + x)),),
    "atan": (lambda b, d, z, x: d / (1 + x * x),),
    "sinh": _one(lambda xp, x, z: xp.cosh(x)),
    "cosh": _one(lambda xp, x, z: xp.sinh(x)),
    "tanh": _one(lambda xp, x, z: (1 - z) * (1 + z)),
    "erf": _one(lambda xp, x, z: 2 / math.sqrt(math.pi) * xp.exp(-x * x)),
}


RULES: dict[str, Rule] = NUMBERS | ARRAYS
