"""`Recorded`, an array that writes down what is computed from it; `record`, how a function of it does so."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

from polyattn.arrays import Array, is_array, numpy_backend
from polyattn.gradients.tape import Node, Rule, Step

__all__ = ["Recorded"]

#: What a NumPy or PyTorch function is called in the standard, where it is called otherwise.
_STANDARD = {
    "absolute": "abs",
    "amax": "max",
    "amin": "min",
    "arccos": "acos",
    "arcsin": "asin",
    "arctan": "atan",
    "arctan2": "atan2",
    "cat": "concat",
    "concatenate": "concat",
    "cumsum": "cumulative_sum",
    "invert": "bitwise_invert",
    "left_shift": "bitwise_left_shift",
    "power": "pow",
    "right_shift": "bitwise_right_shift",
    "transpose": "permute_dims",
    "true_divide": "divide",
}
#: Functions of the standard that arrays of all libraries have as methods too.
_METHODS = frozenset(
    [
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "astype",
        "clip",
        "cumsum",
        "max",
        "mean",
        "min",
        "reshape",
        "round",
        "sort",
        "squeeze",
        "std",
        "sum",
        "take",
        "var",
    ]
)


class Recorded:
    """An array of the standard around one of any library, which knows the `Node` that it came from.

    value: the array itself. node: None for a constant. The class of one library, with its `backend`, is made by
    `polyattn.gradients.backend.over`. It cannot be written to: what was computed from it would be wrong.
    """

    __slots__ = ("__weakref__", "node", "value")
    backend: ClassVar[Any]

    def __init__(self, value: Array, node: Node | None = None) -> None:
        self.value, self.node = value, node

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.backend.xp

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """numpy.asarray(x): the values, from which no derivative leads back."""
        return numpy_backend().xp.asarray(self.backend.to_numpy(self), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """numpy.exp(x), and an operator with a NumPy array on its left."""
        if method != "__call__" or "out" in options:
            raise TypeError(
                f"polyattn.gradients: expected a function that returns a new array, got numpy.{ufunc.__name__} that "
                f"{'writes into another' if method == '__call__' else f'is called by .{method}'}; write x = x + y, and sum "
                "by numpy.sum"
            )
        return self._called(ufunc, inputs, options)

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        """numpy.where(x, ...)"""
        return self._called(function, inputs, options)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        """torch.where(x, ...), and an operator with a tensor on its left."""
        return cls._called(function, inputs, options or {})

    @classmethod
    def _called(cls, function: Any, inputs: Any, options: Any) -> Any:
        """A function of the library by the one of the standard that it is."""
        name = function.__name__.strip("_")
        if function.__name__.startswith("__r"):
            name, inputs = name[1:], inputs[::-1]
        name = _STANDARD.get(name, name)
        return cls.backend.xp.named(_TORCH.get(name, name), function)(*inputs, **options)

    dtype = property(lambda self: self.value.dtype)
    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    device = property(lambda self: self.backend.inner.device(self.value))
    T = property(lambda self: self.backend.xp.permute_dims(self, tuple(range(self.ndim))[::-1]))
    mT = property(lambda self: self.backend.xp.matrix_transpose(self))

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(
                f"polyattn.gradients: expected what arrays of every library have, got .{name}; write it with the functions "
                "of xp = x.__array_namespace__()"
            )
        f = getattr(self.backend.xp, _STANDARD.get(name, name))
        return lambda *more, **options: f(self, *more, **options)

    def __getitem__(self, index: Any) -> Any:
        return self.backend.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "polyattn.gradients: expected an array that is read alone while a derivative is recorded, got x[...] = ...; "
            "make a new one, for example with xp.where"
        )

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Any:
        return (self[i, ...] for i in range(self.shape[0]))

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value.__index__())

    def __float__(self) -> float:
        return float(self.value)

    __hash__ = None  # type: ignore[assignment]  # as arrays have it

    def __repr__(self) -> str:
        return f"Recorded({self.value!r})"


_TWO = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "pow",
    "matmul": "matmul",
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "and_": "bitwise_and",
    "or_": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift",
}
_SINGLE = {"neg": "negative", "pos": "positive", "invert": "bitwise_invert", "abs": "abs"}
#: function of the standard -> the operator that is it
OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, word) for word, name in (_TWO | _SINGLE).items()
}
_TORCH = {word.strip("_"): name for word, name in (_TWO | _SINGLE).items()} | {"div": "divide"}


def _operator(name: str, swapped: bool) -> Callable[..., Any]:
    def apply(self: Recorded, *others: Any) -> Any:
        if others and not (is_array(others[0]) or isinstance(others[0], int | float | complex)):
            return NotImplemented
        f = self.backend.operator(name)
        return f(*others, self) if swapped else f(self, *others)

    return apply


for _word, _name in (_TWO | _SINGLE).items():
    setattr(Recorded, f"__{_word.strip('_')}__", _operator(_name, swapped=False))
    if _word in _TWO and _word not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Recorded, f"__r{_word.strip('_')}__", _operator(_name, swapped=True))


def record(
    kind: type[Recorded], name: str, forward: Callable[..., Any], rule: Rule | None, of: Callable[[Any], Any]
) -> Callable[..., Any]:
    """`forward`, a function of plain arrays, as one of `Recorded` and plain ones, by the `rule` of its derivative.

    rule: None if its results are constants. of: finds the same function in the backend of another kind, which is
    asked where one of the arguments is being differentiated inside this one's derivative.
    """

    inner = kind.backend.inner

    def function(*arguments: Any, **options: Any) -> Any:
        values: list[Any] = []
        parents: list[tuple[int, Node]] = []
        for i, x in enumerate(arguments):
            if type(x) is kind:
                values.append(x.value)
                if x.node is not None:
                    parents.append((i, x.node))
                continue
            if isinstance(x, Recorded) and x.backend.level > kind.backend.level:
                return of(x.backend)(*arguments, **options)
            values.append(x)
        for key, x in options.items():
            if type(x) is kind:
                if x.node is not None and rule is not None:
                    raise TypeError(
                        f"polyattn.gradients: expected the arrays of {name} by position, got {key}=; write {name}(x, ...)"
                    )
                options[key] = x.value
        out = forward(*values, **options)
        if not parents or rule is None:
            return kind(out)
        return kind(out, Step(inner, parents, rule, out, values, options))

    return function
