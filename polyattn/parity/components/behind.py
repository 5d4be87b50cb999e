"""Why a block is wrong that ends with a norm: what is summed in front of it, residuals and embeddings.

The norm is one of the parts, "child:NAME", whose output is that of the block; its weight and bias are found from its
input and output, column by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from polyattn.parity.components.formula import Norm
from polyattn.parity.components.trial import Candidate, Case
from polyattn.parity.components.wiring import named, terms_of
from polyattn.truth.spec import Floats

__all__ = ["tiers"]

EPSILONS = (1e-12, 1e-5, 1e-6, 1e-3)
WIDEST = 16  # of so many terms at most are two tried at once
ROWS = 4  # so many tokens are needed to find a weight and a bias


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """One term too few or too many in front of the norm, then two; or the norm left out."""
    if not np.isfinite(case.seen).all():
        return
    for name, given in case.facts.children("input").items():
        out = case.facts.children().get(name)
        if (
            out is None
            or not given.shape == out.shape == case.expected.shape
            or not case.reproduces(out.astype(np.float64))
        ):
            continue
        s = given.astype(np.float64)
        norm = _norm(case, s)
        if norm is not None:
            terms = {n: t for n, t in terms_of(case, case.facts).items() if n != f"the output of {name}"}
            yield _sums(norm, name, s, terms, 1)
            yield _sums(norm, name, s, terms, 2)


def _norm(case: Case, s: Floats) -> Norm | None:
    """The norm that gives the output from its input, where there is one."""
    width = s.shape[-1]
    x, y = s.reshape(-1, width), case.expected.reshape(-1, width)
    if len(x) < ROWS:
        return None
    for centred in (True, False):
        for eps in EPSILONS:
            plain = Norm(eps, centred)(x)
            for with_bias in (True, False):
                mean_x, mean_y = (a.mean(0) if with_bias else np.zeros(width) for a in (plain, y))
                weight = ((plain - mean_x) * (y - mean_y)).sum(0) / ((plain - mean_x) ** 2).sum(0)
                norm = Norm(eps, centred, weight, mean_y - weight * mean_x)
                if case.reproduces(norm(s)):
                    return norm
    return None


def _sums(norm: Norm, name: str, s: Floats, terms: Mapping[str, Floats], count: int) -> Iterator[Candidate]:
    if count == 1:
        yield _given(f"{name} left out at the end", s)
    elif len(terms) > WIDEST:
        return
    for names in combinations(terms, count):
        for a in (-1.0, 1.0):
            said = " and ".join(f"{named(n)} {'missing' if a < 0 else 'added once more'}" for n in names)
            yield _given(
                f"{said}, in front of {name}", norm(s + a * np.asarray(sum(terms[n] for n in names)))
            )
    if count == 1:
        for n, t in terms.items():
            yield _given(f"{named(n)} added behind {name}, not in front of it", norm(s - t) + t)


def _given(said: str, out: Floats) -> Candidate:
    return Candidate(said, lambda case: out, rowwise=False)
