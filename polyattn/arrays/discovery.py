"""How an array finds the backend of its library: by its type, at the first call, never at import.

Adapters announce themselves through the entry-point group ``polyattn.backends``. Where nothing is installed, as
when the sources are on the path, those that travel with polyattn are found by their import name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import TypeGuard

import array_api_compat

from polyattn.arrays.backend import Backend
from polyattn.arrays.numbers import Array

GROUP = "polyattn.backends"
#: Libraries that polyattn has adapters for: without one there is something to say.
CARRIED = ("numpy", "jax", "torch")

#: What a namespace must have, as no adapter stands between it and the mathematics.
NEEDED = (
    "arange asarray astype any broadcast_to concat exp finfo float32 full inf int32 isdtype log matmul "
    "matrix_transpose max maximum permute_dims reshape stack sum where zeros zeros_like"
)


class NotPlain(TypeError):
    """An array of a kind with which attention cannot be computed; `wanted`: what is said of it."""

    def __init__(self, wanted: str) -> None:
        super().__init__(f"polyattn: expected {wanted}")
        self.wanted = wanted


_BY_TYPE: dict[type, Backend] = {}  # a plain dict: compilers can look through it
_BY_NAME: dict[str, Backend] = {}
#: An entry for each derivative that is being recorded now (`polyattn.gradients`), in whatever thread: without one nobody
#: need look for recorded arrays.
RECORDING: list[None] = []


_NUMBERS = (int, float, bool)  # asked first: compilers have symbols of these, which have no attributes


def is_array(x: object) -> TypeGuard[Array]:
    """Whether a value looks like an array of some library, rather than a Python number, a function or a class."""
    return type(x) not in _NUMBERS and hasattr(x, "dtype") and not isinstance(x, type)


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


def known_as(kind: type, backend: Backend) -> None:
    """From now on the arrays of a type have this backend."""
    _BY_TYPE[kind] = backend


def _load_for(kind: type) -> bool:
    """See to it that the backend of an array type is known, by the package that defines the type."""
    if kind in _BY_TYPE:
        return True
    for base in kind.__mro__:
        found = backend_named(base.__module__.partition(".")[0])
        if found is not None:
            if (reason := found.refuses(kind)) is not None:
                raise NotPlain(
                    f"a plain array of {found.name}, got {kind.__module__}.{kind.__qualname__}, {reason}"
                )
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
        if missing := [word for word in NEEDED.split() if not hasattr(xp, word)]:
            raise NotPlain(
                f"an array of a library that follows the array API standard, got {type(array).__module__}."
                f"{type(array).__qualname__}, whose namespace {xp.__name__} lacks {', '.join(missing)}; convert it, "
                "for example with numpy.asarray, or write an adapter for it"
            )
        if name in CARRIED:
            warnings.warn(
                f"polyattn: expected the adapter polyattn_{name}, which travels with polyattn, got none; {name} runs "
                "in plain Python loops without derivatives of its own: install polyattn, or put backends/ on the path",
                stacklevel=2,
            )
        found = _BY_NAME[name] = Backend(name, xp)
    _BY_TYPE[type(array)] = found
    return found


def backend_named(name: str) -> Backend | None:
    """The backend registered under a name, loaded on first use; None without one, or without its library."""
    if name not in _BY_NAME:
        from importlib.metadata import entry_points  # takes longer to import than all of polyattn

        package = f"polyattn_{name}"
        try:
            for entry in entry_points(group=GROUP, name=name):
                _BY_NAME[name] = entry.load()
            if name not in _BY_NAME and name.isidentifier() and find_spec(package) is not None:
                _BY_NAME[name] = import_module(package).backend
        except ModuleNotFoundError as error:
            if error.name != name:  # the adapter lacks something else
                raise
    return _BY_NAME.get(name)


def numpy_backend() -> Backend:
    """The backend of NumPy, which polyattn carries; loaded on first use."""
    found = backend_named("numpy")
    if found is None:
        raise ImportError(
            "polyattn: expected its adapter for NumPy, polyattn_numpy, got none; install polyattn, or put its "
            "folder backends/ on the path"
        )
    return found


def eagerly(arrays: Iterable[Array]) -> AbstractContextManager[None]:
    """A context in which what is made of these arrays can be read, if they can."""
    known = list(arrays)
    if known and all(backend_of(x).is_concrete(x) for x in known):
        return backend_of(known[0]).eager()
    return nullcontext()


def readable(*values: object) -> bool:
    """Whether the values of all arrays among these can be read now."""
    return all(backend_of(x).is_concrete(x) for x in values if is_array(x))
