"""What was added to the scores: a bias times a number or of other heads, and slopes of ALiBi."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.numbers import Numbers, figure, pick, polish, solve
from polyattn.conventions.fits.probe import Fit
from polyattn.conventions.fits.readings import factor_readings
from polyattn.mods import alibi_slopes
from polyattn.truth.spec import Floats

__all__ = ["alibis", "bias_factors", "bias_places"]

FACTORS = np.array([-2.0, -1.0, -0.5, -0.1, 0.0, 0.03, 0.125, 0.25, 0.5, 0.8, 1.25, 2.0, 4.0, 8.0, 16.0])
SLOPES = np.array([-1.0, -0.25, -0.06, -0.015, -0.003, 0.0, 0.003, 0.015, 0.06, 0.25, 1.0])
NAMES = {"bias": "bias", "shift": "what the score modification adds"}


def _terms(call: Call) -> list[tuple[str, str]]:
    """The terms of the scores and their names, but ALiBi, which has fits of its own."""
    return [(name, what) for name, what in NAMES.items() if name == "bias" or _slopes(call)[0] is None]


def times(x: Floats, factor: Floats | float) -> Floats:
    """A bias times a factor, its -inf as they are."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(x), x * factor, x)


def bias_factors(evidence: Evidence) -> Iterator[Fit]:
    """A factor on the bias, or on what a score modification adds."""
    call, probe, whole = evidence.call, evidence.probe, evidence.whole
    for name, what in _terms(call):
        stated, cut = getattr(call, name), getattr(probe.call, name)
        if stated is None or (name == "bias" and evidence.settings.bias != "as stated"):
            continue

        def changed(c: Call, x: float, name: str = name) -> Call:
            other: dict[str, Any] = {name: times(getattr(c, name), x)}
            return replace(c, **other)

        if not np.any(cut[np.isfinite(cut)]):
            continue
        found = solve(lambda x: probe.residual(changed(probe.call, float(x[0]))).reshape(1, -1), FACTORS)
        if not found.found[0]:
            continue
        x, doubt = polish(lambda y: whole.residual(changed(whole.call, float(y))), float(found.values[0]))
        if abs(x) < doubt or abs(x - 1) < doubt:  # left out, or as stated: others say so
            continue
        readings = [(2.0, "added twice"), (-1.0, "subtracted"), (call.scale, "multiplied by the scale too")]
        readings += [(call.scale**-1, "divided by the scale"), *factor_readings(call)]
        named = pick(x, doubt, readings)
        for value, words in ((named[0], f": {named[1]}") if named else (x, ""), (x, "")):
            fit = list(evidence.fit(name, f"{what} x {figure(value, doubt)}{words}", changed(call, value)))
            if fit:
                yield from fit
                break


def bias_places(evidence: Evidence) -> Iterator[Fit]:
    """The bias with its axes turned, moved or taken of other heads or items."""
    call = evidence.call
    for name, what in _terms(call):
        x = getattr(call, name)
        if x is None:
            continue
        for words, other in _moved(x, call):
            changed: dict[str, Any] = {name: other}
            if np.array_equal(other, x) or not _explained(evidence, replace(call, **changed)):
                continue
            yield from evidence.fit(name, f"{what} {words}", replace(call, **changed))


def _explained(evidence: Evidence, call: Call) -> bool:
    item, head = evidence.worst[0]
    if not evidence.by_heads:
        return True
    return evidence.probe.explained(evidence.cut_call(call, [item], [head], evidence.probe.rows))


def _moved(x: Floats, call: Call) -> Iterator[tuple[str, Floats]]:
    """Ways to take a bias wrongly, as words and the bias that is then added."""
    if x.shape[2] == x.shape[3] > 1:
        yield "transposed", x.swapaxes(-1, -2)
    if x.shape[1] > 1:
        yield "with heads in reverse order", x[:, ::-1]
        yield "of the first head for all heads", np.broadcast_to(x[:, :1], x.shape)
        for n in (1, -1):
            yield f"of the head {'before' if n > 0 else 'after'}", np.roll(x, n, 1)
    if x.shape[0] > 1:
        yield "of the first item for all items", np.broadcast_to(x[:1], x.shape)
        yield "of another item", np.roll(x, 1, 0)
    for axis, along in ((2, "rows"), (3, "keys")):
        if x.shape[axis] > 1:
            yield f"in reverse order along the {along}", np.flip(x, axis)
            for n in (1, -1, 2, -2):
                yield f"moved by {n:+d} along the {along}", np.roll(x, n, axis)
            if axis == 2 and call.offset:
                yield (
                    f"moved by {call.offset:+d} along the rows, the query offset",
                    np.roll(x, call.offset, axis),
                )


# ALiBi


def _distances(call: Call) -> dict[str, Floats]:
    at, key = np.arange(call.shape[2])[:, None] + call.offset, np.arange(call.shape[3])[None, :]
    signed = (at - key).astype(float)
    found = {"i - j": signed, "|i - j|": np.abs(signed)}
    if not call.is_causal:
        found["max(j - i, 0), of later keys alone,"] = np.maximum(-signed, 0.0)
        found["max(i - j, 0), of earlier keys alone,"] = np.maximum(signed, 0.0)
    if call.offset:
        found["|i - j| of rows counted from 0, without the offset,"] = np.abs(signed - call.offset)
    return found


def alibis(evidence: Evidence) -> Iterator[Fit]:
    """Slopes of each head, of a bias that falls with the distance, in place of those stated or beside what is stated."""
    call = evidence.call
    if not evidence.by_heads or call.shape[3] < 3:
        return
    stated, told = _slopes(call)
    for kind, distance in _distances(call).items():
        if not _sloping(evidence, distance, [evidence.worst[0][1]], stated).found.all():
            continue
        found = _sloping(evidence, distance, list(range(call.shape[1])), stated)
        if not found.found.all():
            continue
        for words, slopes in _read(found.values, found.doubts, stated, told, kind):
            rest: Any = 0.0 if stated is not None or call.shift is None else call.shift
            shift = rest - slopes[None, :, None, None] * distance
            fit = list(evidence.fit("shift", words, replace(call, shift=shift), numbers=len(slopes)))
            if fit:
                yield from fit
                return


def _sloping(evidence: Evidence, distance: Floats, heads: list[int], stated: Floats | None) -> Numbers:
    """The slopes of some heads, in place of ALiBi that was stated, or beside what else is added to the scores."""
    item, head = evidence.worst[0]
    probe = evidence.cut([item], heads, evidence.telling(item, head))
    rest: Any = 0.0 if stated is not None or probe.call.shift is None else probe.call.shift

    def residual(x: Floats) -> Floats:
        shift = rest - x[None, :, None, None] * distance
        return probe.residual(replace(probe.call, shift=shift))[0].reshape(len(heads), -1)

    return solve(residual, SLOPES, len(heads))


def _slopes(call: Call) -> tuple[Floats | None, str]:
    """The slopes of the call's score modification and the distance they multiply, if it is ALiBi and nothing else."""
    if call.shift is None:
        return None, ""
    shift = np.broadcast_to(call.shift, call.shape)[0]
    for kind, distance in _distances(call).items():
        slopes = -np.sum(shift * distance, (1, 2)) / max(float(np.sum(distance**2)), 1e-300)
        if np.allclose(shift, -slopes[:, None, None] * distance, rtol=1e-6, atol=1e-9):
            return slopes, kind
    return None, ""


def _read(
    x: Floats, doubt: Floats, stated: Floats | None, told: str, kind: str
) -> Iterator[tuple[str, Floats]]:
    """What the slopes may be, with what they then are."""

    def agree(other: Floats) -> bool:
        return bool((np.abs(other - x) <= np.maximum(doubt, 1e-12)).all())

    heads = len(x)
    listed = ", ".join(f"{v:.4g}" for v in x[:8]) + (", ..." if heads > 8 else "")
    rules = {
        "the rule for {} heads": np.array(alibi_slopes(heads)),
        "2^(-8 h / {})": 2.0 ** (-8 * np.arange(1, heads + 1) / heads),
        "2^(-8 h / {}) from h = 0": 2.0 ** (-8 * np.arange(heads) / heads),
    }
    for more in sorted({2 ** (heads - 1).bit_length(), 2 * heads, 4 * heads} - {heads}):
        slopes = np.array(alibi_slopes(more))
        rules[f"the first of the rule for {more} heads"] = slopes[:heads]
        rules[f"the last of the rule for {more} heads"] = slopes[-heads:]
    if stated is None:
        for rule, slopes in rules.items():
            if agree(slopes):
                yield (
                    f"ALiBi, which nobody asked for: slopes by {rule.format(heads)}, distance {kind}",
                    slopes,
                )
        if (np.abs(x) > doubt).any():
            yield f"a bias that falls with the distance {kind}, which nobody asked for: slopes {listed}", x
        return
    if kind != told and agree(stated):
        yield f"ALiBi with distance {kind} instead of {told}", stated
    changes = {
        "in reverse order": stated[::-1],
        "with the other sign: it grows with the distance": -stated,
        "of the head before": np.roll(stated, 1),
        "of the next head": np.roll(stated, -1),
        "of the first head for all": np.full(heads, stated[0]),
    }
    beside = "" if kind == told else f", distance {kind} instead of {told}"
    for words, slopes in changes.items():
        if agree(slopes):
            yield f"slopes of ALiBi {words}{beside}", slopes
    weight = stated**2 / np.maximum(doubt, 1e-12) ** 2
    factor = float(np.sum(weight * x / np.where(stated == 0, 1, stated)) / max(weight.sum(), 1e-300))
    width = float(2 / np.sqrt(max(weight.sum(), 1e-300)))
    if agree(stated * factor):
        near = pick(
            factor,
            width,
            [(0.0, ""), *((v, "") for n in range(1, 65) for v in (float(n), 1 / n, n**-0.5, n**0.5))],
        )
        if near and abs(near[0] - 1) > width:
            yield f"slopes of ALiBi x {figure(near[0], width)}{beside}", stated * near[0]
    for rule, slopes in rules.items():
        if agree(slopes):
            yield f"slopes of ALiBi by {rule.format(heads)}{beside}", slopes
    if agree(stated * factor):
        yield f"slopes of ALiBi x {figure(factor, width)}{beside}", stated * factor
    yield f"other slopes of ALiBi: {listed}{beside}", x
