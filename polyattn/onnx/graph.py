"""Functions and layers as ONNX models: the same Python code, run once on arrays that write a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from polyattn.backend import Array, backend_of, is_array
from polyattn.layers import Layer, Params


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
    name has the same length everywhere. ValueError if the graph depends on the length, as composites do.

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
    model = _build(f, inputs)
    if dynamic:
        _make_dynamic(f, inputs, model, dynamic)
    return model


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
    except ImportError:
        raise ImportError(
            "polyattn.onnx.export: expected the package ndonnx, which writes the graph; pip install 'polyattn[onnx]'"
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
    return lambda *inputs: layer(made, *inputs)  # type: ignore[operator]


def _build(f: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    import onnx

    xp = _ndonnx()
    arguments = {}
    for name, x in inputs.items():
        dtype = getattr(xp, x.dtype.name, None)
        if dtype is None:
            raise TypeError(
                f"polyattn.onnx.export: expected {name} of a dtype that ndonnx has, got {x.dtype}; cast it"
            )
        arguments[name] = xp.argument(shape=x.shape, dtype=dtype)
    outputs = list(_arrays(f(*arguments.values())))
    for output in outputs:
        if type(output).__module__.partition(".")[0] != "ndonnx":
            raise TypeError(
                "polyattn.onnx.export: expected the function to return arrays made from its inputs, got "
                f"{type(output).__name__}; a constant needs no model"
            )
    if not outputs:
        raise TypeError("polyattn.onnx.export: expected the function to return an array, got none")
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
        return [x for field in fields(result) for x in _arrays(getattr(result, field.name))]
    return []


def _make_dynamic(
    f: Callable[..., Any], inputs: Mapping[str, Any], model: Any, dynamic: Mapping[str, Mapping[int, str]]
) -> None:
    """Gives axes names instead of lengths, if the graph is the same for other lengths."""
    import numpy as np

    for name, axes in dynamic.items():
        if name not in inputs or any(not -inputs[name].ndim <= axis < inputs[name].ndim for axis in axes):
            raise ValueError(
                f"polyattn.onnx.export: expected dynamic to name inputs and their axes, got {name!r}: {dict(axes)}; "
                f"there are {', '.join(f'{n} {x.shape}' for n, x in inputs.items())}"
            )
    more = {
        axis: i + 1
        for i, axis in enumerate(dict.fromkeys(n for axes in dynamic.values() for n in axes.values()))
    }
    other = {}
    for name, x in inputs.items():
        shape = list(x.shape)
        for axis, length in dynamic.get(name, {}).items():
            shape[axis] += more[length]
        other[name] = np.zeros(shape, x.dtype)
    longer = _build(f, other)
    if _steps(model) != _steps(longer):
        raise ValueError(
            "polyattn.onnx.export: expected a graph that is the same for every length, got one in which shapes or "
            "positions are constants; export it with static lengths, or reduce it to what the operator Attention "
            "computes alone (no mask object, scale a number)"
        )
    sizes = {size: name for name, axes in dynamic.items() for _, size in axes.items()}
    for value in (*model.graph.input, *model.graph.output):
        twin = next(x for x in (*longer.graph.input, *longer.graph.output) if x.name == value.name)
        named = {axis % len(inputs[value.name].shape): n for axis, n in dynamic.get(value.name, {}).items()}
        pairs = zip(value.type.tensor_type.shape.dim, twin.type.tensor_type.shape.dim, strict=True)
        for axis, (dim, there) in enumerate(pairs):
            if dim.dim_value != there.dim_value:
                grown = there.dim_value - dim.dim_value
                dim.dim_param = named.get(axis) or next(n for n in sizes if more[n] == grown)
    del model.graph.value_info[:]


def _steps(model: Any) -> list[Any]:
    """What the graph does, without names and shapes."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    for value in model.graph.input:
        number(value.name)
    return [[number(x.name), x.SerializeToString(deterministic=True)] for x in model.graph.initializer] + [
        [
            node.op_type,
            [number(x) for x in node.input],
            [number(x) for x in node.output],
            [attribute.SerializeToString(deterministic=True) for attribute in node.attribute],
        ]
        for node in model.graph.node
    ]
