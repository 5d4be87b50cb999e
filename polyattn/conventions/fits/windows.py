"""Causality and windows of other sizes: shifted, wider, narrower, in blocks, with a prefix, asked for or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.probe import Fit
from polyattn.conventions.fits.ranges import Ranges, Span, free, masks_as_stated, stated_ranges
from polyattn.truth.spec import Floats

__all__ = ["windows"]

WIDEST = 512  # keys up to which both sides of a window are sought together
TRIED = 3  # numbers of a family that are judged
FIRSTS = 65  # first keys that may be seen beside a window


class _Family(NamedTuple):
    """One way to see a range of keys, with a number."""

    field: str
    numbers: Floats  # (n,) or (n, 2)
    span: Span
    sentence: Callable[[Floats], str]
    call: Callable[[Floats], Call]


def windows(evidence: Evidence) -> Iterator[Fit]:
    """Every family of ranges, the simplest first; the first that explains the output."""
    call = evidence.call
    if not masks_as_stated(evidence) or call.shape[3] < 2:
        return
    item, head = evidence.worst[0]
    ranges = Ranges.of(evidence, free(call), item, head, evidence.telling(item, head, 8))
    for family in _families(call):
        numbers, worst = ranges.survivors(family.span, family.numbers)
        for i in np.argsort(worst, kind="stable")[:TRIED]:
            found = list(evidence.masking(family.field, family.sentence(numbers[i]), family.call(numbers[i])))
            if found:
                yield from found
                return


def _families(call: Call) -> Iterator[_Family]:
    yield from _ends(call)
    yield from _sides(call)
    yield from _blocks(call)
    yield from _prefixes(call)


def _mask(call: Call, more: Floats) -> Floats:
    return more if call.mask is None else call.mask & more


def _places(call: Call) -> tuple[Floats, Floats]:
    """Positions of rows and keys, which broadcast to the scores."""
    return (np.arange(call.shape[2]) + call.offset)[:, None], np.arange(call.shape[3])[None, :]


def _from_0(call: Call) -> Floats:
    return np.arange(call.shape[3] + 1)


def _ends(call: Call) -> Iterator[_Family]:
    """The last key that a row sees: n after its own."""
    keys = call.shape[3]
    left = None if call.window is None else call.window[0]
    corners = {-call.offset: "top-left", keys - call.shape[2] - call.offset: "bottom-right"}

    def span(at: int, n: Floats) -> tuple[Floats, Floats, int]:
        return np.full(n.shape, stated_ranges(call, at)[0]), at + 1 + n, 0

    def said(number: Floats) -> str:
        n = int(number)
        if call.is_causal:
            sees = (
                f"a token sees {n} later ones"
                if n > 0
                else f"a token does not see itself and {-n - 1} before it"
                if n < -1
                else "a token does not see itself"
            )
            corner = f", aligned {corners[n]}" if n in corners else ""
            return f"causal mask shifted by {n:+d}{corner}: {sees}"
        if n == 0 or n in corners:
            corner = f", aligned {corners[n]}" if n else ""
            return f"causal mask, which nobody asked for{corner}"
        stated = call.window and call.window[1]
        instead = "nobody asked for a bound" if stated is None else f"instead of {stated}"
        return (
            f"window of {n} keys after a token, {instead}"
            if n > 0
            else f"causal mask, which nobody asked for, shifted by {n:+d}"
        )

    def taken(number: Floats) -> Call:
        n = int(number)
        if n == 0:
            return replace(call, is_causal=True, window=None if left is None else (left, None))
        return replace(call, is_causal=False, window=(left, n))

    numbers = np.arange(-keys, keys + 1)
    numbers = numbers[numbers != left] if call.is_causal and left else numbers  # a window on both sides
    numbers = numbers[np.argsort(np.abs(numbers), kind="stable")]
    yield _Family("causal", numbers, span, said, taken)


def _sides(call: Call) -> Iterator[_Family]:
    """The first key that a row sees, n before its own; both sides alike; both sides."""
    left, right = call.window or (None, None)

    def span_left(at: int, n: Floats) -> tuple[Floats, Floats, int]:
        return at - n, np.full(n.shape, stated_ranges(call, at)[1]), 0

    def said_left(n: Floats) -> str:
        stated = "which nobody asked for" if left is None else f"instead of {left}"
        return f"window of {n} keys before a token, {stated}"

    yield _Family(
        "window", _from_0(call), span_left, said_left, lambda n: replace(call, window=(int(n), right))
    )

    def span_both(at: int, n: Floats) -> tuple[Floats, Floats, int]:
        return at - n, at + n + 1, 0

    def asked() -> str:
        end = "causal" if call.is_causal else f"{'any number' if right is None else right} after"
        return (
            f"which nobody asked for; {end}"
            if call.window is None
            else f"instead of {'any number' if left is None else left} before, {end}"
        )

    yield _Family(
        "window",
        _from_0(call),
        span_both,
        lambda n: f"window of {n} keys on both sides of a token, {asked()}",
        lambda n: replace(call, is_causal=False, window=(int(n), int(n))),
    )
    if left is not None:

        def span_first(at: int, n: Floats) -> tuple[Floats, Floats, Floats]:
            lo, hi = stated_ranges(call, at)
            return np.full(n.shape, lo), np.full(n.shape, hi), np.minimum(n, hi)

        def seen_first(n: Floats) -> Call:
            at, key = _places(call)
            inside = (key >= at - left) | (key < n)
            return replace(
                call, window=None if right is None else (None, right), mask=_mask(call, inside[None, None])
            )

        yield _Family(
            "window",
            np.arange(1, FIRSTS),
            span_first,
            lambda n: f"the first {n} keys seen besides the window",
            seen_first,
        )
    if call.shape[3] <= WIDEST:
        n = np.arange(call.shape[3])
        pairs = np.stack([x.ravel() for x in np.meshgrid(n, n, indexing="ij")], -1)
        yield _Family(
            "window",
            pairs,
            lambda at, n: (at - n[:, 0], at + n[:, 1] + 1, 0),
            lambda n: f"window of {n[0]} keys before and {n[1]} after a token, {asked()}",
            lambda n: replace(call, is_causal=False, window=(int(n[0]), int(n[1]))),
        )


def _blocks(call: Call) -> Iterator[_Family]:
    """Blocks of c keys: a row sees its own, or its own and the one before."""
    bare = replace(call, window=None)
    keys = call.shape[3]
    instead = "" if call.window is None else " instead of the window"
    for before, words in ((0, "alone"), (1, "and in the one before")):

        def span(at: int, c: Floats, before: int = before) -> tuple[Floats, Floats, int]:
            block = at // c
            end = np.full(c.shape, at + 1) if call.is_causal else (block + 1) * c
            return (block - before) * c, end, 0

        def taken(c: Floats, before: int = before) -> Call:
            at, key = _places(call)
            mine, theirs = at // int(c), key // int(c)
            return replace(bare, mask=_mask(call, ((theirs >= mine - before) & (theirs <= mine))[None, None]))

        def said(c: Floats, words: str = words) -> str:
            return f"blocks of {c} keys{instead}: a token sees keys of its block {words}"

        yield _Family("window", np.arange(2, keys), span, said, taken)


def _prefixes(call: Call) -> Iterator[_Family]:
    """The first p keys seen by every row, causality or not."""
    if not call.is_causal:
        return

    def span(at: int, p: Floats) -> tuple[Floats, Floats, int]:
        lo, hi = stated_ranges(call, at)
        return np.full(p.shape, lo), np.maximum(hi, p), 0

    def taken(p: Floats) -> Call:
        at, key = _places(call)
        inside = (key <= at) | (key < p)
        return replace(call, is_causal=False, mask=_mask(call, inside[None, None]))

    yield _Family(
        "causal",
        np.arange(1, call.shape[3] + 1),
        span,
        lambda p: f"prefix of {p} keys, which every token sees, causal only after it",
        taken,
    )
