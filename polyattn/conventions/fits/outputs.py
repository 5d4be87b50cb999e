"""What happened to the output after the average: a factor, something added, a share of weight that went nowhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.heads import of_each_head
from polyattn.conventions.fits.numbers import DOUBT, figure, pick, solve
from polyattn.conventions.fits.probe import Fit
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["additions", "gains", "lost_weight"]

RATES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)  # of dropout
LEVELS = np.linspace(-16, 16, 17)  # of a sink


def gains(evidence: Evidence) -> Iterator[Fit]:
    """The output times a number: everywhere, by head or by item."""
    call = evidence.call
    if not evidence.by_heads:
        return
    for axes, shape in (((0, 1, 2, 3), (1, 1, 1, 1)), ((0, 2, 3), (1, -1, 1, 1)), ((1, 2, 3), (-1, 1, 1, 1))):
        c, doubt = _gain(evidence, axes)
        if c is None or (c.size == 1 and len(axes) == 3):
            continue
        cs, width = c.reshape(shape), float(doubt.max())
        if c.size == 1:
            listed, read = figure(float(c[0]), width), pick(float(c[0]), width, _gains(evidence))
            said = f"output x {listed}" + (f": {read[1]}" if read else "")
            c = c if read is None else np.array([read[0]])
            cs = c.reshape(shape)
        else:
            listed = ", ".join(figure(float(x), width) for x in c[:8]) + (", ..." if c.size > 8 else "")
            said = f"output of every {'head' if shape[1] == -1 else 'item'} x {listed}"
        changed, settings = (
            of_each_head(call, evidence.settings) if shape[1] == -1 else (call, evidence.settings)
        )
        found = list(
            evidence.fit("output", said, replace(changed, v=changed.v * cs), settings, numbers=c.size)
        )
        if found:
            yield from found
            return


def _gain(evidence: Evidence, axes: tuple[int, ...]) -> tuple[Floats | None, Floats]:
    """The best factors along the axes and how far they may be off; None where nothing tells them."""
    out, base = evidence.seen.out, evidence.base.out
    with np.errstate(all="ignore"):
        weight = np.where(evidence.trusted, evidence.seen.unit(evidence.base) ** -2.0, 0.0)
        good = np.isfinite(out) & np.isfinite(base) & np.isfinite(weight)
        weight, out, base = (np.where(good, x, 0.0) for x in (weight, out, base))
        size = np.sum(weight * base**2, axes)
        c = np.sum(weight * base * out, axes) / size
        doubt = DOUBT / np.sqrt(size)
    return (c.reshape(-1) if np.isfinite(c).all() else None), doubt.reshape(-1)


def _gains(evidence: Evidence) -> Iterator[tuple[float, str]]:
    _, heads, _, keys = evidence.call.shape
    width, group = evidence.call.q.shape[3], heads // evidence.call.k.shape[1]
    for p in RATES:
        yield 1 / (1 - p), f"1 / (1 - {p}), the factor of dropout at rate {p}"
        yield 1 - p, f"1 - {p}, as dropout at rate {p} that scales at evaluation"
    yield evidence.call.scale, "the scale, applied to the output"
    yield -1.0, "the sign"
    for n, what in (
        (width, "head width"),
        (heads, "number of heads"),
        (group, "heads of a group"),
        (keys, "keys"),
    ):
        if n > 1:
            for power, words in ((1.0, "{}"), (-1.0, "1/{}"), (0.5, "sqrt({})"), (-0.5, "1/sqrt({})")):
                yield n**power, f"{words.format(n)} ({what})"


def additions(evidence: Evidence) -> Iterator[Fit]:
    """A number, a vector of each head, or the query, added to the output."""
    call = evidence.call
    if not evidence.by_heads or not (
        np.isfinite(evidence.seen.out).all() and np.isfinite(evidence.base.out).all()
    ):
        return
    left = np.where(evidence.trusted, evidence.seen.out - evidence.base.out, np.nan)
    with np.errstate(all="ignore"):
        number = float(np.nanmedian(left))
        doubt = 4 * float(np.median(evidence.seen.unit(evidence.base)))
    if not math.isfinite(number):
        return
    found = list[Fit]()
    if abs(number) > doubt / ACCEPTANCE:
        number = float(np.nanmean(left)) if np.nanstd(left) < doubt else number
        read = pick(number, doubt / 8, ((round(number, n), "") for n in range(5)))
        number = read[0] if read else number
        found = list(
            evidence.fit(
                "output",
                f"{figure(number)} added to the output",
                _with(evidence, np.full((1, 1, 1, 1), number)),
            )
        )
    if not found and call.q.shape[3] == left.shape[3]:
        query = call.q[:, :, evidence.rows]
        for sign, words in ((1.0, "added to"), (-1.0, "subtracted from")):
            if np.nanmedian(np.abs(left - sign * query)) <= doubt:
                found += evidence.fit(
                    "output",
                    f"query {words} the output, as a residual connection",
                    _with(evidence, sign * call.q),
                )
    if not found and left.shape[0] * left.shape[2] >= 8:
        mean = np.nan_to_num(np.nanmean(left, (0, 2), keepdims=True))
        found = list(evidence.fit("output", _vector(mean, doubt), _with(evidence, mean), numbers=mean.size))
    yield from found


def _with(evidence: Evidence, added: Floats) -> Call:
    return replace(evidence.call, added=added)


def _vector(mean: Floats, doubt: float) -> str:
    size = figure(float(np.sqrt(np.mean(mean**2))), doubt)
    return f"a vector added to the output of each head, the same in all rows (rms {size}): a bias of the values too many or too few"


def lost_weight(evidence: Evidence) -> Iterator[Fit]:
    """Weights that sum to less than they should, or more: sinks with other values, keys of zeros."""
    call, settings = evidence.call, evidence.settings
    if not evidence.by_heads or settings.softmax not in ("keys", "base 2") or settings.sinks != "as stated":
        return
    if not _proportional(evidence):
        return
    item, head = evidence.worst[0]
    heads = call.shape[1]
    probe = evidence.cut([item], list(range(heads)), evidence.telling(item, head))

    def residual(x: Floats) -> Floats:
        return probe.residual(replace(probe.call, sinks=x))[0].reshape(heads, -1)

    found = solve(residual, LEVELS, heads)
    if not found.found.all() or not (found.doubts < 1).any():
        return
    level = float(np.average(found.values, weights=np.minimum(found.doubts, 1e6) ** -2.0))
    base = math.log(2.0) if settings.softmax == "base 2" else 1.0
    for words, sinks in _sinks(evidence, found.values, found.doubts, level, base):
        fit = list(evidence.fit("sinks", words, replace(call, sinks=sinks), numbers=len(set(sinks.tolist()))))
        if fit:
            yield from fit
            return


def _sinks(
    evidence: Evidence, x: Floats, doubt: Floats, level: float, base: float
) -> Iterator[tuple[str, Floats]]:
    stated, heads = evidence.call.sinks, len(x)
    same = bool((np.abs(x - level) <= doubt).all())
    if stated is None:
        count = math.exp(min(level * base, 50.0))
        n = round(count)
        if same and n >= 1 and abs(count - n) < 0.2:
            many = "1 key of zeros" if n == 1 else f"{n} keys of zeros"
            yield (
                f"{many} appended, or {n} added to the denominator of the softmax",
                np.full(heads, math.log(n) / base),
            )
        if same:
            yield f"a sink of {figure(level)} in the softmax, which nobody asked for", np.full(heads, level)
        yield "sinks in the softmax, which nobody asked for: " + _list(x), x
        return
    for words, other in (
        ("in reverse order", stated[::-1]),
        ("of the next head", np.roll(stated, -1)),
        ("of the head before", np.roll(stated, 1)),
    ):
        if (np.abs(other - x) <= doubt).all():
            yield f"sinks {words}", other
    for words, other in (
        ("times the scale", stated * evidence.call.scale),
        ("as exp(sink) of logarithms: log of them", np.log(np.maximum(stated, 1e-300))),
        ("exponentiated before the softmax", np.exp(np.minimum(stated, 700))),
    ):
        if (np.abs(other - x) <= doubt).all():
            yield f"sinks {words}", other
    shift = float(np.median(x - stated))
    if (np.abs(stated + shift - x) <= doubt).all():
        yield f"sinks + {figure(shift)}", stated + shift
    with np.errstate(all="ignore"):
        factor = float(np.median(x / stated))
    usual = (2.0, 0.5, 0.25, evidence.call.scale, 1 / evidence.call.scale, math.log(2), 1 / math.log(2))
    if math.isfinite(factor):
        width = float(np.min(doubt / np.maximum(np.abs(stated), 1e-300)))
        near = pick(factor, width, [(n, "") for n in usual])
        factor = near[0] if near else factor
    if math.isfinite(factor) and (np.abs(stated * factor - x) <= doubt).all():
        yield f"sinks x {figure(factor)}", stated * factor
    yield f"other sinks: {_list(x)} instead of {_list(stated)}", x


def _list(x: Floats) -> str:
    return ", ".join(f"{v:.3g}" for v in x[:8]) + (", ..." if len(x) > 8 else "")


def _proportional(evidence: Evidence) -> bool:
    """Whether every observed row is a multiple of the stated one, as far as rounding tells."""
    out, base = evidence.seen.out, evidence.base.out
    if out.shape[-1] < 2:
        return False
    with np.errstate(all="ignore"):
        c = np.sum(out * base, -1, keepdims=True) / np.sum(base * base, -1, keepdims=True)
        error = np.abs(out - c * base) / (np.maximum(1.0, np.abs(c)) * evidence.seen.unit(evidence.base))
    error = np.where(evidence.trusted & (base != 0), error, 0.0)
    return bool(np.mean(error > 2 * ACCEPTANCE) < 0.02)
