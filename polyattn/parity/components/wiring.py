"""Why a block is wrong whose parts are right: its residuals, their factors, and what its parts were given.

Outputs of the parts are arrays named "child:NAME", and inputs "input:NAME", of the facts (in the reference) and, where
they are known, of the port (in the port).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from polyattn.parity.components.facts.record import Facts
from polyattn.parity.components.sums import Sums, simple
from polyattn.parity.components.trial import FEW, Candidate, Case, factor_of
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["named", "terms_of", "tiers"]

MOST = 3  # terms that may differ at once


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """What is summed with another factor, one term at a time and then several; then what parts were given."""
    terms = terms_of(case, case.facts)
    if not terms or not np.isfinite(case.seen).all() or not np.isfinite(case.expected).all():
        return
    if np.count_nonzero(case.expected) < FEW * (len(terms) + MOST):  # too little to find factors from
        return
    theirs = terms if case.port is None else terms | terms_of(case, case.port)
    sums = Sums(terms)
    for count in range(1, MOST + 1):
        yield _sums(case, terms, sums, count)
    yield _fed(case, terms, sums)
    if theirs is not terms:
        yield _own_sum(case, terms, sums, theirs)


def terms_of(case: Case, facts: Facts) -> dict[str, Floats]:
    """What may be summed: inputs and the outputs of parts, of the shape of the output."""
    found = {f"input {i}" if i else "the input": x for i, x in enumerate(case.inputs)}
    found |= {f"the output of {name}": x for name, x in facts.children().items()}
    fitting = {name: _spread(x, case.expected) for name, x in found.items() if x.dtype.kind == "f"}
    kept = dict[str, Floats]()
    for name, x in fitting.items():
        if x is None:
            continue
        again = any(np.array_equal(x, other) for other in (case.expected, *kept.values()))
        if np.isfinite(x).all() and x.any() and not again:
            kept[name] = x
    return kept


def _spread(x: Floats, like: Floats) -> Floats | None:
    """x in the shape of another array, one row of the batch for all where it has but one; None where it does not fit."""
    fits = x.ndim == like.ndim and x.shape[1:] == like.shape[1:] and x.shape[:1] in ((1,), like.shape[:1])
    return np.broadcast_to(x.astype(np.float64), like.shape) if fits else None


def _sums(case: Case, terms: Mapping[str, Floats], sums: Sums, count: int) -> Iterator[Candidate]:
    """seen = expected + a few terms, each with a factor."""
    own = _factors(case, terms, sums)
    for factors in sums.of(case.seen - case.expected, count):
        added = sum(a * terms[name] for name, a in factors.items())
        yield _given(_said(factors, own), np.asarray(case.expected + added))
    if count == 1 and (factor := factor_of(case)) is not None:
        yield _given(f"output multiplied by {simple(factor):.6g}", simple(factor) * case.expected)


def _given(said: str, out: Floats) -> Candidate:
    return Candidate(said, lambda case: out, rowwise=False)


def _factors(case: Case, terms: Mapping[str, Floats], sums: Sums) -> dict[str, float] | None:
    """The factors with which the reference sums its terms, if that is all it does."""
    told = sums.factors(case.expected)
    if told is None:
        return None
    total = sum(a * terms[name] for name, a in told.items())
    return told if case.reproduces(np.asarray(total)) else None


def _said(added: Mapping[str, float], own: Mapping[str, float] | None) -> str:
    """The difference in words: what is missing, twice, scaled."""
    lost = [name for name in added if _effect(name, added, own) == "missing"]
    gained = [name for name in added if own is not None and own[name] == 0 and added[name] == 1]
    if len(lost) == len(gained) == 1 and len(added) == 2:
        name = "residual taken" if lost[0].startswith(("the input", "input")) else f"{lost[0]} replaced:"
        where = "after the norm, not before it" if "norm" in gained[0] else "from another place"
        return f"{name} {where}: {gained[0]} is added for {lost[0]}"
    return " and ".join(f"{named(name)} {_effect(name, added, own)}" for name in added)


def named(name: str) -> str:
    return f"residual ({name})" if name.startswith(("the input", "input")) else name


def _effect(name: str, added: Mapping[str, float], own: Mapping[str, float] | None) -> str:
    a = added[name]
    before = own[name] if own is not None else 1.0 if a in (-1.0, 1.0, -2.0, -0.5) else None
    if before is None:
        return f"added {a:.6g} times more than in the reference"
    after = before + a
    if before == 0:
        return (
            "added, and not in the reference"
            if after == 1
            else f"added {after:.6g} times, and not in the reference"
        )
    if after == 0:
        return "missing"
    if after == 2 * before:
        return "added twice"
    return "subtracted, not added" if after == -before else f"multiplied by {after:.6g}, not {before:.6g}"


def _fed(case: Case, terms: Mapping[str, Floats], sums: Sums) -> Iterator[Candidate]:
    """A part that was given something else: in parallel for one after the other, before the norm for behind it."""
    if case.port is None:
        return
    own, given = case.facts.children("input"), case.port.children("input")
    outputs, theirs = case.facts.children(), case.port.children()
    for name in own.keys() & given.keys() & outputs.keys() & theirs.keys():
        ours, its = own[name].astype(np.float64), given[name].astype(np.float64)
        if ours.shape != its.shape or ours.shape != case.expected.shape or np.array_equal(ours, its):
            continue
        said, was = (_source(case, terms, sums, x) for x in (its, ours))
        if said is None or was == said:
            continue
        moved = theirs[name].astype(np.float64) - outputs[name]
        sentence = f"{name} is given {said}, not {was or 'what it is given in the reference'}"
        yield _given(sentence, case.expected + moved)


def _source(case: Case, terms: Mapping[str, Floats], sums: Sums, what: Floats) -> str | None:
    """An array as a sum of at most two terms, in words."""
    for count in (1, 2):
        for factors in sums.of(what, count):
            total = np.asarray(sum(terms[name] for name in factors))
            if set(factors.values()) == {1.0} and case.ratio(total, what) <= ACCEPTANCE:
                return " + ".join(factors)
    return None


def _own_sum(
    case: Case, terms: Mapping[str, Floats], sums: Sums, theirs: Mapping[str, Floats]
) -> Iterator[Candidate]:
    """The port's own parts, summed with factors that are not those of the reference."""
    own, told = _factors(case, terms, sums), Sums(theirs).factors(case.seen)
    if own is None or told is None:
        return
    added = {name: told[name] - own[name] for name in own if name in told and told[name] != own[name]}
    if added:
        yield _given(_said(added, own), np.asarray(sum(a * theirs[name] for name, a in told.items())))
