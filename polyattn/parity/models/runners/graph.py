"""A graph of ONNX, run node by node: every tensor that holds floats is a tap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np

from polyattn.parity.models.trees import is_float, to_numpy
from polyattn.parity.models.watching import OUTPUT, Leave, Site, Watch
from polyattn.truth.spec import Floats

__all__ = ["GraphRunner"]

_FLOAT, _DOUBLE = 1, 11  # of TensorProto.DataType


class GraphRunner:
    """Components are nodes, named by their first output; onnxruntime computes each, or without it onnx itself.

    In float64 it is always onnx itself: onnxruntime lacks many operators there.
    """

    library = "onnx"
    training = False

    def __init__(self, who: str, model: Any, wide: bool = False) -> None:
        onnx = _onnx(who)
        self.wide = wide
        self.model = model if isinstance(model, onnx.ModelProto) else _read(who, model)
        graph = self.model.graph
        self.constants = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
        self.inputs = [x.name for x in graph.input if x.name not in self.constants]
        self.outputs = [x.name for x in graph.output]
        self.evaluators: dict[Any, Any] = {}

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave) -> Any:
        watch = Watch(leave)
        entered = watch.enter(OUTPUT, self, args, kwargs)
        values = {**self.constants, **self._feeds(args, kwargs)}
        for place, node in enumerate(self.model.graph.node):
            self._step(place, node, values, watch)
        outputs = [values[name] for name in self.outputs]
        return watch.finish(entered, None, outputs[0] if len(outputs) == 1 else outputs, None, "graph")

    def again(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave: Leave | None = None
    ) -> Any:
        """One node alone."""
        place, names = site.module.place, site.module.names
        fixed = {name: x for name, x in site.module.constants.items() if name in self.constants}
        given = {**fixed, **dict(zip(names, args, strict=True))}
        return self._evaluate(place, self.model.graph.node[place], {**self.constants, **given})

    def _feeds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Floats]:
        feeds = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        if len(args) > len(self.inputs) or feeds.keys() != set(self.inputs):
            raise ValueError(
                f"polyattn.parity: expected a batch with the inputs {', '.join(self.inputs)} of the graph, got "
                f"{len(args)} by place and {', '.join(kwargs) or 'none'} by name; name them as the graph does"
            )
        return {name: to_numpy(x) for name, x in feeds.items()}

    def _step(self, place: int, node: Any, values: dict[str, Any], watch: Watch) -> None:
        names = [name for name in dict.fromkeys(_read_by(node)) if name in values]
        moving = [name for name in names if name not in self.constants]
        entered = watch.enter(node.output[0], node, tuple(values[name] for name in moving), {})
        held = _Node(place, moving, {name: self.constants[name] for name in names if name in self.constants})
        outputs = self._evaluate(place, node, values)
        if any(is_float(x) for x in outputs[:1]):
            outputs = watch.finish(entered, node, outputs, self.again, node.op_type, hold=held)
        else:
            watch.stack.pop()
        values.update(zip((name for name in node.output if name), outputs, strict=True))

    def _evaluate(self, place: int, node: Any, values: Mapping[str, Any]) -> list[Any]:
        names = [name for name in dict.fromkeys(_read_by(node)) if name in values]
        key = (place, *((values[name].dtype.str, values[name].ndim) for name in names))
        if key not in self.evaluators:
            self.evaluators[key] = self._evaluator(node, {name: values[name] for name in names})
        outputs: list[Any] = self.evaluators[key]({name: values[name] for name in names})
        return outputs

    def _evaluator(self, node: Any, inputs: Mapping[str, Any]) -> Any:
        """A program of one node."""
        onnx, free = _onnx("polyattn.parity"), count()

        def info(name: str, x: Any) -> Any:
            kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
            return onnx.helper.make_tensor_value_info(name, kind, [f"n{next(free)}" for _ in range(x.ndim)])

        outputs = [name for name in node.output if name]
        graph = onnx.helper.make_graph(
            [node],
            "one",
            [info(name, x) for name, x in inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self.model.opset_import, functions=self.model.functions
        )
        model.ir_version = self.model.ir_version
        if not self.wide:
            try:
                import onnxruntime
            except ImportError:
                pass
            else:
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 3
                session = onnxruntime.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
                return lambda feeds: session.run(outputs, dict(feeds))
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda feeds: evaluator.run(outputs, dict(feeds))

    def given(self, x: Any) -> Any:
        plain = to_numpy(x)
        return plain.astype(np.float64) if self.wide and is_float(plain) else plain

    def weights(self) -> dict[str, Floats]:
        return {name: x for name, x in self.constants.items() if is_float(x)}

    def doubled(self) -> GraphRunner | None:
        model = type(self.model)()
        model.CopyFrom(self.model)
        _widen(model.graph)
        for function in model.functions:
            for node in function.node:
                _widen_node(node)
        return GraphRunner("polyattn.parity", model, wide=True)


class _Node:
    """A node's place in its graph, the names of what it reads, and those of its inputs that are weights."""

    def __init__(self, place: int, names: list[str], constants: Mapping[str, Floats]) -> None:
        self.place, self.names, self.constants = place, names, constants


def _onnx(who: str) -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(
            f"{who}: expected the package onnx, which reads graphs, got: {error}; pip install 'polyattn[onnx]'"
        ) from None
    return onnx


def _read(who: str, path: Any) -> Any:
    from polyattn.weights.untrusted import path_of, to_read

    onnx = _onnx(who)
    real = path_of(who, path)
    to_read(who, real)
    try:
        model = onnx.load(real)
        onnx.checker.check_model(model)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"{who}: expected an ONNX file, got {real.name!r}, of which the reader says: {reason}; export it again"
        ) from None
    return model


def _read_by(node: Any) -> Iterator[str]:
    """What a node reads: its inputs, and what the graphs inside it take from around."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (x.name for x in graph.output)


def _widen(graph: Any) -> None:
    from onnx import numpy_helper

    for x in graph.initializer:
        if x.data_type == _FLOAT:
            x.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(x).astype(np.float64), x.name))
    for x in (*graph.input, *graph.output):
        if x.type.tensor_type.elem_type == _FLOAT:
            x.type.tensor_type.elem_type = _DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        _widen_node(node)


def _widen_node(node: Any) -> None:
    from onnx import numpy_helper

    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type == _FLOAT:
            wide = numpy_helper.to_array(attribute.t).astype(np.float64)
            attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))
        if attribute.name in ("to", "dtype", "stash_type") and attribute.i == _FLOAT:
            attribute.i = _DOUBLE
        for graph in (attribute.g, *attribute.graphs):
            if graph.node:
                _widen(graph)
