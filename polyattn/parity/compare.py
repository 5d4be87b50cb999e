"""Two implementations of attention on the same inputs: do they agree, where not, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn._trace import Trace
from polyattn.arrays import backend_of, is_array
from polyattn.conventions.call import pose
from polyattn.conventions.stages import spec_of, stage_truth
from polyattn.parity.comparison import Comparison, Side, Worst, one_line
from polyattn.parity.diagnose import diagnose
from polyattn.parity.environment import environment
from polyattn.truth.definition import Judged, truth
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF, eta
from polyattn.truth.spec import Floats

if TYPE_CHECKING:
    from polyattn.testing import Bench

GRADIENTS = {"query": "dq", "key": "dk", "value": "dv"}


def compare(
    f: Callable[..., Any],
    g: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    on: Sequence[str],
    meant: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    layouts: Sequence[str] = ("BHLD", "BHLD"),
    dtype: str | None = None,
    gradients: bool = True,
    seed: int = 0,
) -> Comparison:
    """Calls f and g, functions of any two libraries, on the same inputs, and judges both against float64 truth.

    inputs: "query" (B, Hq, L, D), "key", "value" and whatever else the functions take, arrays of any library;
    they are called as f(*inputs) in this order, each with arrays of its library, on=("torch", "jax"). Integer
    and bool inputs go through as they are, floats in `dtype` (default: that of query). meant: the arguments of
    `polyattn.attention` that say what both should compute; truth and gradients follow from it. layouts: "BHLD" or
    "BLHD", how each function takes query, key and value and returns its output.

    A function returns its output; or a `polyattn.trace`; or (output, {stage name: array}) with the names of
    `trace`: then the first stage that diverges is found. gradients=False leaves the derivatives out; they are of
    sum(output * r) with random r. A function that raises, or returns something else, is reported, and the other
    is judged all the same. If a side is wrong, `diagnose` says why.

    >>> import numpy as np
    >>> from polyattn import attention
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 8, 4))
    >>> inputs = {"query": q, "key": k, "value": v}
    >>> wrong = lambda q, k, v: attention(q, k, v, scale=1.0)
    >>> print(compare(attention, wrong, inputs, on=("numpy", "numpy"), names=("ours", "theirs")).verdict)
    DISAGREE: ours computes what was meant, theirs does not
    """
    arrays = {name: _to_numpy(name, x) for name, x in inputs.items()}
    missing = [name for name in GRADIENTS if name not in arrays]
    if missing:
        raise ValueError(
            f"polyattn.parity.compare: expected inputs 'query', 'key' and 'value', got {', '.join(arrays) or 'none'}; "
            "the truth is computed from them"
        )
    for what, given in (("on", on), ("layouts", layouts)):
        if isinstance(given, str) or len(given) != 2:
            raise ValueError(
                f"polyattn.parity.compare: expected {what} to be two names, for f and g, got {given!r}"
            )
    benches = [_bench(library) for library in on]
    dtype = dtype or arrays["query"].dtype.name
    if dtype not in UNIT_ROUNDOFF:
        raise TypeError(
            f"polyattn.parity.compare: expected dtype among {', '.join(UNIT_ROUNDOFF)}, got {dtype}; pass dtype="
        )
    rounded = {name: _round(x, dtype) if _is_float(x) else x for name, x in arrays.items()}
    call = pose(rounded["query"], rounded["key"], rounded["value"], meant or {})
    spec = spec_of(call)
    shape = (*call.shape[:3], call.v.shape[3])
    cotangent = np.random.default_rng(seed).choice([-1.0, -0.5, 0.5, 1.0], size=shape)
    judged = truth(spec, cotangent if gradients else None)
    stages = stage_truth(call)

    sides = []
    titles = names or (_title(f, "f"), _title(g, "g"))
    for function, bench, library, title, layout in zip((f, g), benches, on, titles, layouts, strict=True):
        side = Side(one_line(str(title)), library)
        sides.append(side)
        try:
            _run(
                side,
                function,
                bench,
                rounded,
                dtype,
                layout,
                cotangent if gradients else None,
                shape,
            )
        except Exception as error:
            side.error = f"{type(error).__name__}: {error}"
            continue
        for quantity, value in side.values.items():
            side.etas[quantity] = eta(value, judged[quantity], dtype)
        for name, value in side.stages.items():
            if name in stages and value.shape == stages[name].value.shape:
                carried = "float64" if dtype == "float64" else "float32"
                side.stage_etas[name] = eta(value, stages[name], carried)
        # Stages in the order of the definition, whatever order they were recorded in.
        side.stage_etas = {name: side.stage_etas[name] for name in stages if name in side.stage_etas}
        if side.etas.get("out", 0.0) > ACCEPTANCE:
            q, k, v = (rounded[name] for name in GRADIENTS)
            side.diagnosis = diagnose(side.values["out"], q, k, v, dtype=dtype, **_bhld(meant or {}))
    between = {
        q: eta(
            sides[0].values[q],
            Judged(sides[1].values[q].astype(np.longdouble), judged[q].condition, judged[q].floor),
            dtype,
        )
        for q in sides[0].values
        if q in sides[1].values and sides[0].values[q].shape == sides[1].values[q].shape
    }
    return Comparison(
        sides=(sides[0], sides[1]),
        between=between,
        dtype=dtype,
        shapes={name: x.shape for name, x in arrays.items()},
        worst=_worst(sides, judged),
        inputs=arrays,
        environment=environment(),
        seed=seed,
        calls=(_title(f, "f"), _title(g, "g")),
    )


# one side


def _bench(library: str) -> Bench:
    from polyattn.testing import BENCHES  # which stands on this package

    if library not in BENCHES:
        raise ValueError(
            f"polyattn.parity.compare: expected a library among {', '.join(BENCHES)} in on=, got {library!r}"
        )
    return BENCHES[library]()


def _run(
    side: Side,
    function: Callable[..., Any],
    bench: Bench,
    inputs: Mapping[str, Floats],
    dtype: str,
    layout: str,
    cotangent: Floats | None,
    shape: tuple[int, ...],
) -> None:
    if dtype not in bench.dtypes:
        raise TypeError(f"{side.library} has no {dtype} here")
    swap = layout == "BLHD"

    def give(name: str, x: Floats) -> Any:
        x = x.swapaxes(-2, -3) if swap and name in GRADIENTS and x.ndim > 2 else x
        made = bench.array(np.ascontiguousarray(x), dtype if _is_float(x) else None)
        if _is_float(x) and str(made.dtype).rpartition(".")[2] != dtype:
            raise TypeError(f"{side.library} turned {name} from {dtype} into {made.dtype}")
        return made

    given = {name: give(name, x) for name, x in inputs.items()}
    if side.library == "jax" and dtype == "float64":
        side.notes.append("x64 was enabled for this call alone")
    recorded: dict[str, Any] = {}

    def whole(arrays: Mapping[str, Any]) -> tuple[Any, Any]:
        out, stages = _unpack(function(*arrays.values()))
        recorded.update(stages)
        return out, out

    # First without derivatives and without a compiler: stages are read here.
    out = _eager(bench, whole, given)
    side.stages = {name: bench.numpy(x) for name, x in recorded.items()}
    side.values["out"] = _in_bhld(bench.numpy(out), shape, swap)
    if cotangent is None:
        return
    floats = {name: x for name, x in given.items() if _is_float(inputs[name])}
    rest = {name: x for name, x in given.items() if name not in floats}

    def differentiable(arrays: Mapping[str, Any]) -> tuple[Any, Any]:
        every = {**arrays, **rest}
        out, _ = _unpack(function(*(every[name] for name in given)))
        return out, out

    back = cotangent.swapaxes(1, 2) if swap else cotangent
    _, _, found = bench.run(differentiable, floats, bench.array(back.reshape(tuple(out.shape)), dtype))
    if found is None:
        side.notes.append(f"{side.library} has no derivatives")
        return
    for name, quantity in GRADIENTS.items():
        x = bench.numpy(found[name])
        x = x.swapaxes(-2, -3) if swap and x.ndim > 2 else x
        side.values[quantity] = x.reshape((1,) * (4 - x.ndim) + x.shape)


def _eager(bench: Bench, f: Callable[[Mapping[str, Any]], tuple[Any, Any]], arrays: Mapping[str, Any]) -> Any:
    """The output without derivatives, uncompiled; inside the local x64 scope that JAX needs for float64."""
    if hasattr(bench, "jit"):
        import jax

        with jax.enable_x64(any(str(x.dtype) == "float64" for x in arrays.values())):
            return f(arrays)[0]
    return f(arrays)[0]


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


def _worst(sides: Sequence[Side], judged: Mapping[str, Judged]) -> Worst | None:
    f, g = sides
    best: Worst | None = None
    largest = -1.0
    for quantity in f.values:
        if quantity not in g.values or f.values[quantity].shape != g.values[quantity].shape:
            continue
        a, b = f.values[quantity], g.values[quantity]
        unit = np.broadcast_to(np.asarray(judged[quantity].condition, np.float64), a.shape)
        with np.errstate(all="ignore"):
            ratio = np.where(a == b, 0.0, np.abs(a - b) / np.where(unit > 0, unit, np.finfo(np.float64).tiny))
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        if ratio.size and float(ratio.max()) > largest:
            index = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
            largest = float(ratio.max())
            place = tuple(int(i) for i in index)
            best = Worst(
                quantity,
                place,
                float(a[place]),
                float(b[place]),
                float(np.asarray(judged[quantity].value)[place]),
            )
    return best


# inputs


def _to_numpy(name: str, x: Any) -> Floats:
    """The values as NumPy, never fetched from an accelerator in silence; negative and zero strides become copies."""
    if not is_array(x):
        raise TypeError(
            f"polyattn.parity.compare: expected {name} to be an array, got {type(x).__name__}; convert it"
        )
    device = str(getattr(x, "device", "cpu")).lower()
    if any(word in device for word in ("cuda", "gpu", "tpu", "mps", "xpu")):
        raise ValueError(
            f"polyattn.parity.compare: expected {name} in main memory, got it on {device}; copy it yourself, so that "
            "the transfer is yours to see"
        )
    return np.ascontiguousarray(np.asarray(backend_of(x).to_numpy(x))).reshape(tuple(x.shape))


def _is_float(x: Floats) -> bool:
    return x.dtype.kind == "f" or x.dtype.name == "bfloat16"


def _round(x: Floats, dtype: str) -> Floats:
    from polyattn.truth.measure import round_to

    return round_to(x.astype(np.float64), dtype)


def _bhld(meant: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in meant.items() if name != "layout"}


def _title(f: Callable[..., Any], otherwise: str) -> str:
    name = getattr(f, "__qualname__", otherwise)
    return otherwise if "<" in name else f"{getattr(f, '__module__', '')}.{name}".strip(".")
