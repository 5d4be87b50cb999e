"""Why attention is wrong: its projections, one thing at a time, and then what `diagnose` finds in its heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from polyattn.parity.components.contexts import heads_of, read_inputs, rotary_of, to_batch_first
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
from polyattn.parity.components.trial import BETTER, Candidate, Case
from polyattn.parity.diagnosis import diagnose
from polyattn.truth.measure import ACCEPTANCE
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


def _candidate(case: Case, said: str, heads: Heads) -> Candidate:
    shape, last = case.expected.shape, case.facts.numbers.get("batch_first") is False

    def predict(case: Case) -> Floats:
        try:
            out = heads()
        except (ValueError, TypeError):
            return np.zeros(0)  # shapes that do not fit together this way
        out = out.swapaxes(0, 1) if last and len(shape) == 3 else out
        return out.reshape(shape) if out.size == case.expected.size else out

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

    It is asked in the finest precision in which it finds nothing wrong with the reference, whose noise the undoing
    enlarges.
    """
    heads = read_inputs(case)
    if heads is None:
        return None
    right, seen = (heads.undone(to_batch_first(case.facts, x)) for x in (case.expected, case.seen))
    if right is None or seen is None:
        return None
    right, seen = heads.without_blind(right, right), heads.without_blind(seen, right)
    context = heads.context()
    context["embed_dim"] = heads.query.shape[-1]
    told = rotary_of(case.facts)
    q, k, v = heads.projected()
    if (
        told is not None
        and heads.waves is not None
        and heads.waves.interleaved == told.interleaved
        and not heads.norm_last
    ):
        plain = heads.projected(turned=False)
        with_rotary = {**context, "rotary": told}
        if _precision(right, plain, with_rotary) is not None:  # the angles are those of positions 0, 1, ...
            (q, k, v), context = plain, with_rotary
    dtype = _precision(right, (q, k, v), context)
    if dtype is None:
        return None
    found = diagnose(seen, q, k, v, dtype=dtype, **context)
    if found.agrees or not found.findings:
        return None
    best = found.findings[0]
    if best.eta > ACCEPTANCE or best.eta * BETTER > found.stated:
        return None
    return " and ".join(best.sentences)


def _precision(
    right: Floats, operands: tuple[Floats, Floats, Floats], context: dict[str, object]
) -> str | None:
    for dtype in ("float64", "float32", "float16"):
        if diagnose(right, *operands, dtype=dtype, pairs=False, **context).agrees:
            return dtype
    return None
