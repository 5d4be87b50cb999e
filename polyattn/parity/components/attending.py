"""Why attention is wrong: its projections, one thing at a time, and then what `diagnose` finds in its heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from polyattn.conventions.answers import Answer, answer
from polyattn.conventions.call import Call, call_of
from polyattn.parity import diagnose
from polyattn.parity.components.contexts import heads_of, read_inputs, to_batch_first
from polyattn.parity.components.denominators import over_queries
from polyattn.parity.components.heads import Heads
from polyattn.parity.components.projections import (
    Changes,
    biases,
    norms_and_turns,
    operands,
    orders,
    rounded,
)
from polyattn.parity.components.relation import relation
from polyattn.parity.components.trial import BETTER, Candidate, Case, rms
from polyattn.parity.components.turning import rotary_of
from polyattn.truth.definition import Judged
from polyattn.truth.measure import ACCEPTANCE, unit_of
from polyattn.truth.spec import Floats

__all__ = ["found_in_heads", "tiers"]


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """Settings and biases; the arrays of the port; orders of rows and columns; precision."""
    heads = read_inputs(case)
    if heads is None:
        return
    for make in (biases, operands, norms_and_turns):
        yield (_candidate(case, said, changed) for said, changed in make(heads))
    yield (_candidate(case, said, changed) for said, changed in _of_the_port(case, heads))
    yield (_candidate(case, said, changed) for said, changed in orders(heads))
    yield (_candidate(case, said, changed) for said, changed in rounded(heads))
    yield (_given(case, said, out) for said, out in over_queries(heads))


def _given(case: Case, said: str, out: Floats) -> Candidate:
    """An output (B, L, E) as that of the component."""
    shape, last = case.expected.shape, case.facts.numbers.get("batch_first") is False
    out = out.swapaxes(0, 1) if last and len(shape) == 3 else out
    return Candidate(
        said, lambda case: out.reshape(shape) if out.size == case.expected.size else out, rowwise=False
    )


def _candidate(case: Case, said: str, heads: Heads) -> Candidate:
    def predict(case: Case) -> Floats:
        try:
            out = heads()
        except (ValueError, TypeError):
            return np.zeros(0)  # shapes that do not fit together this way
        return _given(case, said, out).predict(case)

    return Candidate(said, predict, rowwise=False)


def _of_the_port(case: Case, heads: Heads) -> Changes:
    """With the arrays and settings that the port holds."""
    theirs = None if case.port is None or case.port.kind != "attention" else heads_of(case.port, case.inputs)
    if theirs is None or case.port is None:
        return
    both = [n for n in heads.arrays if n in theirs.arrays and heads.arrays[n].shape == theirs.arrays[n].shape]
    changed: dict[str, Floats | None] = {}
    for name in both:
        if (said := relation(case.facts.arrays[name], case.port.arrays[name])) is not None:
            changed[name.replace(".", "_", 1)] = theirs.arrays[name]
            yield (
                f"{name} of the port {said}",
                heads.with_arrays(**{name.replace(".", "_", 1): theirs.arrays[name]}),
            )
    if len(changed) > 1:
        said = ", ".join(n.replace("_", ".", 1) for n in changed)
        yield f"{said} of the port are others than those of the reference", heads.with_arrays(**changed)
    if theirs.scale != heads.scale:
        yield f"scale {theirs.scale:.6g}, not {heads.scale:.6g}", replace(heads, scale=theirs.scale)


def found_in_heads(case: Case) -> str | None:
    """What `polyattn.parity.diagnose` finds in the heads, with the output projection undone; None where it finds nothing.

    The undoing enlarges noise, so that it is asked in the precisions in which the heads of the reference pass; what it
    finds is judged again on the output, in units.
    """
    heads = read_inputs(case)
    if heads is None:
        return None
    right, seen = (heads.undone(to_batch_first(case.facts, x)) for x in (case.expected, case.seen))
    if right is None or seen is None:
        return None
    right, seen = heads.without_blind(right, right), heads.without_blind(seen, right)
    asked = _asked(case, heads, right)
    passing = [dtype for dtype in ("float64", "float32", "float16", "bfloat16") if asked.passes(right, dtype)]
    for dtype, pairs in [*((dtype, False) for dtype in passing), *((dtype, True) for dtype in passing[-1:])]:
        found = diagnose(seen, *asked.operands, dtype=dtype, pairs=pairs, **asked.context)
        for finding in () if found.agrees else (*found.findings, *found.alike):
            if asked.explains(case, heads, finding):
                return " and ".join(finding.sentences)
    return None


@dataclass(frozen=True)
class _Asked:
    """What `diagnose` is asked: operands and context."""

    operands: tuple[Floats, Floats, Floats]
    context: dict[str, Any]

    @cached_property
    def call(self) -> Call:
        return call_of(*self.operands, self.context)

    @cached_property
    def stated(self) -> Answer:
        return answer(self.call)

    def passes(self, right: Floats, dtype: str) -> bool:
        """Whether these heads are what is asked for, in a precision."""
        judged = Judged(self.stated.out, self.stated.condition, 0.0, self.stated.rounded)
        return bool((np.abs(right - self.stated.out) <= ACCEPTANCE * unit_of(judged, dtype)).all())

    def explains(self, case: Case, heads: Heads, finding: Any) -> bool:
        """Whether it gives the output that was seen, with as much more noise as its condition has more."""
        given = answer(getattr(finding, "call", None) or self.call, finding.settings)
        out = heads.joined(np.asarray(given.out, np.float64))
        if case.facts.numbers.get("batch_first") is False:
            out = out.swapaxes(0, 1)
        if out.size != case.seen.size:
            return False
        grown = max(1.0, rms(given.condition) / rms(self.stated.condition))
        ratio = case.ratio(out.reshape(case.seen.shape)) / grown
        return ratio <= ACCEPTANCE and ratio * BETTER <= case.ratio(case.expected)


def _asked(case: Case, heads: Heads, right: Floats) -> _Asked:
    """With the rotary still to be applied where it is that of positions 0, 1, ..., so that it can be found wrong."""
    context = heads.context() | {"embed_dim": heads.query.shape[-1]}
    told, waves = rotary_of(case.facts), heads.waves
    if (
        told is not None
        and waves is not None
        and waves.interleaved == told.interleaved
        and not heads.norm_last
    ):
        asked = _Asked(heads.projected(turned=False), {**context, "rotary": told})
        if asked.passes(right, "bfloat16"):
            return asked
    return _Asked(heads.projected(), context)
