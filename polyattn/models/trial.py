"""A pretrained model as a whole, computed in one way and judged against the formulas of its paper in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from polyattn.parity.bench import Bench
from polyattn.parity.judging import Outcome
from polyattn.parity.reasons import Reason, why_infinite
from polyattn.truth.definition import Judged
from polyattn.truth.measure import UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["DTYPES", "Expected", "ModelTrial", "Question"]

#: Whole models are judged in these; what half precision decides is another thing, since rounding is larger than gaps.
DTYPES = ("float64", "float32")


class Expected(NamedTuple):
    """What a model should give."""

    values: Floats
    noise: float  # the largest change of a value when every operation errs like float32
    decisions: Floats  # what follows from the values, in integers


class Question(NamedTuple):
    """What a model is asked, and how its answer is read."""

    values: str  # the name of what it computes, as "embeddings"
    decisions: str  # and of what follows from that, as "ranking"
    decide: Callable[[Floats], Floats]
    otherwise: str  # what it means that other decisions follow
    expected: Callable[[], Expected]


@dataclass(frozen=True)
class ModelTrial:
    """A question, answered in one way, on the benches that can."""

    name: str
    question: Question
    answer: Callable[[Bench, str], Floats]  # bench, dtype -> values
    needs: str | None = None  # what a bench must have for it
    without: str | None = None  # and what it must not have

    def applies(self, bench: Bench, dtype: str) -> bool:
        fits = (self.needs is None or hasattr(bench, self.needs)) and (
            self.without is None or not hasattr(bench, self.without)
        )
        return dtype in DTYPES and fits

    def judge(self, bench: Bench, dtype: str) -> Outcome:
        """eta of the values, max |x - truth| / (what rounding does to them); decisions agree or they do not."""
        asked = self.question
        try:
            x, truth = self.answer(bench, dtype), asked.expected()
            unit = truth.noise * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]
            off = np.abs(x - truth.values).max() if x.shape == truth.values.shape else math.inf
            same = math.isfinite(off) and (asked.decide(x) == truth.decisions).all()
            eta = float(off / unit) if math.isfinite(off) else math.inf
            etas = {asked.values: eta, asked.decisions: 0.0 if same else math.inf}
            reasons = {} if same else {asked.decisions: Reason("order", asked.otherwise)}
            if math.isinf(eta):
                judged = Judged(truth.values, np.full_like(truth.values, unit))
                reasons = {asked.values: why_infinite(x, judged)} | reasons
        except Exception as error:  # a crash is an outcome of its own, named in the table
            what = " ".join(f"{type(error).__name__}: {error}".split())
            return Outcome(self.name, bench.name, dtype, {}, error=what)
        return Outcome(self.name, bench.name, dtype, etas, reasons=reasons)
