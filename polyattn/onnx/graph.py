"""Functions and layers as ONNX models: the same Python code, run once on arrays that write a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from polyattn.arrays import Array, backend_of, is_array
from polyattn.layers import Layer, Params

__all__ = ["export"]


def export(
    f: Callable[..., Any],
    example_inputs: Mapping[str, Array],
    *,
    params: Params | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Any:
    """An `onnx.ModelProto` that computes f(*inputs), or layer(params, *inputs) for a layer and its params.

    example_inputs: arrays by name, of any library; they give shapes and dtypes, their values do not matter. f
    calls `polyattn.attention`, layers, or anything of the array API. Outputs are "output", or "output_0", ... for
    a tuple; fields of an `AttentionAux` follow in order. Attention becomes one node of the operator Attention
    (opset 23) where that computes the contract, else a composite (opset 21): `model.opset_import` tells. Params
    and other arrays become constants.

    dynamic: names of axes whose length may change, {"query": {2: "L"}, "key": {2: "L"}, ...}; an axis of the same
    name has the same length everywhere. f is then traced at four lengths, from that of the example (at least 2) to some
    200 more, and the model computes from its inputs what depends on them. ValueError if these are not one graph.
    Python code that asks about lengths, min(L, 512), is known at the traced ones only.

    Needs `pip install 'polyattn[onnx]'`.
    """
    inputs = {name: _plain(name, x) for name, x in example_inputs.items()}
    if isinstance(f, Layer):
        if params is None:
            raise ValueError(
                f"polyattn.onnx.export: expected params= for the layer {f}, got None; they become constants of the model"
            )
        f = _bound(f, params)
    elif params is not None:
        raise ValueError(
            "polyattn.onnx.export: expected params only with a layer, got them with a function; bind them"
        )
    return _build(f, inputs) if not dynamic else _for_every_length(f, inputs, dynamic)


def _plain(name: str, x: Any) -> Any:
    if not is_array(x):
        raise TypeError(
            f"polyattn.onnx.export: expected example_inputs[{name!r}] to be an array, got {type(x).__name__}; its shape "
            "and dtype become those of the model's input"
        )
    return backend_of(x).to_numpy(x)


def _ndonnx() -> Any:
    try:
        import ndonnx
        import onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"polyattn.onnx.export: expected the packages onnx and ndonnx, which write the graph, got: {error}; "
            "pip install 'polyattn[onnx]'"
        ) from None
    return ndonnx


def _bound(layer: Layer, params: Params) -> Callable[..., Any]:
    xp = _ndonnx()

    def constants(params: Params) -> dict[str, Any]:
        return {
            name: constants(x) if isinstance(x, Mapping) else xp.asarray(backend_of(x).to_numpy(x))
            for name, x in params.items()
        }

    made = constants(params)
    return lambda *inputs: layer(made, *inputs)


def _build(f: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    xp = _ndonnx()
    import onnx

    arguments = {}
    for name, x in inputs.items():
        if name.partition("_")[0] == "output":
            raise ValueError(
                f"polyattn.onnx.export: expected inputs whose names do not begin with output, got {name!r}; rename it"
            )
        dtype = getattr(xp, x.dtype.name, None)
        if dtype is None:
            raise TypeError(
                f"polyattn.onnx.export: expected {name} of a dtype that ndonnx has, got {x.dtype}; cast it"
            )
        arguments[name] = xp.argument(shape=x.shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lossy cast")  # float64 that would go through float32
        try:
            result = f(*arguments.values())
        except UserWarning as lossy:
            raise TypeError(
                f"polyattn.onnx.export: expected operations that ONNX Runtime has in the dtype of the inputs, got: {lossy}; "
                "export in float32"
            ) from None
    outputs = list(_arrays(result))
    for output in outputs:
        if type(output).__module__.partition(".")[0] != "ndonnx":
            raise TypeError(
                "polyattn.onnx.export: expected the function to return arrays made from its inputs, got "
                f"{type(output).__name__}; a constant needs no model"
            )
    if not outputs:
        raise TypeError(
            "polyattn.onnx.export: expected the function to return an array, got none; return what it computes"
        )
    names = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
    model = xp.build(arguments, dict(zip(names, outputs, strict=True)))
    onnx.checker.check_model(model)
    return model


def _arrays(result: Any) -> Sequence[Any]:
    """The arrays in what a function returned, in order."""
    if is_array(result):
        return [result]
    if isinstance(result, tuple):
        return [x for part in result for x in _arrays(part)]
    if is_dataclass(result) and not isinstance(result, type):
        return [x for field in fields(result) if is_array(x := getattr(result, field.name))]
    raise TypeError(
        "polyattn.onnx.export: expected the function to return an array, a tuple of arrays or an AttentionAux, got "
        f"{type(result).__name__}; return a tuple"
    )


def _for_every_length(
    f: Callable[..., Any], inputs: Mapping[str, Any], dynamic: Mapping[str, Mapping[int, str]]
) -> Any:
    """The model with names for axes instead of lengths, from traces at several lengths."""
    _ndonnx()
    import numpy as np
    import onnx

    from polyattn.onnx.lengths import generalize, lengths_to_trace

    first: dict[str, int] = {}
    axes: dict[str, dict[int, str]] = {}
    for name, named in dynamic.items():
        if name not in inputs or any(not -inputs[name].ndim <= axis < inputs[name].ndim for axis in named):
            raise ValueError(
                f"polyattn.onnx.export: expected dynamic to name inputs and their axes, got {name!r}: {dict(named)}; "
                f"there are {', '.join(f'{n} {x.shape}' for n, x in inputs.items())}"
            )
        axes[name] = {axis % inputs[name].ndim: length for axis, length in named.items()}
        for axis, length in axes[name].items():
            if first.setdefault(length, size := inputs[name].shape[axis]) != size:
                raise ValueError(
                    f"polyattn.onnx.export: expected axes named {length!r} of one length, got {first[length]} and {size}; "
                    "name them differently, or change example_inputs"
                )
    lengths = lengths_to_trace(first)
    models = []
    for at in lengths:
        shapes = {
            name: [at[axes[name][i]] if i in axes.get(name, {}) else n for i, n in enumerate(x.shape)]
            for name, x in inputs.items()
        }
        try:
            models.append(_build(f, {name: np.zeros(shapes[name], x.dtype) for name, x in inputs.items()}))
        except (ValueError, onnx.shape_inference.InferenceError):
            if at is not lengths[-1]:
                raise
            lengths.pop()  # a function that has a longest length, a table of positions say, need not go so far
    model = generalize(models, lengths, axes)
    onnx.checker.check_model(model)
    return model
