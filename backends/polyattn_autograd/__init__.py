"""polyattn on NumPy with derivatives: every layer and function, by the package autograd.

autograd follows what is computed from the arrays that one differentiates for, and hands out plain NumPy arrays for
the rest. Attention wants one library in a call, so here both travel as `Tracked`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import array_api_compat.numpy as numpy
import autograd.numpy as anp
from autograd.core import make_vjp
from autograd.extend import defvjp_argnums, primitive
from autograd.tracer import getval

from polyattn.arrays import Array, Backend, TileSizes
from polyattn.arrays.discovery import numpy_backend
from polyattn.arrays.interchange import copied

__all__ = ["AutogradBackend", "Tracked", "backend", "value_and_grad", "vjp"]

Leaves = list[Any]


class Tracked:
    """A NumPy array, or what autograd has in its place while it follows it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return xp

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """numpy.asarray(x): the values, from which no derivative leads back."""
        return numpy.asarray(getval(self.value), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """numpy.exp(x), and an operator with a NumPy array on its left."""
        return getattr(xp, ufunc.__name__)(*inputs, **options) if method == "__call__" else NotImplemented

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        """numpy.where(x, ...)"""
        return getattr(xp, function.__name__)(*inputs, **options)

    dtype = property(lambda self: self.value.dtype)
    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    device = property(lambda self: "cpu")
    T = property(lambda self: wrapped(self.value.T))

    def __getitem__(self, index: Any) -> Any:
        return wrapped(self.value[bare(index)])

    def __bool__(self) -> bool:
        return bool(getval(self.value))

    def __int__(self) -> int:
        return int(getval(self.value))

    __index__ = __int__

    def __float__(self) -> float:
        return float(getval(self.value))

    def __repr__(self) -> str:
        return f"Tracked({getval(self.value)!r})"


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: Tracked, *others: Any) -> Any:
        return wrapped(getattr(self.value, name)(*bare(others)))

    return operator


_TWO = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
_COMPARE, _BITS = (
    ("eq", "ne", "lt", "le", "gt", "ge"),
    ("and", "or", "xor", "rand", "ror", "rxor", "lshift", "rshift"),
)
_OTHER = (*_COMPARE, *_BITS, "neg", "pos", "invert", "abs")
for _name in (*_TWO, *(f"r{name}" for name in _TWO), *_OTHER):
    setattr(Tracked, f"__{_name}__", _operator(f"__{_name}__"))


def wrapped(x: Any) -> Any:
    """Arrays as `Tracked`, in tuples and lists too; the rest as it is."""
    if isinstance(x, tuple | list):
        return type(x)(map(wrapped, x))
    return Tracked(x) if hasattr(x, "dtype") and hasattr(x, "shape") else x


def bare(x: Any) -> Any:
    """The inverse of `wrapped`."""
    if isinstance(x, tuple | list):
        return type(x)(map(bare, x))
    return x.value if isinstance(x, Tracked) else x


def _where(condition: Any, *parts: Any) -> Any:
    """autograd's derivative takes both parts to be as large as the result."""
    shape = numpy.broadcast_shapes(*(getattr(x, "shape", ()) for x in (condition, *parts)))
    wide = (x * numpy.ones(shape, dtype=x.dtype) if getattr(x, "shape", shape) != shape else x for x in parts)
    return anp.where(condition, *wide)


#: Where autograd.numpy has the derivative under NumPy's older name, or none to have.
_OLDER = SimpleNamespace(
    where=_where,
    concat=anp.concatenate,
    permute_dims=anp.transpose,
    matrix_transpose=lambda x: anp.swapaxes(x, -1, -2),
    cumulative_sum=lambda x, *, axis: anp.cumsum(x, axis),
    astype=lambda x, dtype, copy=True: x.astype(dtype),
    result_type=lambda *x: numpy.result_type(*map(getval, x)),
    isdtype=numpy.isdtype,
    finfo=numpy.finfo,
    iinfo=numpy.iinfo,
)


class _Namespace:
    """The array API on `Tracked`, by the functions of autograd.numpy, which know their derivatives."""

    __name__ = "autograd"

    def __init__(self, *modules: Any) -> None:
        self._modules = modules

    def __getattr__(self, name: str) -> Any:
        found = next((getattr(module, name) for module in self._modules if hasattr(module, name)), None)
        if found is None:
            raise AttributeError(f"polyattn_autograd: NumPy's array API has no {name!r}")
        if not callable(found) or isinstance(found, type | _Namespace):  # a number, a dtype, a module
            return found

        def function(*arguments: Any, **options: Any) -> Any:
            options.pop("device", None)
            return wrapped(found(*bare(arguments), **{key: bare(value) for key, value in options.items()}))

        setattr(self, name, function)
        return function


class AutogradBackend(Backend):
    def compute_dtype(self, dtype: Any) -> Any:
        return numpy_backend().compute_dtype(dtype)

    def to_list(self, x: Array) -> Any:
        return getval(x.value).tolist()

    def to_numpy(self, x: Array) -> Array:
        return getval(x.value)

    def from_numpy(self, x: Array, like: Array) -> Array:
        return Tracked(copied(x))

    def device(self, x: Array) -> Any:
        return "cpu"

    def stop_gradient(self, x: Array) -> Array:
        return Tracked(getval(x.value))

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        return x[(*(slice(None),) * (axis % x.ndim), indices)]

    def tile_sizes(self, p: Any) -> TileSizes:
        return numpy_backend().tile_sizes(p)

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        return Tracked(vjp(f, x)[1](cotangent))

    def custom_vjp(
        self,
        forward: Callable[[Sequence[Array]], tuple[Array, ...]],
        backward: Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], Sequence[Array | None]],
        arrays: Sequence[Array],
    ) -> tuple[Array, ...]:
        """Inside are plain arrays: the engine is NumPy's, and its derivative its own."""

        @primitive
        def step(*values: Any) -> Any:
            return tuple(forward(values))

        def pull(argnums: Sequence[int], outputs: Any, values: Sequence[Any], _: Any) -> Callable[[Any], Any]:
            def back(cotangents: Any) -> list[Any]:
                found = backward(values, outputs, cotangents)
                return [found[i] for i in argnums]

            return back

        defvjp_argnums(step, pull)
        return tuple(wrapped(output) for output in step(*(x.value for x in arrays)))


def value_and_grad(f: Callable[..., Any]) -> Callable[..., tuple[float, Any]]:
    """The function that gives (f(params, *inputs), its gradient for params), on NumPy arrays.

    f: returns one number. params and inputs: arrays, or dicts, tuples and lists of them at any depth. Inside f all of
    them are `Tracked`, which polyattn and the functions of numpy and of `xp` take. The gradient has the structure of
    params; second derivatives are not there.

    >>> import numpy as np
    >>> from polyattn.layers import Linear
    >>> layer, x = Linear(2, 1), np.ones((3, 2))
    >>> params = {"w": np.zeros((2, 1)), "b": np.zeros(1)}
    >>> loss, gradient = value_and_grad(lambda params, x: np.sum(layer(params, x)))(params, x)
    >>> gradient["w"].tolist(), gradient["b"].tolist()
    ([[3.0], [3.0]], [3.0])
    """

    def both(params: Any, *inputs: Any) -> tuple[float, Any]:
        value, pullback = vjp(f, params, *inputs)
        if numpy.shape(value) != ():
            raise ValueError(
                f"polyattn_autograd.value_and_grad: expected f to return one number, got an array of shape "
                f"{numpy.shape(value)}; sum it, or take polyattn_autograd.vjp"
            )
        return float(value), pullback(numpy.ones((), dtype=value.dtype))

    return both


def vjp(f: Callable[..., Any], params: Any, *inputs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """f(params, *inputs), an array, and its pullback: d_out -> the gradient for params, on NumPy arrays.

    >>> import numpy as np
    >>> from polyattn.additive import additive_attention
    >>> x = np.eye(2)
    >>> out, pullback = vjp(lambda given: additive_attention(*given), (x, x, x, np.ones(2)))
    >>> [d.shape for d in pullback(np.ones_like(out))]
    [(2, 2), (2, 2), (2, 2), (2,)]
    """
    leaves: Leaves = []
    shape = _taken(params, leaves)
    constants = [_lifted(x) for x in inputs]
    if not leaves:
        raise TypeError(
            f"polyattn_autograd: expected params with at least one NumPy array of real floats, got {params!r}; it is what "
            "the derivative is for"
        )

    for leaf in leaves:
        if leaf.dtype.kind != "f":
            raise TypeError(
                f"polyattn_autograd: expected params of real floats, got an array of {leaf.dtype}; hand it over as an "
                "input, behind params"
            )

    def traced(values: Any) -> Any:
        out = f(_put(shape, [Tracked(values[i]) for i in range(len(leaves))]), *constants)
        if not isinstance(out, Tracked):
            raise TypeError(
                f"polyattn_autograd: expected the function to return an array made of its arguments, got "
                f"{type(out).__name__}; return one array"
            )
        return out.value

    back, value = make_vjp(traced, leaves)
    return value, lambda d_out: _put(shape, back(bare(d_out)))


def _taken(tree: Any, leaves: Leaves) -> Any:
    """The structure of dicts, tuples and lists of arrays, whose arrays are appended to `leaves`."""
    if isinstance(tree, Mapping):
        return {name: _taken(part, leaves) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_taken(part, leaves) for part in tree)
    if isinstance(tree, numpy.ndarray | numpy.generic | Tracked):
        leaves.append(numpy.asarray(bare(tree)))
        return _Leaf(len(leaves) - 1)
    return tree


def _lifted(tree: Any) -> Any:
    leaves: Leaves = []
    return _put(_taken(tree, leaves), [Tracked(leaf) for leaf in leaves])


class _Leaf(int):
    """The place of an array in a list."""


def _put(shape: Any, leaves: Sequence[Any]) -> Any:
    if isinstance(shape, Mapping):
        return {name: _put(part, leaves) for name, part in shape.items()}
    if isinstance(shape, tuple | list):
        return type(shape)(_put(part, leaves) for part in shape)
    return leaves[shape] if isinstance(shape, _Leaf) else shape


xp = _Namespace(SimpleNamespace(linalg=_Namespace(anp.linalg)), _OLDER, anp, numpy)
backend = AutogradBackend("autograd", xp)
