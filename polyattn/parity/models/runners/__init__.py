"""How a model of each framework is watched."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from os import PathLike
from typing import Any

from polyattn.layers.layer import Layer
from polyattn.parity.models.watching import Runner

__all__ = ["runner_of"]


def runner_of(who: str, model: Any) -> Runner:
    """The runner of a model; TypeError for what is none."""
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], Layer):
        return _made("stack", "StackRunner", *model)
    if isinstance(model, tuple) and len(model) == 2 and _is_a(model[0], "flax.linen"):
        return _made("linen", "LinenRunner", *model)
    if isinstance(model, str | PathLike) or _is_a(model, "onnx"):
        return _made("graph", "GraphRunner", who, model)
    if _is_a(model, "keras"):  # on the backend torch it is a module of PyTorch too
        return _made("keras_layers", "KerasRunner", model)
    if _is_a(model, "torch") and hasattr(model, "named_modules"):
        return _made("pytorch", "TorchRunner", model)
    if _is_a(model, "flax.nnx"):
        return _made("nnx_modules", "NnxRunner", model)
    if _is_a(model, "flax.linen") and model.scope is not None:
        return _made("linen", "LinenRunner", *model.unbind())
    if callable(model) and not isinstance(model, Layer | type) and not _is_a(model, "flax.linen"):
        return _made("function", "FunctionRunner", model)
    advice = {
        True: "a layer has no parameters of its own: pass (layer, params)",
        _is_a(model, "flax.linen"): "a Linen module has no parameters of its own: pass (module, variables)",
        not isinstance(model, Layer) and not _is_a(model, "flax.linen"): "pass the model itself",
    }[True]
    raise TypeError(
        f"{who}: expected a module of torch, nnx or keras, (Linen module, variables), (polyattn layer, params), the path "
        f"of an ONNX file or a function, got {_said(model)}; {advice}"
    )


def _is_a(x: Any, package: str) -> bool:
    """Whether one of the classes of x comes from a package."""
    parts = package.split(".")
    return any(base.__module__.split(".")[: len(parts)] == parts for base in type(x).__mro__)


def _said(model: Any) -> str:
    if isinstance(model, tuple):
        return f"a tuple of {', '.join(type(x).__name__ for x in model) or 'nothing'}"
    if isinstance(model, Mapping):
        return "a mapping"
    return f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__


def _made(module: str, name: str, *arguments: Any) -> Runner:
    loaded = importlib.import_module(f"polyattn.parity.models.runners.{module}")
    made: Runner = getattr(loaded, name)(*arguments)
    return made
