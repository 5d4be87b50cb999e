"""The test bench: how a library is made to run `attention`, and how the result is judged.

`check_backend(bench)` is the conformance suite; the author of a third-party adapter runs it with a
`Bench` of his own (see `backends/README.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import polyattn
from polyattn.arrays import Array
from polyattn.parity.case import Case, Later, Sample
from polyattn.parity.cases import cases
from polyattn.truth.definition import truth
from polyattn.truth.measure import ACCEPTANCE, FLOOR_ACCEPTANCE, eta, floor_ratio
from polyattn.truth.spec import Floats

Function = Callable[[Mapping[str, Array]], tuple[Array, Array]]


class Bench(Protocol):
    """What a test needs from an array library and attention does not."""

    name: str
    version: str
    dtypes: tuple[str, ...]  # of "float16", "bfloat16", "float32", "float64"

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        """A NumPy array as one of the library, floats in `dtype`, integers and bools as they are."""

    def numpy(self, x: Array) -> Floats:
        """The values as a NumPy array of float64 (or of the integers and bools they are)."""

    def run(
        self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None
    ) -> tuple[Array, Array, Mapping[str, Array] | None]:
        """(out, lse) = f(arrays), and the gradients of sum(out * cotangent) for every array.

        None for the gradients where there is no cotangent or the library has no derivatives; {} to have none judged.
        """


@dataclass(frozen=True)
class Outcome:
    """What one case gave on one bench in one dtype."""

    case: str
    bench: str
    dtype: str
    etas: Mapping[str, float]  # "out", "lse", "dq", ... -> eta
    floor: float | None = None  # floor ratio of out, half precision only
    error: str | None = None  # the exception, where there is no result

    @property
    def eta(self) -> float:
        """The worst of them."""
        return math.inf if self.error else max(self.etas.values(), default=math.inf)

    @property
    def agrees(self) -> bool:
        return self.eta <= ACCEPTANCE and (self.floor or 0.0) <= FLOOR_ACCEPTANCE

    def __str__(self) -> str:
        what = self.error or ", ".join(f"{name} {value:.3g}" for name, value in self.etas.items())
        return f"{self.bench} {self.dtype} {self.case!r}: {what}"


class Disagreement(AssertionError):
    """Some outcome exceeds eta = 4 or its floor ratio; `outcomes` holds those that do."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes
        super().__init__("not the definition of attention:\n" + "\n".join(map(str, outcomes)))


def check_backend(
    bench: Bench,
    *,
    dtypes: Iterable[str] | None = None,
    only: Iterable[Case] | None = None,
    attention: Callable[..., Any] = polyattn.attention,
    seed: int = 0,
) -> list[Outcome]:
    """Runs every case on a bench; raises `Disagreement` unless eta <= 4 everywhere.

    Judged are out, lse and the gradients for query, key, value, bias, sinks and scale, against the
    truth in extended precision. `attention` is what is on trial.

    >>> outcomes = check_backend(NumpyBench(), dtypes=["float64"])
    >>> max(outcome.eta for outcome in outcomes) <= 4
    True
    """
    outcomes = list(run_cases(bench, dtypes=dtypes, only=only, attention=attention, seed=seed))
    failed = [outcome for outcome in outcomes if not outcome.agrees]
    if failed or not outcomes:
        raise Disagreement(failed)
    return outcomes


def run_cases(
    bench: Bench,
    *,
    dtypes: Iterable[str] | None = None,
    only: Iterable[Case] | None = None,
    attention: Callable[..., Any] = polyattn.attention,
    seed: int = 0,
) -> Iterator[Outcome]:
    """The outcomes of `check_backend` one by one, whatever they are."""
    for dtype in bench.dtypes if dtypes is None else dtypes:
        for case in cases() if only is None else only:
            yield judge(bench, case, case.sample(seed, dtype), dtype, attention, seed)


def judge(
    bench: Bench, case: Case, sample: Sample, dtype: str, attention: Callable[..., Any], seed: int = 0
) -> Outcome:
    """One sample on one bench."""
    try:
        etas, floor = _measure(bench, sample, dtype, attention, seed)
    except Exception as error:  # a crash is an outcome of its own, named in the table
        return Outcome(case.name, bench.name, dtype, {}, error=f"{type(error).__name__}: {error}")
    return Outcome(case.name, bench.name, dtype, etas, floor)


_SHORT = {"query": "dq", "key": "dk", "value": "dv", "bias": "dbias", "sinks": "dsinks", "scale": "dscale"}


def _measure(
    bench: Bench, sample: Sample, dtype: str, attention: Callable[..., Any], seed: int
) -> tuple[dict[str, float], float | None]:
    spec = sample.spec
    out_shape = (*spec.shape[:3], spec.v.shape[-1])
    rng = np.random.default_rng(seed)
    cotangent = rng.choice([-1.0, -0.5, 0.5, 1.0], size=out_shape)  # exact in every dtype

    def convert(x: Any) -> Any:
        return bench.array(x, dtype) if isinstance(x, np.ndarray) else x

    fixed = {
        name: value.make(convert) if isinstance(value, Later) else convert(value)
        for name, value in sample.options.items()
        if name not in sample.arrays
    }
    arrays = {name: convert(x) for name, x in sample.arrays.items()}

    def f(given: Mapping[str, Array]) -> tuple[Array, Array]:
        rest = {name: x for name, x in given.items() if name not in ("query", "key", "value")}
        out, aux = attention(
            given["query"],
            given["key"],
            given["value"],
            **rest,
            **fixed,
            return_aux=polyattn.AuxRequest(lse=True),
        )
        return out, aux.lse

    out, lse, grads = bench.run(f, arrays, convert(sample.from_spec(cotangent)))
    if grads is None and attention is polyattn.attention:  # no autodiff here: our own pullback
        _, pullback = polyattn.attention_vjp(**arrays, **fixed)
        with suppress(NotImplementedError):  # a function as score_mod has no derivative without autodiff
            grads = pullback(convert(sample.from_spec(cotangent)))
    judged = truth(spec, cotangent if grads is not None else None)
    computed = {
        "out": sample.to_spec(bench.numpy(out), out_shape),
        "lse": sample.to_spec(bench.numpy(lse), spec.shape[:3], has_width=False),
    }
    for name, grad in (grads or {}).items():
        short = _SHORT[name]
        computed[short] = sample.to_spec(bench.numpy(grad), judged[short].value.shape)
    # lse comes in the compute dtype
    lse_dtype = "float64" if dtype == "float64" else "float32"
    etas = {name: eta(x, judged[name], lse_dtype if name == "lse" else dtype) for name, x in computed.items()}
    half = dtype in ("float16", "bfloat16")
    return etas, floor_ratio(computed["out"], judged["out"], dtype) if half else None


class NumpyBench:
    """NumPy: no compiler, no derivatives."""

    name: str = "numpy"
    version = np.__version__

    def __init__(self) -> None:
        try:
            import ml_dtypes
        except ImportError:
            self._bfloat16 = None
        else:
            self._bfloat16 = ml_dtypes.bfloat16
        half = () if self._bfloat16 is None else ("bfloat16",)
        self.dtypes = ("float64", "float32", "float16", *half)

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        if x.dtype.kind != "f" or dtype is None:
            return x.copy()
        with np.errstate(over="ignore"):
            return x.astype(self._bfloat16 if dtype == "bfloat16" else dtype)

    def numpy(self, x: Array) -> Floats:
        values: Floats = x if x.dtype.kind in "biu" else x.astype(np.float64)
        return values

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        with np.errstate(invalid="ignore"):  # NaN that was planted in hidden keys
            return (*f(arrays), None)


class StrictBench:
    """array-api-strict: nothing beyond the standard, on any of its devices."""

    def __init__(self, device: str = "CPU_DEVICE", float64: bool = True, name: str = "strict") -> None:
        import array_api_strict

        self.xp = array_api_strict
        self.device = array_api_strict.Device(device)
        self.name = name
        self.version = array_api_strict.__version__
        self.dtypes: tuple[str, ...] = ("float64", "float32") if float64 else ("float32",)

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        if x.dtype.kind == "f" and dtype is not None:
            x = x.astype(dtype)
        return self.xp.asarray(x, device=self.device, copy=True)

    def numpy(self, x: Array) -> Floats:
        values = np.asarray(self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE")))
        return values.astype(np.float64) if values.dtype.kind == "f" else values

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        with np.errstate(invalid="ignore"):
            return (*f(arrays), None)


class JaxBench:
    """JAX, compiled by default; float64 inside a local x64 scope, the global flag untouched."""

    name: str = "jax"
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")

    def __init__(self, jit: bool = True) -> None:
        import jax

        self.jax = jax
        self.jit = jit
        self.version = jax.__version__

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        with self.jax.enable_x64(dtype == "float64"):
            return self.jax.numpy.asarray(x, dtype if x.dtype.kind == "f" else None)

    def numpy(self, x: Array) -> Floats:
        values = np.asarray(x)
        return values if values.dtype.kind in "biu" else values.astype(np.float64)

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        jax = self.jax
        wide = any(x.dtype == np.float64 for x in arrays.values())

        def everything(arrays: Any, cotangent: Any) -> Any:
            if cotangent is None:
                return (*f(arrays), None)
            out, pullback, lse = jax.vjp(f, arrays, has_aux=True)
            return out, lse, pullback(cotangent)[0]

        with jax.enable_x64(wide):
            return (jax.jit(everything) if self.jit else everything)(dict(arrays), cotangent)


class TorchBench:
    """PyTorch, eager by default; `compile` names a backend of torch.compile (always fullgraph)."""

    name: str = "torch"
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")

    def __init__(self, compile: str | None = None, device: str = "cpu") -> None:
        import torch

        self.torch = torch
        self.compile = compile
        self.device = device
        self.version = str(torch.__version__)

    def array(self, x: Floats, dtype: str | None = None) -> Array:
        made = self.torch.from_numpy(np.array(x))
        if x.dtype.kind == "f" and dtype is not None:
            made = made.to(getattr(self.torch, dtype))
        return made.to(self.device)

    def numpy(self, x: Array) -> Floats:
        x = x.detach().cpu()
        values: Floats = (x.double() if x.dtype.is_floating_point else x).numpy()
        return values

    def run(self, f: Function, arrays: Mapping[str, Array], cotangent: Array | None) -> Any:
        if self.compile:
            self.torch.compiler.reset()
            f = self.torch.compile(f, fullgraph=True, backend=self.compile)
        leaves = {name: x.requires_grad_(cotangent is not None) for name, x in arrays.items()}
        out, lse = f(leaves)
        if cotangent is None:
            return out, lse, None
        grads = self.torch.autograd.grad(out, list(leaves.values()), cotangent, materialize_grads=True)
        return out, lse, dict(zip(leaves, grads, strict=True))


#: The benches of the libraries known here, by name.
BENCHES: Mapping[str, Callable[[], Bench]] = {
    "numpy": NumpyBench,
    "strict": StrictBench,
    "jax": JaxBench,
    "torch": TorchBench,
}
