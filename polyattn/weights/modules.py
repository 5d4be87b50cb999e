"""The arrays of a framework's own module by name, and back into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyattn.arrays import Array
from polyattn.weights.tree import check_names, convert, flatten, unflatten

__all__ = ["read", "write"]


def read(module: Any) -> dict[str, Array]:
    """The parameters of a module of PyTorch, Flax nnx, Keras or Equinox, by the names that `from_format` knows.

    Copies, so that neither side sees the other learn.

    params = from_format(layer, read(torch.nn.MultiheadAttention(64, 4)), "torch")
    """
    return {
        name: x.detach().clone() if hasattr(x, "detach") else x.copy() for name, x in _arrays(module).items()
    }


def _arrays(module: Any) -> dict[str, Array]:
    """The arrays themselves."""
    kind = _framework(module)
    if kind == "torch":
        return dict(module.state_dict())
    if kind == "flax":
        from flax import nnx

        return flatten(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    if kind == "keras":
        return {_keras_name(module, v): v.value for v in module.weights}
    return _equinox(module)


def write(module: Any, tensors: Mapping[str, Array]) -> Any:
    """Sets the parameters of a module, by name, from arrays of any library; every name must be there.

    Returns it; in Equinox, whose modules do not change, a new one.
    """
    own = _arrays(module)
    shapes = {name: tuple(x.shape) for name, x in own.items()}
    check_names(f"polyattn.weights.write({type(module).__name__})", tensors, shapes)
    for like in list(own.values())[:1]:
        tensors = convert(tensors, like=like)
    kind = _framework(module)
    if kind == "torch":
        module.load_state_dict(dict(tensors))
    elif kind == "flax":
        from flax import nnx

        state = nnx.state(module, nnx.Param)
        nnx.replace_by_pure_dict(state, unflatten(tensors))
        nnx.update(module, state)
    elif kind == "keras":
        for v in module.weights:
            v.assign(tensors[_keras_name(module, v)])
    else:
        import jax

        leaves, shape = jax.tree_util.tree_flatten_with_path(module)
        new = [tensors[name] if (name := _path(path)) in tensors else leaf for path, leaf in leaves]
        return jax.tree_util.tree_unflatten(shape, new)
    return module


def _framework(module: Any) -> str:
    roots = {base.__module__.partition(".")[0] for base in type(module).__mro__}
    # Keras on its PyTorch backend is both.
    for name in ("keras", "flax", "equinox", "torch"):
        if name in roots:
            return name
    raise TypeError(
        f"polyattn.weights: expected a module of PyTorch, Flax nnx, Keras or Equinox, got {type(module).__name__}; "
        "pass its arrays by name to from_format"
    )


def _keras_name(module: Any, variable: Any) -> str:
    """A path without the name of the layer itself."""
    return str(variable.path).removeprefix(f"{module.path}/")


def _path(path: Any) -> str:
    return ".".join(
        str(getattr(step, "name", getattr(step, "key", getattr(step, "idx", step)))) for step in path
    )


def _equinox(module: Any) -> dict[str, Array]:
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(module)
    return {_path(path): leaf for path, leaf in leaves if hasattr(leaf, "dtype")}
