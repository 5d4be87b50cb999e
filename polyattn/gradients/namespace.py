"""The array API namespace of recorded arrays: the functions of a library, each with its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyattn.arrays import Array
from polyattn.gradients.recorded import Recorded, record
from polyattn.gradients.rules import CONSTANT, RULES

#: Functions that give no array.
_ASKING = frozenset(
    ["__array_namespace_info__", "broadcast_shapes", "can_cast", "finfo", "iinfo", "isdtype", "result_type"]
)


class RecordedNamespace:
    """The functions of `polyattn.gradients.rules` by their rules, those that know no derivative on constants alone."""

    def __init__(self, backend: Any, plain: Any, prefix: str = "") -> None:
        self._backend, self._plain, self._prefix = backend, plain, prefix
        self.__name__ = f"recorded {plain.__name__}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name not in _ASKING:
            raise AttributeError(name)
        found = getattr(self._plain, name, None)
        if found is None:
            raise AttributeError(
                f"polyattn.gradients: expected a function that {self._plain.__name__} has, got {name!r}; write it with "
                "others"
            )
        made: Any = found
        if type(found).__name__ == "module":
            made = RecordedNamespace(self._backend, found, f"{name}.")
        elif callable(found) and not isinstance(found, type):
            made = self._made(name, found)
        setattr(self, name, made)
        return made

    def named(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of that name, and where there is none, this one, which has no derivative."""
        found = getattr(self, name) if hasattr(self._plain, name) else None
        return found if callable(found) else self._without(name, function)

    def _made(self, name: str, found: Callable[..., Any]) -> Callable[..., Any]:
        backend, whole = self._backend, self._prefix + name
        if name in _ASKING:
            return lambda *arguments, **options: found(
                *map(backend.bare, arguments), **{key: backend.bare(x) for key, x in options.items()}
            )

        def same(other: Any) -> Any:
            return getattr(other.xp.linalg if self._prefix else other.xp, name)

        if name in RULES and self._prefix == ("linalg." if name == "solve" else ""):
            return record(backend.kind, whole, found, RULES[name], same)
        if name in CONSTANT:
            return record(backend.kind, whole, found, None, same)
        return self._without(whole, found)

    def _without(self, name: str, found: Callable[..., Any]) -> Callable[..., Any]:
        """A function without a rule: of constants."""
        backend = self._backend

        def function(*arguments: Any, **options: Any) -> Any:
            if any(map(backend.is_followed, (*arguments, *options.values()))):
                raise NotImplementedError(
                    f"polyattn.gradients: expected a function of which there is a derivative, got {name}; write it with "
                    "those of polyattn.gradients.rules, or say by polyattn.gradients.stop_gradient(x) that x is a constant"
                )
            given = {key: backend.bare(x) for key, x in options.items()}
            return backend.wrapped(found(*map(backend.bare, arguments), **given))

        return function

    # functions of the standard that are made of others

    def asarray(self, x: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Array:
        """An array that is followed stays so."""
        if not isinstance(x, Recorded):
            return self._backend.kind(self._plain.asarray(x, dtype=dtype, device=device, copy=copy))
        return x if dtype is None else self._backend.astype(x, dtype)

    def astype(self, x: Array, dtype: Any, *, copy: bool = True, device: Any = None) -> Array:
        return self._backend.astype(x, dtype)

    def concat(self, arrays: Any, /, axis: int | None = 0) -> Array:
        if axis is None:
            arrays, axis = [self.reshape(x, (-1,)) for x in arrays], 0
        return self._backend.concat(*arrays, axis=axis)

    def stack(self, arrays: Any, /, axis: int = 0) -> Array:
        return self.concat([self.expand_dims(x, axis=axis) for x in arrays], axis=axis)

    def unstack(self, x: Array, /, *, axis: int = 0) -> tuple[Array, ...]:
        return tuple(iter(self.moveaxis(x, axis, 0)))

    def broadcast_arrays(self, *arrays: Array) -> list[Array]:
        shape = self.broadcast_shapes(*(tuple(x.shape) for x in arrays))
        return [self.broadcast_to(x, shape) for x in arrays]

    def clip(self, x: Array, /, min: Any = None, max: Any = None) -> Array:
        """By the gradient of the inside; at a bound half of it, as maximum and minimum have it."""
        if not self._backend.is_followed(x) and not any(map(self._backend.is_followed, (min, max))):
            bare = self._backend.bare
            return self._backend.kind(self._plain.clip(bare(x), bare(min), bare(max)))
        x = x if min is None else self._backend.bounded("maximum", x, min)
        return x if max is None else self._backend.bounded("minimum", x, max)

    def full(self, shape: Any, fill_value: Any, **options: Any) -> Array:
        if not isinstance(fill_value, Recorded):
            return self._backend.kind(self._plain.full(shape, fill_value, **options))
        dtype = options.get("dtype") or fill_value.dtype
        return self.broadcast_to(
            self._backend.astype(fill_value, dtype), shape if isinstance(shape, tuple) else (shape,)
        )

    def full_like(self, x: Array, /, fill_value: Any, **options: Any) -> Array:
        if isinstance(fill_value, Recorded):
            return self.full(tuple(x.shape), fill_value, dtype=options.get("dtype") or x.dtype)
        return self._backend.kind(self._plain.full_like(self._backend.bare(x), fill_value, **options))

    def matmul(self, x: Array, y: Array, /) -> Array:
        return self._backend.product_of(x, y, self._plain.matmul)

    def permute_dims(self, x: Array, /, axes: Any = None) -> Array:
        axes = tuple(range(x.ndim))[::-1] if axes is None else tuple(axes)
        return self._backend.permute_dims(x, axes)

    def repeat(self, x: Array, repeats: Any, /, *, axis: int | None = None) -> Array:
        x, axis = (self.reshape(x, (-1,)), 0) if axis is None else (x, axis % x.ndim)
        places = self._backend.inner.arange(0, x.shape[axis], self._backend.bare(x))
        index = self._plain.repeat(places, self._backend.bare(repeats), axis=0)
        return self._backend.take(x, index, axis)

    def roll(self, x: Array, shift: int, /, *, axis: int | None = None) -> Array:
        if axis is None:
            return self.reshape(self.roll(self.reshape(x, (-1,)), shift, axis=0), tuple(x.shape))
        places = self._backend.inner.arange(0, x.shape[axis], self._backend.bare(x))
        return self._backend.take(x, self._plain.roll(places, shift, axis=0), axis % x.ndim)

    def tile(self, x: Array, repetitions: tuple[int, ...], /) -> Array:
        more = max(len(repetitions), x.ndim)
        x = self.reshape(x, (*(1,) * (more - x.ndim), *x.shape))
        for axis, n in enumerate((*(1,) * (more - len(repetitions)), *repetitions)):
            x = self.concat([x] * n, axis=axis) if n else x[(*(slice(None),) * axis, slice(0, 0), ...)]
        return x

    def tril(self, x: Array, /, *, k: int = 0) -> Array:
        return self._corner(x, lambda distance: distance <= k)

    def triu(self, x: Array, /, *, k: int = 0) -> Array:
        return self._corner(x, lambda distance: distance >= k)

    def _corner(self, x: Array, keeps: Callable[[Any], Any]) -> Array:
        row, column = (self._backend.arange(0, n, x) for n in x.shape[-2:])
        return self.where(keeps(column[None, :] - row[:, None]), x, 0.0)

    def var(self, x: Array, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Array:
        away = x - self.mean(x, axis=axis, keepdims=True)
        mean = self.mean(away * away, axis=axis, keepdims=keepdims)
        count = x.size // max(mean.size, 1)
        return mean * (count / (count - correction)) if correction else mean

    def std(self, x: Array, /, **options: Any) -> Array:
        return self.sqrt(self.var(x, **options))
