"""Nested params and flat names, and the way of params from one array library to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.layers import Layer, Params

#: Deeper than any model, and shallower than the stack of Python.
DEEPEST = 100

__all__ = ["check_names", "check_params", "convert", "flatten", "unflatten"]


def flatten(params: Params, separator: str = ".") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a.b": x}.

    >>> flatten({"attention": {"w_q": 1}, "scale": 2})
    {'attention.w_q': 1, 'scale': 2}
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            f"polyattn.weights: expected params, a dict of names, got {type(params).__name__}; name its arrays"
        )
    return _flat(params, separator, 1)


def _flat(params: Params, separator: str, depth: int) -> dict[str, Any]:
    _check_depth(depth)
    flat: dict[str, Any] = {}
    for name, value in params.items():
        part = (
            {f"{name}{separator}{rest}": x for rest, x in _flat(value, separator, depth + 1).items()}
            if isinstance(value, Mapping)
            else {str(name): value}
        )
        if twice := flat.keys() & part.keys():
            raise ValueError(
                f"polyattn.weights: expected each name once, got {', '.join(sorted(twice))} twice; a name must not "
                f"contain {separator!r}"
            )
        flat |= part
    return flat


def unflatten(flat: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """The inverse of `flatten`.

    >>> unflatten({"attention.w_q": 1, "scale": 2})
    {'attention': {'w_q': 1}, 'scale': 2}
    """
    params: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(separator)
        _check_depth(len(path) + 1)
        place = params
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ValueError(
                    f"polyattn.weights: expected {step!r} in {name!r} to be a group of names, got an array of "
                    "that name too; the names contradict each other"
                )
        if last in place:
            raise ValueError(
                f"polyattn.weights: expected each name once, got {name!r} as an array and as a group; the names "
                "contradict each other"
            )
        place[last] = value
    return params


def convert(params: Params, like: Array) -> dict[str, Any]:
    """The params as arrays of the library and on the device of `like`, each of its own dtype.

    TypeError if the library would change a dtype, as JAX does to float64 unless x64 is enabled.

    >>> import numpy as np
    >>> convert({"scale": np.ones(2)}, like=np.zeros(()))
    {'scale': array([1., 1.])}
    """
    target = backend_of(like)

    def one(name: str, x: Array) -> Array:
        source = backend_of(x)
        values = source.to_numpy(x)
        made = target.from_numpy(values, like)
        if (survived := target.to_numpy(made).dtype) != values.dtype.newbyteorder("="):
            raise TypeError(
                f"polyattn.weights.convert: expected {name!r} to keep its dtype {values.dtype}, got {survived} from "
                f"{target.name}; cast it first, or let {target.name} have that dtype (JAX: jax_enable_x64)"
            )
        return made

    def every(params: Params, depth: int) -> dict[str, Any]:
        _check_depth(depth)
        return {
            name: every(x, depth + 1) if isinstance(x, Mapping) else one(name, x)
            for name, x in params.items()
        }

    return every(params, 1)


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(
            f"polyattn.weights: expected names in at most {DEEPEST} groups one inside the other, got more; does a group "
            "contain itself?"
        )


def check_names(where: str, given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A ValueError that lists what is missing, unexpected or of another shape, unless there is nothing of that."""
    missing, unexpected = sorted(shapes.keys() - given.keys()), sorted(given.keys() - shapes.keys())
    wrong = [
        f"{name} has {tuple(given[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if missing or unexpected or wrong:
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in found if names)
        raise ValueError(
            f"{where}: expected {len(shapes)} arrays by name, got {len(given)}, {listed}; "
            "is the layer configured as the source was?"
        )


def check_params(where: str, layer: Layer, params: Params) -> None:
    """The same for the params of a layer."""
    check_names(where, flatten(params), flatten(layer.shapes()))
