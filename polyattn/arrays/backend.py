"""What attention needs and the array API standard lacks, and how an array finds it.

A `Backend` belongs to one array library. This base class does everything with the standard and
plain Python, so an array library nobody wrote an adapter for still works; an adapter overrides
what its library does better. Adapters are found through the entry-point group
``polyattn.backends`` at the first call with an array of theirs, never at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeGuard

import array_api_compat

from polyattn.arrays.special import erf

Array = Any
Namespace = Any

GROUP = "polyattn.backends"


class Backend:
    """One array library, as attention sees it.

    `name` is the first word of the array namespace ("numpy", "jax", "torch"), `xp` its array API
    namespace. See `backends/README.md` for the contract on one page.
    """

    #: Array types to be known from the first look-up on, where a compiler would not see a second one.
    array_types: tuple[type, ...] = ()
    #: Whether lengths are what they are when Python runs; False where a program is written that may see others.
    lengths_are_fixed = True

    def __init__(self, name: str, xp: Namespace) -> None:
        self.name = name
        self.xp = xp

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # numbers

    def compute_dtype(self, dtype: Any) -> Any:
        """The dtype in which sums over `dtype` are carried, or None if it is not real floating.

        At least float32; float64 stays float64.
        """
        xp = self.xp
        if not xp.isdtype(dtype, "real floating"):
            return None
        return xp.float32 if xp.finfo(dtype).bits < 32 else dtype

    def astype(self, x: Array, dtype: Any) -> Array:
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    def matmul(self, a: Array, b: Array) -> Array:
        """`a @ b` of two arrays in the compute dtype, to the full precision of that dtype."""
        return self.xp.matmul(a, b)

    def linear(self, x: Array, w: Array) -> Array:
        """`x @ w` of (n, a) and (a, b) in x's dtype, summed in the compute dtype, as precise as the user has set."""
        compute = self.compute_dtype(x.dtype)
        return self.astype(self.matmul(self.astype(x, compute), self.astype(w, compute)), x.dtype)

    def take(self, x: Array, indices: Array, axis: int) -> Array:
        """x at the places `indices`, (n,) integers of any width, along an axis."""
        xp = self.xp
        if xp.iinfo(indices.dtype).bits < 32:  # no index for PyTorch
            indices = self.astype(indices, xp.int32)
        return xp.take(x, indices, axis=axis)

    def cos(self, x: Array) -> Array:
        """The cosine, to the full precision of x's dtype."""
        return self.xp.cos(x)

    def erf(self, x: Array) -> Array:
        """The error function, which the standard lacks."""
        return erf(x, self.xp)

    # autodiff and tracing

    def stop_gradient(self, x: Array) -> Array:
        """`x`, taken as a constant by autodiff."""
        return x

    def is_concrete(self, x: Array) -> bool:
        """Whether the values of `x` can be read now (False while a compiler or vmap traces)."""
        return True

    def eager(self) -> AbstractContextManager[Any]:
        """Inside, operations on concrete arrays give concrete arrays, even while a compiler traces."""
        return nullcontext()

    def to_list(self, x: Array) -> Any:
        """The values of a concrete array as nested Python lists (a number if 0-d)."""
        if x.ndim == 0:
            kind = self.xp.isdtype
            return bool(x) if kind(x.dtype, "bool") else int(x) if kind(x.dtype, "integral") else float(x)
        return [self.to_list(x[i, ...]) for i in range(x.shape[0])]

    def to_numpy(self, x: Array) -> Array:
        """The values as a NumPy array of the same dtype; a copy where the library has its own memory."""
        return numpy_backend().xp.asarray(x)

    def from_numpy(self, x: Array, like: Array) -> Array:
        """A copy of a NumPy array in this library, on the device of `like`, of the same dtype if it has that."""
        return self.xp.asarray(x, device=self.device(like), copy=True)

    def may_remember(self) -> bool:
        """Whether Python runs as itself now, so that a cache may be looked into."""
        return True

    def opaque(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f`, a function of integer arrays, as one indivisible step for the library's compiler."""
        return f

    # devices

    def device(self, x: Array) -> Any:
        """The device on which new arrays for use beside `x` are made; None lets the library choose."""
        return array_api_compat.device(x)

    def arange(self, start: int, stop: int, like: Array) -> Array:
        """int32 positions start .. stop-1 on the device of `like`."""
        return self.xp.arange(start, stop, dtype=self.xp.int32, device=self.device(like))

    def asarray(self, value: Any, dtype: Any, like: Array) -> Array:
        """Python numbers as an array on the device of `like`."""
        return self.xp.asarray(value, dtype=dtype, device=self.device(like))

    # choice

    def native(self, p: Any, needs_lse: bool, *, by_name: bool = False) -> Any:
        """A function Problem -> Output around the library's own kernel, or the reason why none fits.

        by_name: the caller asked for "native" and will wait for a compiler.
        """
        return f"{self.name} has no attention kernel"

    def loses_gradient(self, p: Any) -> str | None:
        """Why the blockwise engine would lose a gradient of a problem, which it must not; None if it would not."""
        return None

    def prefer(self, p: Any) -> tuple[str, str]:
        """The fastest of "native", "blockwise", "reference" for a problem, and why."""
        return self.prefer_without_native(p)

    def prefer_without_native(self, p: Any) -> tuple[str, str]:
        """The same, if no kernel fits."""
        if p.scores_bytes > 2**20:
            return "blockwise", "the scores take more than 1 MiB"
        return "reference", "the scores take at most 1 MiB"

    # loops and tiles: what the blockwise engine is made of

    def schedule(self, p: Any) -> Schedule:
        """The sizes in which the engine cuts a problem."""
        return Schedule(rows=256, keys=512, heads=1)

    def map(self, f: Callable[[Any], tuple[Array, ...]], n: int) -> tuple[Array, ...]:
        """f(0), ..., f(n - 1), in any order, each of their arrays stacked along a new first axis."""
        results = [f(i) for i in range(n)]
        return tuple(self.xp.stack(parts) for parts in zip(*results, strict=True))

    def fold(self, n: Any, step: Callable[[Any, Any], Any], state: Any) -> Any:
        """step(n - 1, ... step(1, step(0, state))); n may be an element of a `table`."""
        for i in range(n):
            state = step(i, state)
        return state

    def scan(self, n: int, step: Callable[[Any, Any], tuple[Any, Array]], state: Any) -> tuple[Any, Array]:
        """`fold` whose step also gives an array: the last state, and those arrays stacked along a new first axis."""
        outputs = []
        for i in range(n):
            state, output = step(i, state)
            outputs.append(output)
        return state, self.xp.stack(outputs)

    def table(self, numbers: Any, like: Array) -> Any:
        """Nested lists of integers in a form that is indexed by what `map` and `fold` count with."""
        return numbers

    def tile(self, x: Array, start: Any, size: int, axis: int) -> Array:
        """`size` consecutive elements of `x` along the negative `axis`."""
        return x[(..., slice(start, start + size), *(slice(None),) * (-axis - 1))]

    def add_at(self, x: Array, start: Sequence[Any], tile: Array) -> Array:
        """`x` with `tile` added to the part that begins at `start`; may overwrite `x`."""
        x[tuple(slice(i, i + n) for i, n in zip(start, tile.shape, strict=True))] += tile
        return x

    def put(self, x: Array, start: Any, tile: Array, axis: int) -> Array:
        """`x` with `tile` in place of the part that begins at `start` of the negative `axis`; `x` stays as it is.

        start: an integer, or a 0-d integer array that a compiler may trace.
        """
        xp = self.xp
        size, new = x.shape[axis], tile.shape[axis]
        column = (-1, *(1,) * (-axis - 1))
        index = self.arange(0, size, x) - start
        source = self.take(tile, xp.clip(index, 0, max(new - 1, 0)), axis) if new else x
        return xp.where(xp.reshape((index >= 0) & (index < new), column), source, x)

    def product(self, a: Array, b: Array, slot: int) -> Array:
        """`matmul` whose result the caller overwrites and lets go of before it asks for `slot` again."""
        return self.matmul(a, b)

    def exp_of_difference(self, x: Array, y: Array) -> Array:
        """exp(x - y); may overwrite `x`, which is a `product`."""
        return self.xp.exp(x - y)

    def compiled(self, f: Callable[..., Any], static: Any, arrays: Sequence[Any]) -> Any:
        """f(static, arrays), compiled if the library does that; `static` is hashable."""
        return f(static, arrays)

    def derivative(self, f: Callable[[Array], Array], x: Array, cotangent: Array) -> Array:
        """The gradient of sum(f(x) * cotangent)."""
        raise NotImplementedError(
            f"polyattn: the derivative of a function as score_mod needs autodiff, which {self.name} has not; "
            "use the modifications of polyattn.mods"
        )

    def custom_vjp(
        self,
        forward: Callable[[Sequence[Array]], tuple[Array, ...]],
        backward: Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], Sequence[Array | None]],
        arrays: Sequence[Array],
    ) -> tuple[Array, ...]:
        """forward(arrays), a tuple of outputs, whose derivative is backward(arrays, outputs, cotangents)."""
        return forward(arrays)


class Schedule(NamedTuple):
    """How the blockwise engine cuts a problem: rows and keys of a tile, and kv heads per block."""

    rows: int
    keys: int
    heads: int  # kv heads of one block; 0 = all heads of all batch items in one


def eagerly(arrays: Iterable[Array]) -> AbstractContextManager[Any]:
    """A context in which what is made of these arrays can be read, if they can."""
    known = list(arrays)
    if known and all(backend_of(x).is_concrete(x) for x in known):
        return backend_of(known[0]).eager()
    return nullcontext()


def is_array(x: object) -> TypeGuard[Array]:
    """Whether a value looks like an array of some library, rather than a Python number or a function."""
    return hasattr(x, "dtype")


_BY_TYPE: dict[type, Backend] = {}  # a plain dict: compilers can look through it
_BY_NAME: dict[str, Backend] = {}


def backend_of(array: Array) -> Backend:
    """The backend of an array; a TypeError if it is not an array of an array API library.

    >>> import numpy as np
    >>> backend_of(np.zeros(3)).name
    'numpy'
    """
    kind = type(array)
    if _load_for(kind):
        return _BY_TYPE[kind]
    return _backend_of_namespace(array)


def _load_for(kind: type) -> bool:
    """See to it that the backend of an array type is known, by the package that defines the type."""
    if kind in _BY_TYPE:
        return True
    for base in kind.__mro__:
        found = backend_named(base.__module__.partition(".")[0])
        if found is not None:
            _BY_TYPE.update(dict.fromkeys((kind, *found.array_types), found))
            return True
    return False


# `torch.compile` calls a function marked so for real and takes its result as a constant, which
# makes the first, cold look-up legal inside a compiled function.
_load_for._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _backend_of_namespace(array: Array) -> Backend:
    try:
        xp = array_api_compat.array_namespace(array)
    except TypeError:
        raise TypeError(
            f"polyattn: expected an array of an array API library (NumPy, JAX, PyTorch, ...), got "
            f"{type(array).__module__}.{type(array).__qualname__}; convert it first, "
            "for example with numpy.asarray"
        ) from None
    name = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    found = backend_named(name)
    if found is None:
        found = _BY_NAME[name] = Backend(name, xp)
    _BY_TYPE[type(array)] = found
    return found


def numpy_backend() -> Backend:
    """The backend of NumPy, which is always there; loaded on first use."""
    found = backend_named("numpy")
    assert found is not None, "polyattn carries its adapter for NumPy"
    return found


def backend_named(name: str) -> Backend | None:
    """The backend registered under a name, loaded on first use; None if nobody registered it."""
    if name not in _BY_NAME:
        from importlib.metadata import entry_points  # takes longer to import than all of polyattn

        for entry in entry_points(group=GROUP, name=name):
            _BY_NAME[name] = entry.load()
    return _BY_NAME.get(name)
