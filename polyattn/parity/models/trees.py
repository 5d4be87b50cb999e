"""Arrays inside whatever a component takes or gives: tuples, mappings, dataclasses; and their values in NumPy."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from polyattn.truth.spec import Floats

__all__ = [
    "Traced",
    "dtype_of",
    "first",
    "is_array",
    "is_float",
    "leaves",
    "library_of",
    "mapped",
    "native",
    "replace_first",
    "snapshot",
    "to_numpy",
]


class Traced(RuntimeError):
    """A component was called with tracers: a compiler runs it, and there are no values to see."""


def library_of(x: Any) -> str | None:
    """ "numpy", "torch", "jax", "other" for an array, None for anything else; nothing is imported for it."""
    if isinstance(x, np.ndarray | np.generic):
        return "numpy"
    for name, kind in (("torch", "Tensor"), ("jax", "Array")):
        module = sys.modules.get(name)
        if module is not None and isinstance(x, getattr(module, kind, ())):
            return name
    if isinstance(x, type) or callable(x):
        return None
    return "other" if hasattr(x, "__array_namespace__") and hasattr(x, "dtype") else None


def is_array(x: Any) -> bool:
    """Whether it is an array of some library."""
    return library_of(x) is not None


def dtype_of(x: Any) -> str:
    """The name of its dtype: "float32", "bfloat16", "int64"."""
    return str(x.dtype).rpartition(".")[2]


def is_float(x: Any) -> bool:
    """Whether it is an array of real floats."""
    return is_array(x) and dtype_of(x).startswith(("float", "bfloat"))


def to_numpy(x: Any) -> Floats:
    """Its values in NumPy, a copy; half precision comes as float32, which holds it exactly."""
    library = library_of(x)
    if library == "torch":
        x = x.detach().cpu()
        x = x.float() if x.dtype.is_floating_point and x.dtype.itemsize < 4 else x
        return np.array(x.numpy())
    if library == "jax" and isinstance(x, sys.modules["jax"].core.Tracer):
        raise Traced
    plain = np.array(x)
    half = plain.dtype.kind == "V" or plain.dtype.name in ("float16", "bfloat16")
    return plain.astype(np.float32) if half else plain


def native(x: Floats, like: Any) -> Any:
    """A NumPy array in the library, the dtype and on the device of an array."""
    library = library_of(like)
    if library == "torch":
        return sys.modules["torch"].tensor(x, dtype=like.dtype, device=like.device)
    if library == "jax":
        jax = sys.modules["jax"]
        with jax.enable_x64(True) if like.dtype.itemsize == 8 else nullcontext():
            return jax.numpy.asarray(x, dtype=like.dtype)
    if library == "numpy":
        return np.asarray(x, like.dtype)
    return like.__array_namespace__().asarray(x, dtype=like.dtype)


def _parts(tree: Any) -> list[tuple[Any, Any]] | None:
    """The entries of a structure by key, None for a leaf. What can be called is a leaf: models are dataclasses too."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type) and not callable(tree):
        return [(f.name, getattr(tree, f.name)) for f in fields(tree)]
    return None


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every array with its path, "0", "kwargs.mask", in order."""
    if is_array(tree):
        yield path, tree
        return
    for key, part in _parts(tree) or ():
        yield from leaves(part, f"{path}.{key}" if path else str(key))


def first(tree: Any) -> Any:
    """The first array of what a component gave, or None."""
    return next((x for _, x in leaves(tree)), None)


def mapped(f: Callable[[str, Any], Any], tree: Any, path: str = "") -> Any:
    """The same structure with f(path, array) in place of each array."""
    if is_array(tree):
        return f(path, tree)
    parts = _parts(tree)
    if not parts:
        return tree
    made = {key: mapped(f, part, f"{path}.{key}" if path else str(key)) for key, part in parts}
    if all(made[key] is part for key, part in parts):
        return tree
    if isinstance(tree, tuple | list):
        values = list(made.values())
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if type(tree) is dict:
        return made
    new = copy.copy(tree)
    for key, part in made.items():
        if isinstance(tree, Mapping):
            new[key] = part
        else:
            object.__setattr__(new, key, part)  # of a frozen one too
    return new


def replace_first(tree: Any, x: Any) -> Any:
    """The same structure with another first array."""
    done = False

    def once(_: str, old: Any) -> Any:
        nonlocal done
        if done:
            return old
        done = True
        return x

    return mapped(once, tree)


def snapshot(tree: Any) -> Any:
    """The arguments as they are now: a component may write into them, and into a cache among them."""
    if is_array(tree):
        library = library_of(tree)
        if library == "torch":
            return tree.detach().clone()
        return tree if library == "jax" else copy.copy(tree)
    if isinstance(tree, str | bytes | int | float | complex | type(None)) or callable(tree):
        return tree
    parts = _parts(tree)
    if parts is None:
        try:
            return copy.deepcopy(tree)
        except Exception:  # a handle of something outside: the component gets the same again
            return tree
    if isinstance(tree, tuple | list):
        values = [snapshot(part) for _, part in parts]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if type(tree) is dict:
        return {key: snapshot(part) for key, part in parts}
    new = copy.copy(tree)
    for key, part in parts:
        if isinstance(tree, Mapping):
            new[key] = snapshot(part)
        else:
            object.__setattr__(new, key, snapshot(part))
    return new
