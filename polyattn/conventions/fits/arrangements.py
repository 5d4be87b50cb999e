"""Query, key and value laid out wrongly one at a time, packed in pairs, taken in turn, or of other query heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.matching import permutation_words
from polyattn.conventions.fits.probe import Fit
from polyattn.truth.spec import Floats

__all__ = ["arrangements"]

NAMES = {"q": "query", "k": "key", "v": "value"}
SOME = (("k",), ("v",), ("q",), ("k", "v"))  # all three together are listed causes


class _Arrangement(NamedTuple):
    field: str
    sentence: str
    taken: Callable[[Call], Call]


def arrangements(evidence: Evidence) -> Iterator[Fit]:
    """The first arrangement that explains what was observed; each is tried on the probe before."""
    settings = evidence.settings
    if not evidence.by_heads or settings.operands != "as stated" or settings.heads != "grouped":
        return
    item, head = evidence.worst[0]
    for field, sentence, taken in _all(evidence.call):
        other = taken(evidence.call)
        if evidence.raw.explained(evidence.cut_call(other, [item], [head])):
            found = list(evidence.fit(field, sentence, other))
            if found:
                yield from found
                return


def _all(call: Call) -> Iterator[_Arrangement]:
    yield from _splits(call)
    yield from _packings(call)
    yield from _in_turn(call)
    yield from _query_heads(call)


def _splits(call: Call) -> Iterator[_Arrangement]:
    """Heads taken out of (B, L, H D) wrongly, of some of the arrays and not of the others."""
    ways: dict[str, Callable[[Floats], Floats]] = {
        "(B, L, H D) viewed as (B, H, L, D) without a transpose": _untransposed,
        "(H D) read as (D H), heads interleaved": _interleaved,
    }
    for how, split in ways.items():
        for fields in SOME:
            if all(getattr(call, f).shape[1] > 1 for f in fields):
                what = " and ".join(NAMES[f] for f in fields)
                yield _Arrangement(
                    "layout", f"heads of the {what} alone split wrongly: {how}", _each(fields, split)
                )


def _each(fields: tuple[str, ...], f: Callable[[Floats], Floats]) -> Callable[[Call], Call]:
    def taken(call: Call) -> Call:
        moved: dict[str, Any] = {name: f(getattr(call, name)) for name in fields}
        return replace(call, **moved)

    return taken


def _untransposed(x: Floats) -> Floats:
    return x.swapaxes(1, 2).reshape(x.shape)


def _interleaved(x: Floats) -> Floats:
    b, h, n, d = x.shape
    return x.swapaxes(1, 2).reshape(b, n, d, h).transpose(0, 3, 1, 2)


def _packings(call: Call) -> Iterator[_Arrangement]:
    """Keys and values in one projection: as halves (2, Hkv, D), or per head (Hkv, 2, D)."""
    heads = call.k.shape[1]
    if heads < 2 or call.k.shape != call.v.shape:
        return
    places = np.arange(2 * heads)
    per_head = np.concatenate((places[0::2], places[1::2]))
    halves, each = "(2, Hkv, D), keys and then values", "per head (Hkv, 2, D)"
    for order, packed, split in (
        (per_head, halves, each),
        (np.argsort(per_head), each, halves),
    ):

        def taken(call: Call, order: Floats = order) -> Call:
            joined = np.concatenate((call.k, call.v), 1)[:, order]
            return replace(call, k=joined[:, :heads], v=joined[:, heads:])

        yield _Arrangement(
            "layout",
            f"fused projection of key and value split wrongly: packed as {packed}, and split as {split}",
            taken,
        )


def _in_turn(call: Call) -> Iterator[_Arrangement]:
    """All three taken for one another; two exchanged are listed causes."""
    if call.q.shape == call.k.shape == call.v.shape:
        for a, b, c in (("k", "v", "q"), ("v", "q", "k")):

            def taken(call: Call, a: str = a, b: str = b, c: str = c) -> Call:
                return replace(call, q=getattr(call, a), k=getattr(call, b), v=getattr(call, c))

            said = ", ".join(NAMES[x] for x in (a, b, c))
            yield _Arrangement("operands", f"query, key and value taken in the order {said}", taken)


def _query_heads(call: Call) -> Iterator[_Arrangement]:
    """Queries of other heads, masks and biases of their own."""
    n = call.q.shape[1]
    i = np.arange(n)
    for p in (i[::-1], np.roll(i, -1), np.roll(i, 1)) if n > 1 else ():

        def taken(call: Call, p: Floats = p) -> Call:
            return replace(call, q=call.q[:, p])

        yield _Arrangement("heads", f"heads of the query {permutation_words(p, 'head')}", taken)
