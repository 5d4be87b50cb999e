"""One side of a comparison: a function of any library, called on its bench, and what it gave in BHLD."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyattn._trace import Trace
from polyattn.arrays import is_array
from polyattn.parity.bench import Bench
from polyattn.parity.sides import Side
from polyattn.truth.spec import Floats

__all__ = ["GRADIENTS", "is_float", "run_side"]

GRADIENTS = {"query": "dq", "key": "dk", "value": "dv"}


def run_side(
    side: Side,
    function: Callable[..., Any],
    bench: Bench,
    inputs: Mapping[str, Floats],
    dtype: str,
    layout: str,
    cotangent: Floats | None,
    shape: tuple[int, ...],
) -> None:
    """Calls a function on a bench and writes into `side` what it gave; `shape` is that of the output, (B, H, L, E)."""
    if dtype not in bench.dtypes:
        raise TypeError(
            f"expected dtype among {', '.join(bench.dtypes)} on {side.library}, got {dtype}; pass dtype="
        )
    swap = layout == "BLHD"

    def give(name: str, x: Floats) -> Any:
        x = x.swapaxes(-2, -3) if swap and name in GRADIENTS and x.ndim > 2 else x
        made = bench.array(np.ascontiguousarray(x), dtype if is_float(x) else None)
        if is_float(x) and str(made.dtype).rpartition(".")[2] != dtype:
            raise TypeError(
                f"expected {name} in {dtype}, got {made.dtype} from {side.library}; allow that dtype there"
            )
        return made

    given = {name: give(name, x) for name, x in inputs.items()}
    side.notes += getattr(bench, "notes", {}).get(dtype, ())
    recorded: dict[str, Any] = {}

    def whole(arrays: Mapping[str, Any]) -> tuple[Any, Any]:
        out, stages = _unpack(function(*arrays.values()))
        recorded.update(stages)
        return out, out

    # First without derivatives and without a compiler: stages are read here.
    out, _, _ = getattr(bench, "uncompiled", bench).run(whole, given, None)
    side.stages = {name: bench.numpy(x) for name, x in recorded.items()}
    side.values["out"] = _in_bhld(bench.numpy(out), shape, swap)
    if cotangent is None:
        return
    floats = {name: x for name, x in given.items() if is_float(inputs[name])}
    rest = {name: x for name, x in given.items() if name not in floats}

    def differentiable(arrays: Mapping[str, Any]) -> tuple[Any, Any]:
        every = {**arrays, **rest}
        out, _ = _unpack(function(*(every[name] for name in given)))
        return out, out

    back = cotangent.swapaxes(1, 2) if swap else cotangent
    _, _, found = bench.run(differentiable, floats, bench.array(back.reshape(tuple(out.shape)), dtype))
    if not found:
        side.notes.append(f"{side.library} has no derivatives")
        return
    for name, quantity in GRADIENTS.items():
        x = bench.numpy(found[name])
        x = x.swapaxes(-2, -3) if swap and x.ndim > 2 else x
        side.values[quantity] = x.reshape((1,) * (4 - x.ndim) + x.shape)


def _unpack(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """The output and the stages of what a function returned."""
    if isinstance(result, Trace):
        return result.out, {stage.name: stage.value for stage in result}
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        return result[0], result[1]
    if not is_array(result):
        what = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise TypeError(
            f"expected the function to return its output, a trace, or (output, {{stage: array}}), got {what}; wrap it"
        )
    return result, {}


def _in_bhld(out: Floats, shape: tuple[int, ...], swap: bool) -> Floats:
    found = out.swapaxes(-2, -3) if swap and out.ndim > 2 else out
    if found.ndim == 3 and found.shape == (shape[0], shape[2], shape[1] * shape[3]) != shape[1:]:
        found = found.reshape(shape[0], shape[2], shape[1], shape[3]).swapaxes(1, 2)
    if found.size != math.prod(shape) or found.shape[-2:] != shape[-2:]:
        raise ValueError(
            f"expected output of shape {shape} (B, H, L, E), got {out.shape}; layouts= says how axes lie"
        )
    return found.reshape(shape)


def is_float(x: Floats) -> bool:
    """Whether an input is real: those are rounded, converted and differentiated."""
    return x.dtype.kind == "f" or x.dtype.name == "bfloat16"
