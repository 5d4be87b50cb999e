"""ONNX on the test bench: a function becomes a model, and ONNX Runtime runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyattn.arrays import Array
from polyattn.testing import Function
from polyattn.truth.spec import Floats


class OnnxBench:
    """Arrays that write a graph; a result is that of the whole graph in ONNX Runtime. A graph has no derivatives."""

    name: str = "onnx"
    dtypes: tuple[str, ...] = ("float64", "float32", "float16")

    def __init__(self) -> None:
        import ndonnx
        import onnxruntime

        self.xp = ndonnx
        self.runtime = onnxruntime
        self.version = f"{ndonnx.__version__} on ONNX Runtime {onnxruntime.__version__}"

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        with np.errstate(over="ignore"):
            return self.xp.asarray(x.astype(dtype) if x.dtype.kind == "f" and dtype is not None else x)

    def numpy(self, x: Array) -> Floats:
        values = x if isinstance(x, np.ndarray) else x.unwrap_numpy()
        return values if values.dtype.kind in "biu" else values.astype(np.float64)

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        inputs = {name: self.xp.argument(shape=x.shape, dtype=x.dtype) for name, x in arrays.items()}
        out, second = f(inputs)
        model = self.xp.build(inputs, {"out": out} if second is out else {"out": out, "second": second})
        session = self.runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {name: x.unwrap_numpy() for name, x in arrays.items()})
        return found[0], found[-1], {}
