"""The backend of recorded arrays: that of the library below, whose steps are written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any

from polyattn.arrays import Array, Backend, TileSizes, backend_of, is_array
from polyattn.arrays.discovery import known_as
from polyattn.gradients.namespace import RecordedNamespace
from polyattn.gradients.recorded import OPERATORS, Recorded, record
from polyattn.gradients.rules import RULES
from polyattn.gradients.tape import Block, Output


@cache
def over(inner: Backend) -> RecordedBackend:
    """The backend, and the class, of what is recorded of the arrays of a library."""
    return RecordedBackend(inner)


class RecordedBackend(Backend):
    """inner: the backend of the library, or of an outer derivative. kind: its class below `Recorded`."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.level: int = 1 + getattr(inner, "level", 0)
        self.kind: type[Recorded] = type("Recorded", (Recorded,), {"__slots__": (), "backend": self})
        super().__init__(f"recorded {inner.name}", RecordedNamespace(self, inner.xp))
        self.lengths_are_fixed = inner.lengths_are_fixed
        known_as(self.kind, self)
        plain, kind = inner.xp, self.kind

        def step(name: str, forward: Callable[..., Any]) -> Any:
            return record(kind, name, forward, RULES[name], lambda other: getattr(other, f"_{name}"))

        def operator(name: str, f: Callable[..., Any]) -> Any:
            return record(kind, name, f, RULES.get(name), lambda other: other.operator(name))

        self._operators = {name: operator(name, f) for name, f in OPERATORS.items()}
        self._operators["matmul"] = lambda x, y: self.product_of(x, y, plain.matmul)
        self._astype = step("astype", inner.astype)
        self._cast = record(kind, "astype", inner.astype, None, lambda other: other._cast)
        self._cos = step("cos", inner.cos)
        self._erf = step("erf", inner.erf)
        self._cumulative_sum = step("cumulative_sum", inner.cumulative_sum)
        self._getitem = step("getitem", lambda x, index: x[index])
        self._matmul = step("matmul", inner.matmul)
        self._linear = step("linear", inner.linear)
        self._take = step("take", inner.take)
        self._summed_at = step("summed_at", inner.summed_at)
        self._put = step("put", inner.put)
        self._add_at = step("add_at", _added(inner))
        self._concat = step("concat", lambda *x, axis: plain.concat(list(x), axis=axis))
        self._permute_dims = step("permute_dims", plain.permute_dims)

    # values

    def bare(self, x: Any) -> Any:
        """The array below a recorded one, in tuples and lists too; the rest as it is."""
        if isinstance(x, tuple | list) and not hasattr(x, "_fields"):
            return type(x)(map(self.bare, x))
        return x.value if type(x) is self.kind else x

    def wrapped(self, x: Any) -> Any:
        """Arrays of the library as constants."""
        if isinstance(x, tuple | list):
            return tuple(map(self.wrapped, x)) if isinstance(x, tuple) else list(map(self.wrapped, x))
        return self.kind(x) if is_array(x) else x

    def is_followed(self, x: Any) -> bool:
        """Whether a derivative leads back from it."""
        if isinstance(x, tuple | list):
            return any(map(self.is_followed, x))
        return isinstance(x, Recorded) and x.node is not None

    # the functions of `Backend`

    def operator(self, name: str) -> Callable[..., Any]:
        return self._operators[name]

    def product_of(self, x: Array, y: Array, matmul: Callable[..., Any]) -> Array:
        """`matmul` with its vectors as matrices of one row or column."""
        xp = self.xp
        if x.ndim > 1 and y.ndim > 1:
            return record(self.kind, "matmul", matmul, RULES["matmul"], lambda other: other.xp.matmul)(x, y)
        row, column = (x[None, :] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)
        out = xp.matmul(row, column)
        out = out[..., 0] if y.ndim == 1 else out
        return (out[..., 0] if y.ndim == 1 else out[..., 0, :]) if x.ndim == 1 else out

    def bounded(self, name: str, x: Array, bound: Any) -> Array:
        bound = bound if is_array(bound) else self.asarray(bound, x.dtype, x)
        return getattr(self.xp, name)(x, bound)

    def getitem(self, x: Array, index: Any) -> Array:
        return self._getitem(x, self.bare(index))

    def concat(self, *arrays: Array, axis: int) -> Array:
        return self._concat(*arrays, axis=axis)

    def permute_dims(self, x: Array, axes: tuple[int, ...]) -> Array:
        return self._permute_dims(x, axes)

    def compute_dtype(self, dtype: Any) -> Any:
        return self.inner.compute_dtype(dtype)

    def isdtype(self, dtype: Any, kind: Any) -> bool:
        return self.inner.isdtype(dtype, kind)

    def astype(self, x: Array, dtype: Any) -> Array:
        if x.dtype == dtype:
            return x
        constant = not self.is_followed(x) or self.isdtype(dtype, ("bool", "integral"))
        return self._cast(x, dtype) if constant else self._astype(x, dtype)

    def matmul(self, a: Array, b: Array) -> Array:
        return self._matmul(a, b)

    def linear(self, x: Array, w: Array) -> Array:
        return self._linear(x, w)

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        return self._take(x, indices, axis)

    def clip(self, x: Array, least: int, most: int) -> Array:
        return (
            self.xp.clip(x, least, most)
            if self.is_followed(x)
            else self.kind(self.inner.clip(self.bare(x), least, most))
        )

    def cos(self, x: Array) -> Array:
        return self._cos(x)

    def cumulative_sum(self, x: Array, axis: int) -> Array:
        return self._cumulative_sum(x, axis)

    def erf(self, x: Array) -> Array:
        return self._erf(x)

    def device(self, x: Array) -> Any:
        return self.inner.device(self.bare(x))

    def arange(self, start: int, stop: int, like: Array) -> Array:
        return self.kind(self.inner.arange(start, stop, self.bare(like)))

    def asarray(self, value: Any, dtype: Any, like: Array) -> Array:
        return self.kind(self.inner.asarray(value, dtype, self.bare(like)))

    def tile_sizes(self, p: Any) -> TileSizes:
        return self.inner.tile_sizes(replace(p, **{name: self.bare(getattr(p, name)) for name in "qkv"}))

    def summed_at(self, x: Array, index: Array, count: int) -> Array:
        return self._summed_at(x, index, count)

    def put(self, x: Array, start: Any, tile: Array, axis: int, *, over: bool = False) -> Array:
        return self._put(x, self.bare(start), tile, axis)

    def add_at(self, x: Array, start: Sequence[Any], tile: Array) -> Array:
        return self._add_at(x, tuple(map(self.bare, start)), tile)

    # what autodiff and compilers want to know

    def stop_gradient(self, x: Array) -> Array:
        return self.kind(self.inner.stop_gradient(self.bare(x)))

    def autocast(self, *arrays: Array) -> tuple[Array, ...]:
        cast = self.inner.autocast(*map(self.bare, arrays))
        return tuple(self.astype(x, y.dtype) for x, y in zip(arrays, cast, strict=True))

    def is_concrete(self, x: Array) -> bool:
        return self.inner.is_concrete(self.bare(x))

    def eager(self) -> AbstractContextManager[Any]:
        return self.inner.eager()

    def may_remember(self) -> bool:
        return self.inner.may_remember()

    def symbol(self, size: Any) -> Any:
        return self.wrapped(self.inner.symbol(size))

    def opaque(self, f: Callable[..., Any]) -> Callable[..., Any]:
        plain = self.inner.opaque(f)
        return lambda *arrays: self.wrapped(plain(*map(self.bare, arrays)))

    def unfit(self, x: Any, plain: bool) -> str | None:
        return self.inner.unfit(self.bare(x), plain)

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        from polyattn.gradients.function import vjp

        return vjp(f, x)[1](cotangent)[0]

    def custom_vjp(
        self,
        forward: Callable[[Sequence[Array]], tuple[Array, ...]],
        backward: Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], Sequence[Array | None]],
        arrays: Sequence[Array],
    ) -> tuple[Array, ...]:
        """One node, whatever happens inside, where there are plain arrays."""
        values = [self.bare(x) for x in arrays]
        made = tuple(forward(values))
        if any(map(self.is_followed, made)):
            raise TypeError(
                "polyattn.gradients: expected a function whose derivative is given to be made of its arguments alone, got one "
                "that holds an array which a derivative is taken by; hand that over too"
            )
        outputs = tuple(map(self.bare, made))
        parents = [(i, x.node) for i, x in enumerate(arrays) if type(x) is self.kind and x.node is not None]
        if not parents:
            return tuple(map(self.kind, outputs))

        def pull(*given: Any) -> list[Any]:
            return [self.bare(d) for d in backward(*given)]

        block = Block(self.inner, parents, pull, values, outputs)
        return tuple(self.kind(out, Output(block, i)) for i, out in enumerate(outputs))

    # values out and in

    def to_list(self, x: Array) -> Any:
        return self.inner.to_list(self.bare(x))

    def to_numpy(self, x: Array) -> Array:
        return self.inner.to_numpy(self.bare(x))

    def from_numpy(self, x: Array, like: Array) -> Array:
        return self.kind(self.inner.from_numpy(x, self.bare(like)))


def _added(inner: Backend) -> Callable[..., Any]:
    """add_at on a copy: what is recorded may be asked for again."""

    def add_at(x: Array, start: Sequence[Any], tile: Array) -> Array:
        return inner.add_at(inner.xp.asarray(x, copy=True), start, tile)

    return add_at


def raised(x: Array, backend: Backend) -> Array:
    """x as a constant of the backend, if that records what is done with x's library; else x."""
    if not isinstance(backend, RecordedBackend) or type(x) is backend.kind:
        return x
    below = raised(x, backend.inner)
    return backend.kind(below) if backend_of(below) is backend.inner else x
