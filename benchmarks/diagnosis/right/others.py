"""Our own engines, the plain chain of stages, and ONNX Runtime."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyattn import attention

from ..problems import Problem
from ..stages import attend, stored
from .common import additive, implementation, inputs


@implementation("plain")
def plain(p: Problem) -> Tensor:
    return stored(attend(p), p.dtype)


def _ours(p: Problem, which: str) -> Tensor:
    q, k, v = inputs(p)
    context = p.context()
    context.pop("rotary", None)
    out: Tensor = attention(q, k, v, **context, implementation=which)  # type: ignore[arg-type]
    return out


@implementation("polyattn")
def auto(p: Problem) -> Tensor:
    return _ours(p, "auto")


@implementation("polyattn, reference")
def reference(p: Problem) -> Tensor:
    return _ours(p, "reference")


@implementation("polyattn, blockwise")
def blockwise(p: Problem) -> Tensor:
    return _ours(p, "blockwise")


@implementation("polyattn, NumPy", "bfloat16")
def on_numpy(p: Problem) -> Any:
    q, k, v = (x.numpy() for x in inputs(p))
    context = {n: x.numpy() if isinstance(x, Tensor) else x for n, x in p.context().items() if n != "rotary"}
    mask = context.get("mask")
    if mask is not None and not isinstance(mask, np.ndarray):  # holds a tensor inside
        context["mask"] = p.allowed.numpy()
    return attention(q, k, v, **context)


@lru_cache(maxsize=256)
def _session(dtype: str, scale: float, cap: float) -> Any:
    import onnx
    import onnxruntime
    from onnx import helper

    kind = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}[dtype]
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["out"], scale=scale, softcap=cap)
    given = [helper.make_tensor_value_info(n, kind, [None] * 4) for n in ("q", "k", "v", "mask")]
    graph = helper.make_graph(
        [node], "attention", given, [helper.make_tensor_value_info("out", kind, [None] * 4)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


# It adds the mask before the cap (opset 23, as ONNX Runtime reads it), so that a cap and hidden keys are another result.
@implementation("onnxruntime, Attention of opset 23", "bfloat16 sinks empty")
def onnx(p: Problem) -> Any:
    mask = additive(p)
    if mask is None or (p.cap is not None and (p.bias is not None or not p.allowed.all())):
        return None
    q, k, v = (x.numpy() for x in inputs(p))
    session = _session(p.dtype, p.stated_scale, p.cap or 0.0)
    (out,) = session.run(None, {"q": q, "k": k, "v": v, "mask": mask.numpy()})
    return torch.from_numpy(out)
