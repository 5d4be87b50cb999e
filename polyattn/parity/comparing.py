"""Two implementations of attention on the same inputs: do they agree, where not, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polyattn.arrays import backend_of, is_array
from polyattn.conventions.call import call_of
from polyattn.parity.bench import load_bench
from polyattn.parity.comparison import Comparison
from polyattn.parity.diagnosis import diagnose
from polyattn.parity.environment import environment
from polyattn.parity.gradients_apart import explain_gradients
from polyattn.parity.instead import meant_instead
from polyattn.parity.judged_side import allow_roundings, apart, judge_side, worst_of
from polyattn.parity.meaning import meaning_of
from polyattn.parity.repeat import Repeat, meant_as_code, origin_of
from polyattn.parity.report import one_line
from polyattn.parity.side import GRADIENTS, is_float, run_side
from polyattn.parity.sides import Side
from polyattn.parity.stages import StageJudge
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["compare"]


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
    `polyattn.attention` that say what both should compute, and rotary= a `polyattn.rotary.Rotary` that both still apply
    to query and key; truth and gradients follow from it. layouts: "BHLD" or "BLHD", how each function takes query, key
    and value and returns its output.

    A function returns its output; or a `polyattn.trace`; or (output, {stage name: array}) with the names of
    `trace`: then the first stage that diverges is found. gradients=False leaves the derivatives out; they are of
    sum(output * r) with random r. A function that raises, or returns something else, is reported, and the other
    is judged all the same. If a side is wrong, `diagnose` says why; if only its gradients are, which mistake of a backward
    pass gives them. Where both are wrong alike, the other meaning that would make both right is asked for.

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
    benches = [load_bench(library, who="polyattn.parity.compare") for library in on]
    dtype = dtype or arrays["query"].dtype.name
    if dtype not in UNIT_ROUNDOFF:
        raise TypeError(
            f"polyattn.parity.compare: expected dtype among {', '.join(UNIT_ROUNDOFF)}, got {dtype}; pass dtype="
        )
    rounded = {
        name: round_to(x.astype(np.float64), dtype) if is_float(x) else x for name, x in arrays.items()
    }
    q, k, v = (rounded[name] for name in GRADIENTS)
    call = call_of(q, k, v, meant or {}, who="polyattn.parity.compare")
    meaning = meaning_of(call, dtype)
    shape = (*call.shape[:3], call.v.shape[3])
    cotangent = np.random.default_rng(seed).choice([-1.0, -0.5, 0.5, 1.0], size=shape)
    back = cotangent if gradients else None

    sides = []
    titles = names or (_title(f, "f"), _title(g, "g"))
    for function, bench, library, title, layout in zip((f, g), benches, on, titles, layouts, strict=True):
        side = Side(one_line(str(title)), library)
        sides.append(side)
        try:
            run_side(side, function, bench, rounded, dtype, layout, back, shape)
        except Exception as error:
            side.error = f"{type(error).__name__}: {error}"
    stages = StageJudge([side for side in sides if side.error is None], call.shape, dtype)
    judged = meaning.judged(back, stages if stages.needed else None)
    stages.note()

    rest = {name: x for name, x in (meant or {}).items() if name != "layout"}  # arrays are in BHLD by then
    for side in sides:
        if side.error is None:
            judge_side(side, meaning.spec, judged, dtype)
        if side.etas.get("out", 0.0) > ACCEPTANCE:
            side.diagnosis = diagnose(side.values["out"], q, k, v, dtype=dtype, **rest)
            allow_roundings(side, judged, dtype)
        elif not side.agrees and side.error is None and gradients:
            side.gradient_causes = explain_gradients(meaning, cotangent, side.values, judged)
    code, kept = meant_as_code(call, meant or {})
    calls, origins = (_title(f, "f"), _title(g, "g")), (origin_of(f), origin_of(g))
    between = apart(sides, judged, dtype)
    alike = all(side.diagnosis and not side.agrees for side in sides) and between["out"] <= 2 * ACCEPTANCE
    outs = [side.values["out"] for side in sides] if alike else []
    return Comparison(
        sides=(sides[0], sides[1]),
        between=between,
        dtype=dtype,
        shapes={name: x.shape for name, x in arrays.items()},
        worst=worst_of(list(between), sides, judged, dtype),
        inputs=arrays,
        environment=environment(),
        instead=tuple(meant_instead(call, meant or {}, outs, dtype)) if alike else (),
        repeat=Repeat(calls, origins, code, kept, tuple(layouts), gradients, seed),
    )


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


def _title(f: Callable[..., Any], otherwise: str) -> str:
    name = getattr(f, "__qualname__", otherwise)
    return otherwise if "<" in name else f"{getattr(f, '__module__', '')}.{name}".strip(".")
