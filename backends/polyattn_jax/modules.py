"""A polyattn layer as a module of Flax nnx or Equinox; in plain JAX its params are a pytree and need none."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import jax.numpy as jnp

from polyattn.layers import Layer, LayerResult


def nnx_module(layer: Layer, *, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """`layer` as a `flax.nnx.Module`: module(x, ...) = layer(params, x, ...), each array an `nnx.Param`.

    module.run(x, ..., cache=..., return_aux=...) is that of the layer, a `LayerResult`.

    Dropout happens where the call has a dropout_seed. nnx.split, nnx.grad and nnx.Optimizer see the params by
    the names of the layer.
    """
    return _nnx()(layer, layer.init(seed, like=jnp.zeros((), dtype)))


def equinox_module(layer: Layer, *, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """`layer` as an `equinox.Module`: module(x, ...) = layer(module.params, x, ...); the layer is static.

    module.run(x, ..., cache=..., return_aux=...) is that of the layer, a `LayerResult`.

    Like the params, the module takes unbatched arrays (L, E) and batched ones; `jax.vmap` works on both.
    """
    return _equinox()(layer.init(seed, like=jnp.zeros((), dtype)), layer)


# One class for all modules of a framework, made when the first is wanted: the class is part of the structure of a
# tree, and of what a compiled function is looked up by.


def _imported(name: str, who: str) -> Any:
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        advice = f"install it, pip install {package}" if missing else "mend that installation"
        raise type(error)(
            f"{who}: expected the package {package}, got: {error}; {advice}", name=error.name
        ) from error


@cache
def _nnx() -> Any:
    nnx: Any = _imported("flax.nnx", "polyattn_jax.nnx_module")

    class NnxModule(nnx.Module):  # type: ignore[name-defined]
        __qualname__ = "NnxModule"  # where pickle looks: see __getattr__

        def __init__(self, layer: Layer, params: dict[str, Any]) -> None:
            self.layer = layer
            for name, value in params.items():
                setattr(self, name, nnx.data(_wrap(value)))

        def __call__(self, *inputs: Any, **options: Any) -> Any:
            return self.layer(self._params(), *inputs, **options)

        def run(self, *inputs: Any, **options: Any) -> LayerResult:
            return self.layer.run(self._params(), *inputs, **options)

        def _params(self) -> dict[str, Any]:
            return {name: _unwrap(getattr(self, name)) for name in self.layer.parameters()}

    def _wrap(value: Any) -> Any:
        return (
            {name: _wrap(part) for name, part in value.items()}
            if isinstance(value, dict)
            else nnx.Param(value)
        )

    def _unwrap(value: Any) -> Any:
        return (
            value[...] if isinstance(value, nnx.Variable) else {name: _unwrap(value[name]) for name in value}
        )

    return NnxModule


@cache
def _equinox() -> Any:
    eqx: Any = _imported("equinox", "polyattn_jax.equinox_module")

    class EquinoxModule(eqx.Module):  # type: ignore[name-defined]
        __qualname__ = "EquinoxModule"

        params: dict[str, Any]
        layer: Layer = eqx.field(static=True)

        def __call__(self, *inputs: Any, **options: Any) -> Any:
            return self.layer(self.params, *inputs, **options)

        def run(self, *inputs: Any, **options: Any) -> LayerResult:
            return self.layer.run(self.params, *inputs, **options)

    return EquinoxModule


def __getattr__(name: str) -> Any:
    """The classes by their names, which load Flax and Equinox."""
    if name in ("NnxModule", "EquinoxModule"):
        return _nnx() if name == "NnxModule" else _equinox()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
