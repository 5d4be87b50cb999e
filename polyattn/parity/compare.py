"""Two implementations of attention on the same inputs: do they agree, where not, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn.backend import backend_of, is_array
from polyattn.parity.conventions import CONTRACT, Call, allowed_keys, pose
from polyattn.parity.diagnose import Diagnosis, diagnose
from polyattn.parity.environment import environment
from polyattn.parity.measure import ACCEPTANCE, UNIT_ROUNDOFF, eta
from polyattn.parity.spec import Floats, Spec
from polyattn.parity.truth import Judged, truth
from polyattn.trace import Trace

if TYPE_CHECKING:
    from polyattn.testing import Bench

GRADIENTS = {"query": "dq", "key": "dk", "value": "dv"}


@dataclass
class Side:
    """One of the two implementations, and what it gave."""

    name: str
    library: str
    etas: dict[str, float] = field(
        default_factory=dict
    )  # "out", "dq", "dk", "dv" -> error in units of rounding
    values: dict[str, Floats] = field(default_factory=dict)  # the same names, float64, in BHLD
    stages: dict[str, Floats] = field(default_factory=dict)
    stage_etas: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    diagnosis: Diagnosis | None = None

    @property
    def agrees(self) -> bool:
        """Whether everything that it gave is the truth to rounding."""
        return self.error is None and bool(self.etas) and max(self.etas.values()) <= ACCEPTANCE


@dataclass(frozen=True)
class Worst:
    """The element on which the two differ most."""

    quantity: str
    index: tuple[int, ...]  # in BHLD
    f: float
    g: float
    truth: float


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`. Printed it is a verdict, a table, and what explains a difference."""

    sides: tuple[Side, Side]
    between: Mapping[str, float]  # quantity -> difference of the two in units of rounding
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    worst: Worst | None
    inputs: Mapping[str, Floats]
    environment: Mapping[str, str]
    seed: int
    calls: tuple[str, str]

    @property
    def agrees(self) -> bool:
        """Whether both are the truth, forward and backward, to rounding."""
        return all(side.agrees for side in self.sides)

    @property
    def first_divergence(self) -> str | None:
        """The first stage, of those that both sides recorded, in which they are not the same to rounding."""
        f, g = self.sides
        for name in f.stage_etas:
            if name in g.stage_etas and max(f.stage_etas[name], g.stage_etas[name]) > ACCEPTANCE:
                return name
        return None

    @property
    def verdict(self) -> str:
        """One sentence."""
        f, g = self.sides
        failed = [side for side in self.sides if side.error]
        if failed:
            return "; ".join(f"{side.name} could not be judged: {side.error}" for side in failed)
        if self.agrees:
            worst = max((value, q) for side in self.sides for q, value in side.etas.items())
            return f"AGREE: {f.name} and {g.name} are the definition of attention (worst eta {worst[0]:.2f}, {worst[1]})"
        if not f.agrees and not g.agrees:
            # Each may be wrong by itself, or both follow another convention.
            both = max(self.between.values(), default=math.inf) <= 2 * ACCEPTANCE
            alike = "agree with each other" if both else "differ from each other too"
            return f"DISAGREE: neither {f.name} nor {g.name} computes what was meant; they {alike}"
        wrong, right = (f, g) if g.agrees else (g, f)
        return f"DISAGREE: {right.name} computes what was meant, {wrong.name} does not"

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table: quantity, eta of f, eta of g, and of their difference."""
        f, g = self.sides

        def cell(value: float | None) -> str:
            return "-" if value is None else f"{value:.3g}"

        quantities = list(dict.fromkeys([*f.etas, *g.etas]))
        return [(q, cell(f.etas.get(q)), cell(g.etas.get(q)), cell(self.between.get(q))) for q in quantities]

    def stage_rows(self) -> list[tuple[str, str, str]]:
        """Stage, eta of f, eta of g, for the stages that both recorded."""
        f, g = self.sides
        common = [name for name in f.stage_etas if name in g.stage_etas]
        return [(name, f"{f.stage_etas[name]:.3g}", f"{g.stage_etas[name]:.3g}") for name in common]

    def findings(self) -> list[str]:
        """What explains the sides that are wrong."""
        return [f"{side.name} {side.diagnosis}" for side in self.sides if side.diagnosis is not None]

    def __str__(self) -> str:
        f, g = self.sides
        table = [("eta", f.name, g.name, "between"), *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [self.verdict]
        lines += ["  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in table]
        if self.worst is not None and not self.agrees:
            w = self.worst
            lines.append(
                f"worst: {w.quantity}{list(w.index)}: {f.name} {w.f:.9g}, {g.name} {w.g:.9g}, truth {w.truth:.9g}"
            )
        if self.first_divergence is not None:
            lines.append(f"first stage that differs: {self.first_divergence}")
        lines += self.findings()
        lines += [f"{side.name}: {note}" for side in self.sides for note in side.notes]
        return "\n".join(lines)

    def save(self, path: Any) -> None:
        """Writes the inputs to an .npz file, for `script`."""
        np.savez(path, **dict(self.inputs))  # type: ignore[arg-type]

    def script(self, path: str = "inputs.npz") -> str:
        """A program of about ten lines that makes this comparison again; `save(path)` keeps its inputs."""
        f, g = self.sides
        (left, right), dtype = self.calls, self.dtype
        return "\n".join(
            (
                "import numpy as np",
                "from polyattn.parity import compare",
                "",
                f"with np.load({path!r}, allow_pickle=False) as file:",
                "    inputs = {name: file[name] for name in file.files}",
                f"f = ...  # {_one_line(left)}",
                f"g = ...  # {_one_line(right)}",
                "meant = {}  # the arguments of polyattn.attention that say what was meant",
                f"print(compare(f, g, inputs, meant=meant, on=({f.library!r}, {g.library!r}), dtype={dtype!r}, seed={self.seed}))",
                "",
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays as JSON values; what is not finite is null."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "acceptance": ACCEPTANCE,
            "dtype": self.dtype,
            "seed": self.seed,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "environment": dict(self.environment),
            "sides": [
                {
                    "name": side.name,
                    "library": side.library,
                    "agrees": side.agrees,
                    "eta": {q: _finite(x) for q, x in side.etas.items()},
                    "stages": {q: _finite(x) for q, x in side.stage_etas.items()},
                    "error": side.error,
                    "diagnosis": None if side.diagnosis is None else str(side.diagnosis),
                }
                for side in self.sides
            ],
            "between": {q: _finite(x) for q, x in self.between.items()},
            "first_divergence": self.first_divergence,
            "worst": None
            if self.worst is None
            else {
                "quantity": self.worst.quantity,
                "index": list(self.worst.index),
                "values": [_finite(x) for x in (self.worst.f, self.worst.g, self.worst.truth)],
            },
        }

    def to_junit(self) -> str:
        """A JUnit test suite: a test case for every quantity of each side."""
        from polyattn.parity.report import junit

        return junit(
            "polyattn compare",
            [
                (side.name, q, None if value <= ACCEPTANCE else f"eta {value:.3g} of {ACCEPTANCE:g}", False)
                for side in self.sides
                for q, value in side.etas.items()
            ]
            + [(side.name, "call", side.error, True) for side in self.sides if side.error is not None],
        )

    def to_html(self, path: Any = None, *, force: bool = False) -> str:
        """One self-contained page; written to `path` if given, over an existing file only with force=True."""
        from polyattn.parity.report import comparison_page, write

        page = comparison_page(self)
        if path is not None:
            write(page, path, force=force)
        return page

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


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
    spec = _spec(call)
    shape = (*call.shape[:3], call.v.shape[3])
    cotangent = np.random.default_rng(seed).choice([-1.0, -0.5, 0.5, 1.0], size=shape)
    judged = truth(spec, cotangent if gradients else None)
    stage_truth = _stage_truth(call)

    sides = []
    titles = names or (_title(f, "f"), _title(g, "g"))
    for function, bench, library, title, layout in zip((f, g), benches, on, titles, layouts, strict=True):
        side = Side(_one_line(str(title)), library)
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
            if name in stage_truth and value.shape == stage_truth[name].value.shape:
                carried = "float64" if dtype == "float64" else "float32"
                side.stage_etas[name] = eta(value, stage_truth[name], carried)
        # Stages in the order of the definition, whatever order they were recorded in.
        side.stage_etas = {name: side.stage_etas[name] for name in stage_truth if name in side.stage_etas}
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


# truth


def _spec(call: Call) -> Spec:
    if call.rotary is not None:
        raise ValueError(
            "polyattn.parity.compare: expected query and key already turned, got rotary= in meant; apply it inside f and g"
        )
    allowed = np.broadcast_to(allowed_keys(call, CONTRACT, np.arange(call.shape[2])), call.shape)
    return Spec(
        call.q,
        call.k,
        call.v,
        allowed=allowed,
        scale=call.scale,
        softcap=call.softcap,
        shift=call.shift,
        bias=call.bias,
        sinks=call.sinks,
    )


def _stage_truth(call: Call) -> dict[str, Judged]:
    """The stages of the definition in float64, and how much rounding may move each; hidden scores are free."""
    allowed = np.broadcast_to(allowed_keys(call, CONTRACT, np.arange(call.shape[2])), call.shape)

    def among_visible(condition: Floats) -> Floats:
        return np.where(allowed, condition, np.inf)

    group = call.q.shape[1] // call.k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (call.k, call.v))
    raw = call.q @ k.swapaxes(-1, -2)
    s = call.scale * raw
    sabs = abs(call.scale) * (np.abs(call.q) @ np.abs(k).swapaxes(-1, -2))
    found = {"scores": Judged(s, among_visible(sabs + np.abs(s)))}

    def broad(x: Floats) -> Floats:
        return np.broadcast_to(x.reshape((1,) * (4 - x.ndim) + x.shape), call.shape)

    if call.softcap is not None:
        bent = np.tanh(s / call.softcap)
        s, sabs = call.softcap * bent, sabs * (1 - bent**2) + 2 * call.softcap * np.abs(bent)
        found["after softcap"] = Judged(s, among_visible(sabs + np.abs(s)))
    if call.shift is not None:
        s = s + broad(call.shift)
        sabs = sabs + np.abs(broad(call.shift)) + np.abs(s)
    if call.bias is not None:
        with np.errstate(invalid="ignore"):
            s = s + broad(call.bias)
        sabs = (
            sabs + np.where(allowed, np.abs(broad(call.bias)), 0.0) + np.where(np.isfinite(s), np.abs(s), 0.0)
        )
        found["biased"] = Judged(s, among_visible(sabs))
    if not allowed.all():
        s = np.where(allowed, s, -np.inf)
        found["masked"] = Judged(s, np.where(allowed, sabs + np.abs(np.where(allowed, s, 0.0)), 0.0))
    sabs = np.where(allowed, sabs, 0.0)
    top = s.max(-1, initial=-np.inf)
    if call.sinks is not None:
        top = np.maximum(top, call.sinks[None, :, None])
    found["row maximum"] = Judged(
        top, 1 + sabs.max(-1, initial=0.0) + np.where(np.isfinite(top), np.abs(top), 0.0)
    )
    base = np.where(np.isfinite(top), top, 0.0)[..., None]
    e = np.exp(s - base)
    total = e.sum(-1, keepdims=True) + (
        0.0 if call.sinks is None else np.exp(call.sinks[None, :, None, None] - base)
    )
    w = e / np.where(total == 0, 1.0, total)
    mean = (w * sabs).sum(-1, keepdims=True)
    found["weights"] = Judged(w, w * (1 + sabs + mean), np.ones_like(w))
    found["output"] = Judged(w @ v, (w * (1 + sabs + mean)) @ np.abs(v), allowed @ np.abs(v))
    return found


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
    from polyattn.parity.measure import round_to

    return round_to(x.astype(np.float64), dtype)


def _bhld(meant: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in meant.items() if name != "layout"}


def _title(f: Callable[..., Any], otherwise: str) -> str:
    name = getattr(f, "__qualname__", otherwise)
    return otherwise if "<" in name else f"{getattr(f, '__module__', '')}.{name}".strip(".")


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
