"""Is it the definition of attention? Cases run on a bench, and the results judged by the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import polyattn
from polyattn.arrays import Array
from polyattn.parity.bench import Bench
from polyattn.parity.case import Case, Later, Sample
from polyattn.parity.cases import cases
from polyattn.parity.reasons import Reason, blind_rows, why_infinite
from polyattn.parity.report import number
from polyattn.truth.definition import truth
from polyattn.truth.measure import ACCEPTANCE, FLOOR_ACCEPTANCE, eta, floor_ratio

__all__ = ["Disagreement", "Outcome", "check_backend", "judge", "run_cases"]


@dataclass(frozen=True)
class Outcome:
    """What one case gave on one bench in one dtype."""

    case: str
    bench: str
    dtype: str
    etas: Mapping[str, float]  # "out", "lse", "dq", ... -> eta
    floor: float | None = None  # floor ratio of out, half precision only
    error: str | None = None  # the exception, where there is no result
    reasons: Mapping[str, Reason] = field(default_factory=dict)  # why an eta is infinite
    seconds: float = 0.0  # what it took in a run of `polyattn verify`

    @property
    def eta(self) -> float:
        """The worst of them."""
        return math.inf if self.error else max(self.etas.values(), default=math.inf)

    @property
    def agrees(self) -> bool:
        return self.eta <= ACCEPTANCE and (self.floor or 0.0) <= FLOOR_ACCEPTANCE

    @property
    def word(self) -> str:
        """What a cell of a table says: the worst eta, or why it is no number."""
        if self.error:
            return "error"
        return next((reason.word for reason in self.reasons.values()), number(self.eta))

    def __str__(self) -> str:
        told = [
            f"{name}: {self.reasons[name].sentence}" if name in self.reasons else f"{name} {value:.3g}"
            for name, value in self.etas.items()
        ]
        if (self.floor or 0.0) > FLOOR_ACCEPTANCE:
            told.append(
                f"rms error of out {self.floor:.3g} times that of the rounded truth (of {FLOOR_ACCEPTANCE:g})"
            )
        return f"{self.bench} {self.dtype} {self.case!r}: {self.error or ', '.join(told)}"


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

    Judged are out, lse where there is one, and the gradients for query, key, value, bias, sinks and scale, against the
    truth in extended precision. `attention` is what is on trial.

    >>> from polyattn.testing import load_bench
    >>> outcomes = check_backend(load_bench("numpy"), dtypes=["float64"])
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
        etas, floor, reasons = _measure(bench, sample, dtype, attention, seed)
    except Exception as error:  # a crash is an outcome of its own, named in the table
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(case.name, bench.name, dtype, {}, error=what)
    return Outcome(case.name, bench.name, dtype, etas, floor, reasons=reasons)


_SHORT = {"query": "dq", "key": "dk", "value": "dv", "bias": "dbias", "sinks": "dsinks", "scale": "dscale"}


def _measure(
    bench: Bench, sample: Sample, dtype: str, attention: Callable[..., Any], seed: int
) -> tuple[dict[str, float], float | None, dict[str, Reason]]:
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

    has_lse = spec.normalizer == "softmax"

    def f(given: Mapping[str, Array]) -> tuple[Array, Array]:
        rest = dict(given)
        q, k, v = (rest.pop(name) for name in ("query", "key", "value"))
        if not has_lse:
            out = attention(q, k, v, **rest, **fixed)
            return out, out
        out, aux = attention(q, k, v, **rest, **fixed, return_aux=polyattn.AuxRequest(lse=True))
        return out, aux.lse

    out, lse, grads = bench.run(f, arrays, convert(sample.from_spec(cotangent)))
    if grads is None and attention is polyattn.attention:  # no autodiff here: our own pullback
        # A function as score_mod has no derivative without autodiff, nor has a normaliser that the engine lacks.
        with suppress(NotImplementedError):
            _, pullback = polyattn.attention_vjp(**arrays, **fixed)
            found = pullback(convert(sample.from_spec(cotangent)))
            grads = {name: found[name] for name in arrays}
    judged = truth(spec, cotangent if grads is not None else None, dtype=dtype)
    computed = {"out": sample.to_spec(bench.numpy(out), out_shape)}
    if has_lse:
        computed["lse"] = sample.to_spec(bench.numpy(lse), spec.shape[:3], has_width=False)
    for name, grad in (grads or {}).items():
        short = _SHORT[name]
        computed[short] = sample.to_spec(bench.numpy(grad), judged[short].value.shape)
    # lse comes in the compute dtype
    lse_dtype = "float64" if dtype == "float64" else "float32"
    etas = {name: eta(x, judged[name], lse_dtype if name == "lse" else dtype) for name, x in computed.items()}
    reasons = {
        name: why_infinite(computed[name], judged[name], blind_rows(spec) if name in ("out", "lse") else None)
        for name, x in etas.items()
        if math.isinf(x)
    }
    half = dtype in ("float16", "bfloat16") and "out" not in reasons
    return etas, floor_ratio(computed["out"], judged["out"], dtype) if half else None, reasons
