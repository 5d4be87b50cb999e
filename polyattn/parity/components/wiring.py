"""Why a block is wrong whose parts are right: its residuals, their factors, and what its parts were given.

Outputs of the parts are arrays named "child:NAME", and inputs "input:NAME", of the facts (in the reference) and, where
they are known, of the port (in the port).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from polyattn.parity.components.facts.record import Facts
from polyattn.parity.components.trial import FEW, Candidate, Case, factor_of
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["named", "terms_of", "tiers"]

MOST = 3  # terms that may differ at once
SIMPLE = (0.0, 1.0, -1.0, 2.0, 0.5, -2.0)


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """What is summed with another factor, one term at a time and then several; then what parts were given."""
    terms = terms_of(case, case.facts)
    if not terms or not np.isfinite(case.seen).all() or not np.isfinite(case.expected).all():
        return
    if np.count_nonzero(case.expected) < FEW * (len(terms) + MOST):  # too little to find factors from
        return
    theirs = terms if case.port is None else terms | terms_of(case, case.port)
    for count in range(1, MOST + 1):
        yield _sums(case, terms, count)
    yield _fed(case, terms)
    if theirs is not terms:
        yield _own_sum(case, terms, theirs)


def terms_of(case: Case, facts: Facts) -> dict[str, Floats]:
    """What may be summed: inputs and the outputs of parts, of the shape of the output."""
    found = {f"input {i}" if i else "the input": x for i, x in enumerate(case.inputs)}
    found |= {f"the output of {name}": x for name, x in facts.children().items()}
    fitting = {
        name: x.astype(np.float64)
        for name, x in found.items()
        if x.shape == case.expected.shape and x.dtype.kind == "f"
    }
    return {name: x for name, x in fitting.items() if np.isfinite(x).all() and x.any()}


def _sums(case: Case, terms: Mapping[str, Floats], count: int) -> Iterator[Candidate]:
    """seen = expected + a few terms, each with a factor."""
    own = _factors(case, terms, case.expected)
    difference = case.seen - case.expected
    for names in combinations(terms, count):
        factors = _solved(difference, [terms[name] for name in names])
        if factors is None:
            continue
        factors = [_simple(a) for a in factors]
        if not all(factors) or not np.isfinite(factors).all():
            continue
        added = sum(a * terms[name] for a, name in zip(factors, names, strict=True))
        said = _said(dict(zip(names, factors, strict=True)), own)
        yield Candidate(said, lambda case, added=added: case.expected + added, rowwise=False)  # type: ignore[misc]
    if count == 1 and (factor := factor_of(case)) is not None:
        yield Candidate(
            f"output multiplied by {_simple(factor):.6g}", lambda case: _simple(factor) * case.expected
        )


def _solved(target: Floats, terms: list[Floats]) -> list[float] | None:
    """Factors with which terms sum to a target, least squares; None where the terms depend on each other."""
    a = np.stack([t.ravel() for t in terms])
    size = np.sqrt((a * a).sum(1))
    if not size.all():
        return None
    a = a / size[:, None]
    gram = a @ a.T
    if not np.isfinite(gram).all() or np.linalg.cond(gram) > 1e8:
        return None
    return list(np.linalg.solve(gram, a @ target.ravel()) / size)


def _simple(a: float) -> float:
    """A factor, as the simple number that it is within rounding."""
    near = min((*SIMPLE, np.sqrt(2.0), np.sqrt(0.5)), key=lambda s: abs(s - a))
    return near if abs(near - a) < 1e-4 else float(a)


def _factors(case: Case, terms: Mapping[str, Floats], target: Floats) -> dict[str, float] | None:
    """The factors with which the reference sums its terms, if that is all it does."""
    factors = _solved(target, list(terms.values()))
    if factors is None:
        return None
    told = {name: _simple(a) for name, a in zip(terms, factors, strict=True)}
    total = sum(a * terms[name] for name, a in told.items())
    return told if case.ratio(np.asarray(total), target) <= ACCEPTANCE else None


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


def _fed(case: Case, terms: Mapping[str, Floats]) -> Iterator[Candidate]:
    """A part that was given something else: in parallel for one after the other, before the norm for behind it."""
    if case.port is None:
        return
    own, given = case.facts.children("input"), case.port.children("input")
    outputs, theirs = case.facts.children(), case.port.children()
    for name in own.keys() & given.keys() & outputs.keys() & theirs.keys():
        ours, its = own[name].astype(np.float64), given[name].astype(np.float64)
        if ours.shape != its.shape or ours.shape != case.expected.shape or np.array_equal(ours, its):
            continue
        said = _source(case, terms, its)
        if said is None or _source(case, terms, ours) == said:
            continue
        moved = theirs[name].astype(np.float64) - outputs[name]
        was = _source(case, terms, ours)
        sentence = f"{name} is given {said}, not {was or 'what it is given in the reference'}"
        yield Candidate(sentence, lambda case, moved=moved: case.expected + moved, rowwise=False)  # type: ignore[misc]


def _source(case: Case, terms: Mapping[str, Floats], what: Floats) -> str | None:
    """An array as a sum of at most two terms, in words."""
    for count in (1, 2):
        for names in combinations(terms, count):
            factors = _solved(what, [terms[name] for name in names])
            if factors is None or any(_simple(a) != 1.0 for a in factors):
                continue
            total = np.asarray(sum(terms[name] for name in names))
            if case.ratio(total, what) <= ACCEPTANCE:
                return " + ".join(names)
    return None


def _own_sum(case: Case, terms: Mapping[str, Floats], theirs: Mapping[str, Floats]) -> Iterator[Candidate]:
    """The port's own parts, summed with factors that are not those of the reference."""
    own = _factors(case, terms, case.expected)
    its = _solved(case.seen, list(theirs.values()))
    if own is None or its is None:
        return
    told = {name: _simple(a) for name, a in zip(theirs, its, strict=True)}
    added = {name: told[name] - own[name] for name in own if name in told and told[name] != own[name]}
    if added:
        total = np.asarray(sum(a * theirs[name] for name, a in told.items()))
        yield Candidate(_said(added, own), lambda case: total, rowwise=False)
