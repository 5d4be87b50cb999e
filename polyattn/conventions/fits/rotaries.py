"""How queries and keys were turned: another base, width, direction or factor, positions that are off, another scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.numbers import figure, pick, polish, solve
from polyattn.conventions.fits.probe import Change, Fit
from polyattn.conventions.fits.scalings import scalings, with_rotary
from polyattn.conventions.fits.turning import turned_by_other_tables
from polyattn.rotary import Linear, Proportional, Rotary, YaRN
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["rotaries", "turned_unasked"]

BASES = (
    10000.0,
    500000.0,
    1e6,
    160000.0,
    1000.0,
    100.0,
    5e6,
    1e7,
    8e6,
    150000.0,
    250000.0,
    640000.0,
    1e5,
    2e6,
    4e6,
    2.5e7,
    1e8,
    1e9,
)
MANY_BASES = np.unique([*BASES, *(m * 10.0**e for e in range(2, 9) for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8))])
FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 0.5, 0.25, 0.125, 1.5, 3.0)
FACTOR_GRID = np.geomspace(0.1, 40, 60)
REACH = 32  # positions by which queries may be off


def rotaries(evidence: Evidence) -> Iterator[Fit]:
    """Everything that one number or word changes in a rotary that was asked for."""
    rotary = evidence.call.rotary
    if rotary is None or evidence.settings.rotary != "as stated" or rotary.sections is not None:
        return
    for search in (_directions, scalings, _widths):
        found = list(evidence.first("rotary", search(evidence.call, rotary)))
        yield from found
        if found:
            return
    for fits in (_bases, _factors, _shifts):
        found = list(fits(evidence, rotary))
        yield from found
        if found:
            return


def turned_unasked(evidence: Evidence) -> Iterator[Fit]:
    """A rotary of another base than the usual one, which nobody asked for."""
    call = evidence.call
    if call.rotary is not None or call.q.shape[3] % 2 or evidence.settings.rotary != "as stated":
        return

    def proposals() -> Iterator[tuple[str, Change]]:
        for base in BASES:
            for interleaved, pairs in ((False, "half-split"), (True, "interleaved")):
                rotary = Rotary(base=base, interleaved=interleaved)
                words = f"rotary embedding applied ({pairs} pairs, base {base:g}), which nobody asked for"
                yield words, with_rotary(rotary)
        whole = call.q.shape[3]
        for width in dict.fromkeys(
            w for w in (whole // 2, whole // 4, 64, 32) if 0 < w < whole and w % 2 == 0
        ):
            for interleaved, pairs in ((False, "half-split"), (True, "interleaved")):
                words = f"rotary embedding applied to the first {width} entries ({pairs} pairs), which nobody asked for"
                yield words, with_rotary(Rotary(interleaved=interleaved, width=width))

    yield from evidence.first("rotary", proposals())


def _places(call: Call) -> tuple[Floats, Floats]:
    """The positions of queries and keys, as stated."""
    if call.positions is not None:
        return call.positions
    return np.arange(call.q.shape[2]) + call.offset, np.arange(call.k.shape[2])


def _directions(call: Call, rotary: Rotary) -> Iterator[tuple[str, Change]]:
    """Queries or keys turned by other multiples of their positions."""
    for (of_q, of_k), words in {
        (-1, -1): "rotary embedding turns the other way (the sine with the other sign)",
        (1, -1): "rotary embedding turns the keys the other way",
        (-1, 1): "rotary embedding turns the queries the other way",
        (0, 1): "rotary embedding applied to the keys alone",
        (1, 0): "rotary embedding applied to the queries alone",
        (2, 2): "rotary embedding applied twice",
        (1, 2): "rotary embedding applied twice to the keys (they were turned before the cache)",
        (2, 1): "rotary embedding applied twice to the queries",
    }.items():

        def change(call: Call, of_q: int = of_q, of_k: int = of_k) -> Call:
            q, k = _places(call)
            return replace(call, positions=(of_q * q, of_k * k))

        yield words, change
    yield (
        "rotary embedding with the tables of cos and sin of the other pairing (each angle stands where that has it)",
        turned_by_other_tables,
    )


def _widths(call: Call, rotary: Rotary) -> Iterator[tuple[str, Change]]:
    """Another part of the head turned, with frequencies of the part or of the whole."""
    whole = call.q.shape[3]
    stated = whole if rotary.width is None else rotary.width
    widths = sorted(range(2, whole + 1, 2), key=lambda w: (w not in (whole, whole // 2, whole // 4), -w))
    for w in widths:
        if w != stated:
            yield f"rotary width {w} instead of {stated}", with_rotary(replace(rotary, width=w))
    if rotary.scaling is None:
        for w in widths:
            if w < stated:
                words = f"the first {w // 2} of {stated // 2} pairs turned alone, frequencies as for all"
                yield words, with_rotary(replace(rotary, scaling=Proportional(w / stated)))


def _bases(evidence: Evidence, rotary: Rotary) -> Iterator[Fit]:
    """Another base."""
    call, probe = evidence.call, evidence.raw
    if isinstance(rotary.scaling, YaRN) and rotary.base <= 1:
        return

    def with_base(c: Call, log: float) -> Call:
        return replace(c, rotary=replace(rotary, base=float(np.exp(np.clip(log, 0.1, 30)))))

    found = solve(
        lambda x: probe.residual(with_base(probe.call, float(x[0]))).reshape(1, -1), np.log(MANY_BASES)
    )
    if not found.found[0]:
        return
    log, doubt = polish(lambda y: evidence.whole.residual(with_base(call, float(y))), float(found.values[0]))
    if not doubt < 0.1:
        return
    base = float(np.exp(log))
    named = pick(base, doubt * base, [(float(b), "") for b in (*BASES, *MANY_BASES)])
    for value in ([named[0]] if named else []) + [base]:
        words = f"rotary base {figure(value, 0.0 if named else doubt * base)} instead of {rotary.base:g}"
        fit = list(evidence.fit("rotary", words, replace(call, rotary=replace(rotary, base=value))))
        if fit:
            yield from fit
            return


def _factors(evidence: Evidence, rotary: Rotary) -> Iterator[Fit]:
    """Positions times a number."""
    call, probe = evidence.call, evidence.raw
    if rotary.scaling is not None:
        return

    def divided(c: Call, f: float) -> Call:
        return replace(c, rotary=replace(rotary, scaling=Linear(float(np.clip(f, 1e-3, 1e3)))))

    grid = np.unique([*FACTOR_GRID, *FACTORS])
    found = solve(lambda x: probe.residual(divided(probe.call, float(x[0]))).reshape(1, -1), grid)
    if not found.found[0]:
        return
    f, doubt = polish(lambda y: evidence.whole.residual(divided(call, float(y))), float(found.values[0]))
    if not doubt < 0.1 * f:
        return
    named = pick(f, doubt, [(x, "") for x in FACTORS])
    for value in ([named[0]] if named else []) + [f]:
        words = f"rotary positions divided by {figure(value, 0.0 if named else doubt)}"
        fit = list(evidence.fit("rotary", words, divided(call, value)))
        if fit:
            yield from fit
            return


def _shifts(evidence: Evidence, rotary: Rotary) -> Iterator[Fit]:
    """Positions of the queries off by a number, of all items or of each."""
    call = evidence.call
    batch, _, length, keys = call.shape
    steps = sorted(range(-REACH, REACH + 1), key=lambda n: (abs(n), n))[1:]
    steps += sorted(
        {-call.offset, length, -length, keys, -keys, keys - length - call.offset} - set(steps) - {0}
    )
    if call.mask is not None:  # what padding an item has
        hidden = np.unique((~call.mask.any((1, 2))).sum(-1))
        steps += [int(sign * n) for n in hidden if n > REACH for sign in (1, -1)]

    def late(c: Call, n: Floats | int) -> Call:
        q, k = _places(c)
        return replace(c, positions=(q + n, k))

    item = evidence.worst[0][0]
    for n in steps:
        if not evidence.raw.explained(late(evidence.raw.call, n)):
            continue
        found = list(evidence.fit("rotary", f"rotary positions of the queries off by {n:+d}", late(call, n)))
        if not found and batch > 1:
            each = {item: n}
            for b in range(batch):
                each.setdefault(b, _of_item(evidence, b, late, [0, n, *steps]))
            off = np.array([each[b] for b in range(batch)])[:, None]
            listed = ", ".join(f"{x:+d}" for x in off[:8, 0]) + (", ..." if batch > 8 else "")
            found = list(
                evidence.fit(
                    "rotary", f"rotary positions of the queries off by {listed} in the items", late(call, off)
                )
            )
        if found:
            yield from found
            return


def _of_item(evidence: Evidence, item: int, late: Any, steps: list[int]) -> int:
    """The first number by which the positions of an item may be off."""
    if not (evidence.by_row[item] > ACCEPTANCE).any():
        return 0
    head = int(np.argmax((evidence.by_row[item] > ACCEPTANCE).sum(-1)))
    probe = evidence.cut([item], [head], evidence.telling(item, head), turn=False)
    return next((n for n in steps if probe.explained(late(probe.call, n))), 0)
