"""ATen operations on arrays of any library.

What is one number to torch is here an array: a value has the axes of the scores in front, on which it
broadcasts, and the axes that torch knows of (those of `table[h]`, say) behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from polyattn.arrays import Array, Backend
from polyattn.masks.fitting import fill_rank, reshape

__all__ = ["OPERATIONS", "Arrays", "Operation", "Value"]


class Value(NamedTuple):
    """An array whose last `rank` axes torch knows of."""

    array: Array
    rank: int


@dataclass(frozen=True)
class Arrays:
    """Where a program runs: the arrays of one call."""

    who: str
    backend: Backend
    like: Array
    floating: Any  # the dtype of all floating numbers
    rank: int  # of the arguments

    def value(self, x: Any, dtype: Any = None) -> Value:
        """A value, a captured tensor or a Python number as a value, of `dtype` if that is given."""
        if isinstance(x, torch.Tensor):
            x = Value(self.capture(x), x.ndim)
        if not isinstance(x, Value):
            x = self.finite(x) if isinstance(x, float) else x
            natural = (self.backend.xp.bool, self.backend.xp.int32, self.floating)[self.kind(x)]
            return Value(self.backend.asarray(x, natural if dtype is None else dtype, self.like), 0)
        return x if dtype is None else Value(self.backend.astype(x.array, dtype), x.rank)

    def finite(self, x: Any) -> Any:
        """A number or 0-d tensor: finite ones beyond the floating dtype are its end, which is what finfo meant."""
        info = self.backend.xp.finfo(self.floating)
        least, most = float(info.min), float(info.max)
        if isinstance(x, torch.Tensor):
            return torch.where(x.isinf(), x, x.clamp(least, most))
        return x if math.isinf(x) else min(max(x, least), most)

    def wrapped(self, x: Any, dtype: Any) -> Any:
        """A Python integer as torch has it beside an array of an integer dtype: modulo 2^bits."""
        if not isinstance(x, int) or isinstance(x, bool):
            return x
        info = self.backend.xp.iinfo(dtype)
        return (x - int(info.min)) % 2**info.bits + int(info.min)

    def capture(self, x: torch.Tensor) -> Array:
        if x.ndim == 0 and x.dtype == torch.float64:
            x = self.finite(x)
        if self.backend.name == "torch":
            return x
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{self.who}: expected captured tensors without a gradient on {self.backend.name} arrays, got one of "
                f"shape {tuple(x.shape)} that requires it; detach it, or call under torch.no_grad()"
            )
        if x.is_floating_point():
            x = x.to(torch.float64 if self.backend.xp.finfo(self.floating).bits == 64 else torch.float32)
        values = x.detach().cpu().numpy()
        array = values if self.backend.name == "numpy" else self.backend.from_numpy(values, self.like)
        if values.dtype.kind in "iu" and values.size:
            most = self.backend.xp.iinfo(array.dtype).max
            if not -most - 1 <= values.min() <= values.max() <= most:
                raise ValueError(
                    f"{self.who}: expected captured integers up to {most} on {self.backend.name} arrays, got "
                    f"{values.min()} to {values.max()}; number them anew"
                )
        return array

    def kind(self, x: Any) -> int:
        """0 bool, 1 integer, 2 floating, of a value or a Python number."""
        if not isinstance(x, Value):
            return 0 if isinstance(x, bool) else 1 if isinstance(x, int) else 2
        is_dtype = self.backend.xp.isdtype
        return 0 if is_dtype(x.array.dtype, "bool") else 1 if is_dtype(x.array.dtype, "integral") else 2

    def promoted(self, xs: Sequence[Any], least: int = 0) -> list[Value]:
        """The operands in a common kind, which is at least `least`; all floating ones in one dtype."""
        xs = [self.value(x) if isinstance(x, torch.Tensor) else x for x in xs]
        kinds = [self.kind(x) for x in xs]
        kind = max(least, *kinds)
        at_home = [isinstance(x, Value) and k == kind < 2 for x, k in zip(xs, kinds, strict=True)]
        dtype = (self.backend.xp.bool, self.backend.xp.int32, self.floating)[kind]
        dtype = next((x.array.dtype for x, stays in zip(xs, at_home, strict=True) if stays), dtype)
        if kind == 1 and any(at_home):
            xs = [self.wrapped(x, dtype) for x in xs]
        return [x if stays else self.value(x, dtype) for x, stays in zip(xs, at_home, strict=True)]

    def apply(self, f: Callable[..., Array], values: Sequence[Value]) -> Value:
        """f, elementwise."""
        rank = max(v.rank for v in values)
        return Value(f(*(self.align(v, rank) for v in values)), rank)

    def align(self, v: Value, rank: int, behind: int = 0) -> Array:
        """The array with `rank` axes of its own, and axes of size 1 behind them."""
        array = fill_rank(v.array, self.rank + v.rank)
        shape = tuple(array.shape)
        front, own = shape[: self.rank], shape[self.rank :]
        new = (*front, *(1,) * (rank - v.rank), *own, *(1,) * behind)
        return array if new == shape else reshape(array, new)


# Operations

Operation = Callable[..., Value]
_OF_BOOLS = {"add": "bitwise_or", "multiply": "bitwise_and"}  # as torch has it


def _each(name: str, least: int = 0) -> Operation:
    """The function of that name of the array API standard."""

    def operation(on: Arrays, *xs: Any) -> Value:
        values = on.promoted(xs, least)
        of_bools = not any(on.kind(v) for v in values)
        return on.apply(getattr(on.backend.xp, _OF_BOOLS.get(name, name) if of_bools else name), values)

    return operation


def _formula(f: Callable[..., Array], least: int) -> Operation:
    """f(xp, *arrays)"""

    def operation(on: Arrays, *xs: Any) -> Value:
        return on.apply(lambda *arrays: f(on.backend.xp, *arrays), on.promoted(xs, least))

    return operation


def _logical(name: str) -> Operation:
    def operation(on: Arrays, *xs: Any) -> Value:
        values = [on.value(x, on.backend.xp.bool) for x in xs]
        return on.apply(getattr(on.backend.xp, name), values)

    return operation


def _sum(name: str) -> Operation:
    def operation(on: Arrays, x: Any, y: Any, alpha: float = 1) -> Value:
        return _each(name)(on, x, y if alpha == 1 else _each("multiply")(on, y, alpha))

    return operation


def _divide(on: Arrays, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return _each("divide", 2)(on, x, y)
    if rounding_mode == "floor":
        return _each("floor_divide", 1)(on, x, y)

    def toward_zero(xp: Any, x: Array, y: Array) -> Array:
        whole = xp.floor_divide(xp.abs(x), xp.abs(y))
        return xp.where((x < 0) ^ (y < 0), -whole, whole)

    return _formula(toward_zero, 1)(on, x, y)


def _fmod(xp: Any, x: Array, y: Array) -> Array:
    rest = xp.remainder(xp.abs(x), xp.abs(y))
    return xp.where(x < 0, -rest, rest)


def _pow(xp: Any, x: Array, y: Array) -> Array:
    if not xp.isdtype(y.dtype, "integral"):
        return xp.pow(x, y)
    # An integer to a negative power is 0, but for 1 and -1, to which only the parity of the power matters.
    power = xp.pow(x, xp.where(y < 0, y % 2, y))
    return xp.where((y < 0) & (xp.abs(x) != 1), xp.zeros_like(power), power)


def _clamp(on: Arrays, x: Any, min: Any = None, max: Any = None) -> Value:
    for bound, name in ((min, "maximum"), (max, "minimum")):
        x = x if bound is None else _each(name, 1)(on, x, bound)
    return on.value(x)


def _where(on: Arrays, condition: Any, x: Any, y: Any) -> Value:
    return on.apply(on.backend.xp.where, [on.value(condition), *on.promoted([x, y])])


def _to(on: Arrays, x: Any, dtype: torch.dtype | None = None, **_: Any) -> Value:
    xp = on.backend.xp
    if dtype is None:
        return on.value(x)
    if dtype.is_floating_point:
        return on.value(x, on.floating)
    if dtype == torch.int64:
        return on.value(x, xp.asarray(0).dtype)  # the widest that it has without being asked
    return on.value(x, getattr(xp, str(dtype).removeprefix("torch.")))


def _reduce(name: str, least: int) -> Operation:
    def operation(on: Arrays, x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        (value,) = [on.value(x, on.backend.xp.bool)] if least == 0 else on.promoted([x], least)
        rank = value.rank
        axes = range(rank) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
        axes = tuple(axis - rank if axis >= 0 else axis for axis in axes)
        array = fill_rank(value.array, on.rank + rank)
        if axes:
            array = getattr(on.backend.xp, name)(array, axis=axes, keepdims=keepdim)
        return Value(array, rank if keepdim else rank - len(axes))

    return operation


def _look_up(on: Arrays, table: Any, indices: Sequence[Any]) -> Value:
    source = on.value(table)
    # A captured table has no axes in front; what has them is read where it stands.
    array = (
        source.array if isinstance(table, torch.Tensor) else fill_rank(source.array, on.rank + source.rank)
    )
    sizes = array.shape[array.ndim - source.rank :]
    at = [*indices, *(None,) * (source.rank - len(indices))]
    kept = [axis for axis, i in enumerate(at) if i is None]
    found = {axis: on.value(i) for axis, i in enumerate(at) if i is not None}
    inner = max(v.rank for v in found.values())
    if inner and kept != list(range(len(found), source.rank)):
        raise NotImplementedError(
            f"{on.who}: expected a lookup whose index tensors stand in front, got slices before an index of "
            f"{inner} axes; write the axes in another order"
        )
    rank = inner + len(kept)

    def count(n: int, behind: int) -> Array:
        return reshape(on.backend.arange(0, n, on.like), (n, *(1,) * behind))

    where = [count(n, on.rank - 1 - axis + rank) for axis, n in enumerate(array.shape[: -source.rank])]
    for axis, n in enumerate(sizes):
        if axis in found:
            where.append(on.align(found[axis], inner, len(kept)))
        else:
            where.append(count(n, len(kept) - 1 - kept.index(axis)))
    return Value(array[tuple(where)], rank)


# By the least kind that they compute in: the same in the array API standard, and by another name there.
_SAME = {
    2: "acos acosh asin asinh atan atan2 atanh cos cosh exp expm1 hypot isinf isnan log log10 log1p log2 sin sinh "
    "sqrt tan tanh",
    1: "abs bitwise_left_shift bitwise_right_shift ceil floor maximum minimum remainder round sign trunc",
    0: "bitwise_and bitwise_or bitwise_xor",
}
_RENAMED = {
    1: {
        "ge": "greater_equal",
        "gt": "greater",
        "le": "less_equal",
        "lt": "less",
        "neg": "negative",
        "__lshift__": "bitwise_left_shift",
        "__rshift__": "bitwise_right_shift",
    },
    0: {"bitwise_not": "bitwise_invert", "eq": "equal", "mul": "multiply", "ne": "not_equal"},
}

#: The operations that are here, by their names in ATen.
OPERATIONS: dict[str, Operation] = {
    **{name: _each(name, least) for least, names in _SAME.items() for name in names.split()},
    **{name: _each(here, least) for least, names in _RENAMED.items() for name, here in names.items()},
    **{name: _logical(name) for name in ("logical_and", "logical_not", "logical_or", "logical_xor")},
    **{name: _reduce(here, 1) for name, here in (("amax", "max"), ("amin", "min"), ("sum", "sum"))},
    **dict.fromkeys(("_to_copy", "alias", "clone"), _to),
    "add": _sum("add"),
    "any": _reduce("any", 0),
    "clamp": _clamp,
    "div": _divide,
    "erf": lambda on, x: on.apply(on.backend.erf, on.promoted([x], 2)),
    "exp2": _formula(lambda xp, x: xp.pow(xp.full_like(x, 2.0), x), 2),
    "fmod": _formula(_fmod, 1),
    "index": _look_up,
    "pow": _formula(_pow, 1),
    "reciprocal": _formula(lambda xp, x: 1.0 / x, 2),
    "relu": _formula(lambda xp, x: xp.where(x > 0, x, xp.zeros_like(x)), 1),
    "rsqrt": _formula(lambda xp, x: 1.0 / xp.sqrt(x), 2),
    "sigmoid": _formula(lambda xp, x: 0.5 * (1.0 + xp.tanh(0.5 * x)), 2),  # cannot overflow
    "sub": _sum("subtract"),
    "where": _where,
}
