"""Values of NumPy in every library, and namespaces that lack what the mathematics needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyattn import attention
from polyattn.testing import Bench
from polyattn.weights import convert

X = np.arange(12.0).reshape(3, 4)
FIXED = X.astype(np.float32)
FIXED.flags.writeable = False

STORED: dict[str, Any] = {
    "from the end": X.astype(np.float32)[::-1],
    "every other from the end": X.astype(np.float16)[:, ::-2],
    "big-endian": X.astype(">f4"),
    "big-endian from the end": X.astype(">f2")[:, ::-1],
    "big-endian integers": X.astype(">i4"),
    "read-only": FIXED,
    "zero strides": np.broadcast_to(FIXED[0], (5, 4)),
    "columns first": np.asfortranarray(FIXED),
    "a field of a record": np.array([(1, 2.5)], [("a", "i4"), ("b", "<f4")])["b"],
    "empty from the end": FIXED[:0][::-1],
    "bfloat16": X.astype(ml_dtypes.bfloat16)[::-1],
    "bfloat16, zero strides": np.broadcast_to(X.astype(ml_dtypes.bfloat16)[0], (2, 4)),
    "no axes": np.asarray(2.5, ">f4"),
}


@pytest.mark.parametrize("how", STORED)
def test_values_come_into_every_library_however_they_lie(eager: Bench, how: str) -> None:
    x = STORED[how]
    if eager.name.startswith("strict") and x.dtype.name in ("bfloat16", "float16"):
        return  # which it has not
    before = x.tolist()
    found = convert({"x": x}, eager.array(np.zeros(1), "float32"))["x"]
    assert str(found.dtype).rpartition(".")[2] == x.dtype.name
    assert np.array_equal(eager.numpy(found), x.astype(np.float64))
    if eager.name in ("numpy", "torch") and found.shape[:1] not in ((), (0,)):
        found[0] = 99  # a copy: what is written into it does not come back
    assert x.tolist() == before


@pytest.mark.parametrize("values", [np.zeros(2, np.longdouble), np.array(["a"]), np.array([None])])
def test_a_dtype_that_torch_has_not_is_a_sentence(values: Any) -> None:
    import torch

    with pytest.raises(TypeError) as caught:
        convert({"x": values}, torch.zeros(()))
    assert str(caught.value) == (
        f"polyattn: expected an array of a dtype that PyTorch has, got {values.dtype}; cast it first"
    )


class Xarray:
    """An array as MLX has it: of a namespace with other names than those of the standard."""

    shape, ndim, dtype = (1, 1, 2, 2), 4, "float32"

    def __array_namespace__(self, api_version: Any = None) -> Any:
        names = ("arange", "zeros", "exp", "where", "sum", "stack", "full", "inf", "float32", "int32")
        return SimpleNamespace(__name__="xlib.core", **dict.fromkeys(names))


@pytest.mark.rule("rule-13")
def test_a_namespace_that_lacks_what_is_needed_is_a_sentence() -> None:
    x = Xarray()
    with pytest.raises(TypeError) as caught:
        attention(x, x, x)
    said = str(caught.value)
    assert said.startswith(
        "polyattn.attention: expected query to be an array of a library that follows the array API standard, got "
        f"{Xarray.__module__}.Xarray, whose namespace xlib.core lacks asarray, astype, any, "
    )
    assert said.endswith("; convert it, for example with numpy.asarray, or write an adapter for it")
