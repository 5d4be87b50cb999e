"""ONNX on the test bench: a function becomes a model, and ONNX Runtime runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ndonnx as xp
import numpy as np
import onnxruntime

from polyattn.arrays import Array
from polyattn.parity.bench import Function
from polyattn.truth.spec import Floats

__all__ = ["OnnxBench", "bench"]


class OnnxBench:
    """Arrays that write a graph; a result is that of the whole graph in ONNX Runtime. A graph has no derivatives."""

    name: str = "onnx"
    version = f"{xp.__version__} on ONNX Runtime {onnxruntime.__version__}"
    dtypes: tuple[str, ...] = ("float64", "float32", "float16")
    writes_graphs = True
    pace = 0.2  # seconds for a result, most of them to make a session (2026-11)

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        with np.errstate(over="ignore"):
            return xp.asarray(x.astype(dtype) if x.dtype.kind == "f" and dtype is not None else x)

    def numpy(self, x: Array) -> Floats:
        values = x if isinstance(x, np.ndarray) else x.unwrap_numpy()
        return values if values.dtype.kind in "biu" else values.astype(np.float64)

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        inputs = {name: xp.argument(shape=x.shape, dtype=x.dtype) for name, x in arrays.items()}
        out, second = f(inputs)
        model = xp.build(inputs, {"out": out} if second is out else {"out": out, "second": second})
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about speed
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {name: x.unwrap_numpy() for name, x in arrays.items()})
        return found[0], found[-1], {}


bench = OnnxBench
