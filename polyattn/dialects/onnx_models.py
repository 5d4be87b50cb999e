"""Operators of ONNX as functions: a model of one node, run by the reference implementation or by ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

__all__ = ["grouped", "onnxruntime", "reference"]

Function = Callable[[Mapping[str, Any]], Any]

_ATTENTION = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
_GROUPED = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
    "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight",
)  # fmt: skip


def _model(
    operator: str, domain: str, opset: int, names: tuple[str, ...], outputs: int, given: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A model of one node, and its inputs."""
    from onnx import helper

    feed = {name: np.ascontiguousarray(given[name]) for name in names if given.get(name) is not None}
    feed = {name: x.reshape(np.shape(given[name])) for name, x in feed.items()}  # NumPy makes rank 0 rank 1
    last = max(i for i, name in enumerate(names) if name in feed)
    inputs = [name if name in feed else "" for name in names[: last + 1]]
    attributes = {
        n: int(x) if isinstance(x, bool) else x for n, x in given.items() if n not in names and x is not None
    }
    returned = ["out", *(f"out{i}" for i in range(1, outputs))]
    node = helper.make_node(operator, inputs, returned, domain=domain, **attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in feed.items()}
    described = [helper.make_tensor_value_info(name, kinds[name], x.shape) for name, x in feed.items()]
    out = [helper.make_tensor_value_info(name, kinds[names[0]], None) for name in returned]
    graph = helper.make_graph([node], "attention", described, out)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, opset)][0 if domain else 1 :]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feed


def _run(
    session: Callable[[Any], Any], make: Callable[[Mapping[str, Any]], Any], given: Mapping[str, Any]
) -> Any:
    model, feed = make(given)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return session(model).run(None, feed)[0]


def _attention(opset: int) -> Callable[[Mapping[str, Any]], Any]:
    return partial(_model, "Attention", "", opset, _ATTENTION, 1)


def reference(opset: int) -> Function:
    """Attention of an opset, by the reference implementation."""
    from onnx.reference import ReferenceEvaluator

    return partial(_run, ReferenceEvaluator, _attention(opset))


def _session() -> Callable[[Any], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    make = partial(ort.InferenceSession, sess_options=options, providers=["CPUExecutionProvider"])
    return lambda model: make(model.SerializeToString())


def onnxruntime(opset: int) -> Function:
    """Attention of an opset, by ONNX Runtime."""
    return partial(_run, _session(), _attention(opset))


def grouped() -> Function:
    """GroupQueryAttention, an operator of ONNX Runtime's own."""
    return partial(_run, _session(), partial(_model, "GroupQueryAttention", "com.microsoft", 1, _GROUPED, 3))
