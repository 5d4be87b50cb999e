"""What the product of query and key was multiplied by: one number, one for each head, one for each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.numbers import Numbers, figure, pick, polish, solve
from polyattn.conventions.fits.probe import Fit
from polyattn.conventions.fits.readings import (
    LENGTHS,
    factor_readings,
    scale_readings,
    stated_scale,
    width_readings,
)
from polyattn.truth.spec import Floats

__all__ = ["scales"]

GRID = np.geomspace(1 / 80, 80, 25)
SHORT = range(2, 128)  # lengths of training that are shorter than any model's
DIVISORS = 129  # integers by which scores may have been divided


def scales(evidence: Evidence) -> Iterator[Fit]:
    """The scale, of everything or of each head; else of each row."""
    call, probe = evidence.call, evidence.probe
    if evidence.settings.scale != "as stated" or call.temperature is not None:
        return

    def residual(x: Floats) -> Floats:
        return probe.residual(replace(probe.call, scale=probe.call.scale * x[0])).reshape(1, -1)

    one = solve(residual, GRID)
    if not one.found[0]:
        one = solve(residual, np.array([-1.0]))
    if one.found[0]:
        found = list(_one(evidence, float(one.values[0])))
        yield from found or (*_by(evidence, 1), *_by(evidence, 0))
        return
    if len(evidence.rows) > 1:
        yield from _by_row(evidence)


def _one(evidence: Evidence, x: float) -> Iterator[Fit]:
    """One factor: as it reads, or else the number alone."""
    call, whole = evidence.call, evidence.whole
    better, less = polish(lambda y: whole.residual(replace(whole.call, scale=call.scale * y)), x)
    if math.isinf(less):
        return
    for value, words in _read(call, better, less):
        fit = list(evidence.fit("scale", words, replace(call, scale=value)))
        if fit:
            yield from fit
            return


def _read(call: Call, x: float, doubt: float) -> Iterator[tuple[float, str]]:
    """Scales that a factor may stand for, with their sentences; the last is the number itself."""
    said, scale = f"scale x {figure(x, doubt)}", call.scale
    width = doubt * abs(scale)
    if (named := pick(x * scale, width, scale_readings(call))) is not None:
        yield named[0], f"{said}: {named[1]}"
    if (named := pick(x, doubt, factor_readings(call))) is not None:
        yield named[0] * scale, f"{said}: {named[1]}"
    if (named := pick(x, doubt, ((float(n), str(n)) for n in range(2, DIVISORS)), family=True)) is not None:
        yield named[0] * scale, f"{said}: multiplied by {named[1]}"
    if (named := pick(x, doubt, ((1 / n, str(n)) for n in range(2, DIVISORS)), family=True)) is not None:
        yield named[0] * scale, f"{said}: divided by {named[1]}"
    if (named := pick(x * scale, width, width_readings(call), family=True)) is not None:
        yield named[0], f"{said}: {named[1]}"
    yield x * scale, f"{said}: {x * scale:.6g} instead of {stated_scale(scale)}"


def _by(evidence: Evidence, axis: int) -> Iterator[Fit]:
    """A factor for each item (axis 0) or head (axis 1)."""
    n = evidence.call.shape[axis]
    if n < 2 or not evidence.by_heads:
        return
    item, head = evidence.worst[0]
    rows = evidence.telling(item, head)
    items, heads = (list(range(n)), [head]) if axis == 0 else ([item], list(range(n)))
    probe = evidence.cut(items, heads, rows)

    def residual(x: Floats) -> Floats:
        shape = (n, 1, 1, 1) if axis == 0 else (1, n, 1, 1)
        return np.moveaxis(
            probe.residual(replace(probe.call, temperature=x.reshape(shape))), axis, 0
        ).reshape(n, -1)

    found = solve(residual, GRID, n)
    if not found.found.all():
        return
    x = found.values
    shape = (n, 1, 1, 1) if axis == 0 else (1, n, 1, 1)
    doubt = float(np.max(found.doubts))
    listed = ", ".join(figure(float(v), doubt) for v in x[:8]) + (", ..." if n > 8 else "")
    which = "item" if axis == 0 else "head"
    call = evidence.call
    if axis == 0:
        for words, exact in _by_length(evidence):
            if (np.abs(exact.ravel() - x) <= found.doubts).all():
                fit = list(
                    evidence.fit(
                        "scale", f"scale of every item x {listed}: {words}", replace(call, temperature=exact)
                    )
                )
                if fit:
                    yield from fit
                    return
    yield from evidence.fit(
        "scale", f"scale of every {which} x {listed}", replace(call, temperature=x.reshape(shape)), numbers=n
    )


def _by_length(evidence: Evidence) -> Iterator[tuple[str, Floats]]:
    """Factors of an item that follow from how many keys its padding leaves."""
    mask = evidence.call.mask
    if mask is None or mask.shape[0] == 1:
        return
    count = mask.any((1, 2)).sum(-1).reshape(-1, 1, 1, 1).astype(float)
    if (count < 2).any():
        return
    yield "the logarithm of its length", np.log(count)
    for n in LENGTHS:
        yield f"the logarithm of its length over ln {n}", np.log(count) / math.log(n)


def _by_row(evidence: Evidence) -> Iterator[Fit]:
    """A factor for each query row, alike in all heads."""
    call, rows = evidence.call, evidence.rows
    item, head = evidence.worst[0]
    some = evidence.telling(item, head, 16)
    probe = evidence.cut([item], [head], some)
    if not evidence.by_heads or len(some) < 3:
        return

    def residual(x: Floats) -> Floats:
        warmth = np.ones((1, 1, call.shape[2], 1))
        warmth[0, 0, rows[some], 0] = x
        return probe.residual(replace(probe.call, temperature=warmth))[0, 0]

    found = solve(residual, GRID, len(some))
    known = found.found & (found.doubts < 0.1 * np.abs(found.values))
    if not found.found.all() or known.sum() < 3:
        return
    for words, warmth in _formulas(evidence, found, rows[some], known):
        fit = list(evidence.fit("scale", words, replace(call, temperature=warmth.reshape(1, 1, -1, 1))))
        if fit:
            yield from fit
            return


def _formulas(
    evidence: Evidence, found: Numbers, rows: Floats, known: Floats
) -> Iterator[tuple[str, Floats]]:
    """Factors of all rows, by a formula that gives those that were found: c g(n), or 1 + c ln(1 + floor(n / F))."""
    call = evidence.call
    n = np.maximum(np.arange(call.shape[2]) + call.offset + 1.0, 1.0)  # position, counted from 1
    x, doubt, here = found.values[known], found.doubts[known], n[rows][known]

    def agree(theirs: Floats) -> bool:
        return bool((np.abs(theirs - x) <= doubt).all())

    def constant(g: Floats) -> tuple[float, float] | None:
        told = g > 0
        if told.sum() < 3:
            return None
        weight = (g[told] / doubt[told]) ** 2
        c = float(np.sum(weight * x[told] / g[told]) / weight.sum())
        return c, float(1 / np.sqrt(weight.sum()))

    for T in LENGTHS:
        for least, said in ((0.0, ""), (1.0, "max(1, ")):
            if agree(np.maximum(np.log(here) / math.log(T), least)):
                close = ")" if least else ""
                yield (
                    f"scale of row n x {said}ln n / ln {T}{close}: grows with the logarithm of the position",
                    np.maximum(np.log(n) / math.log(T), least),
                )
    powers: dict[str, Callable[[Floats], Floats]] = {
        "ln n": np.log,
        "ln(n + 1)": np.log1p,
        "sqrt(n)": np.sqrt,
        "n": lambda n: n,
        "1/sqrt(n)": lambda n: n**-0.5,
        "1/n": lambda n: 1 / n,
    }
    for said, g in powers.items():
        if (fitted := constant(g(here))) is not None and agree(fitted[0] * g(here)):
            c, width = fitted
            exact = pick(c, width * 2, [(1.0, ""), (1 / math.log(2), "")])
            c = exact[0] if exact else c
            yield f"scale of row n x {figure(c)} {said}", c * g(n)
    above = known.copy()
    above[known] = x - 1 > doubt
    above &= n[rows] > 1  # where its logarithm tells anything
    if above.sum() >= 3:  # the rows at which the logarithm has outgrown 1
        log = np.log(n)
        told, size = log[rows][above], found.doubts[above]
        weight = (told / size) ** 2
        c = float(np.sum(weight * found.values[above] / told) / weight.sum())
        width = float(2 / np.sqrt(weight.sum()))
        exact = pick(1 / c, width / c**2, [(math.log(T), f"ln {T}") for T in SHORT])
        c = 1 / exact[0] if exact else c
        if agree(np.maximum(c * np.log(here), 1.0)):
            said = f"ln n / {exact[1]}" if exact else f"{figure(c, width)} ln n"
            yield (
                f"scale of row n x max(1, {said}): grows with the logarithm of the position",
                np.maximum(c * log, 1.0),
            )
    for F in (2**i for i in range(1, 14)):
        steps = np.log1p(np.floor(here / F))
        if (fitted := constant(np.where(steps > 0, steps, 0))) is None:
            continue
        told = steps > 0
        weight = (steps[told] / doubt[told]) ** 2
        c = float(np.sum(weight * (x[told] - 1) / steps[told]) / weight.sum())
        if agree(1 + c * steps):
            exact = pick(c, float(2 / np.sqrt(weight.sum())), [(0.1, ""), (1.0, "")])
            c = exact[0] if exact else c
            yield (
                f"scale of row n x {figure(c)} ln(floor(n / {F}) + 1) + 1: attention temperature of Llama 4",
                1 + c * np.log1p(np.floor(n / F)),
            )
