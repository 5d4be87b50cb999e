"""Heads, items and rows in another order, and query heads that read other kv heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.conventions.answers import answer
from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.heads import of_each_head
from polyattn.conventions.fits.matching import matched, permutation_words
from polyattn.conventions.fits.probe import Fit
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["head_orders", "item_orders", "kv_maps", "row_orders"]

MOST = 64  # heads or items that are compared with each other
SOME = 4  # rows that are compared
PAIRS = 128  # heads of a probe that pairs query heads with kv heads
FEW = 3  # rows at an end that an answer moved by some rows leaves to chance
PARTS = {"query": "q", "key": "k", "value": "v"}


def _pairs(evidence: Evidence, axis: int) -> Floats:
    """(n, n) bool: whether head or item i, as observed, may be head or item j as stated."""
    out, base = evidence.seen.out, evidence.base.out
    rows = np.unique(np.linspace(0, out.shape[2] - 1, SOME).astype(int))
    unit, trusted = evidence.seen.unit(evidence.base), evidence.trusted
    seen, base, unit, trusted = (np.moveaxis(x[:, :, rows], axis, 0) for x in (out, base, unit, trusted))
    n = len(seen)
    allowed = np.empty((n, n), bool)
    with np.errstate(all="ignore"):
        for j in range(n):
            wrong = (
                ~(np.abs(seen - base[j]) <= ACCEPTANCE * unit[j])
                & ~(np.isnan(seen) & np.isnan(base[j]))
                & trusted
            )
            allowed[:, j] = ~wrong.reshape(n, -1).any(-1)
    return allowed


def head_orders(evidence: Evidence) -> Iterator[Fit]:
    """The heads of the output in another order."""
    call = evidence.call
    if not evidence.by_heads or not 1 < call.shape[1] <= MOST:
        return
    p = matched(_pairs(evidence, 1))
    if p is None or (p == np.arange(len(p))).all():
        return
    each, settings = of_each_head(call, evidence.settings)
    other = _taken(each, 1, p)
    yield from evidence.fit("merge", f"heads of the output {permutation_words(p, 'head')}", other, settings)


def item_orders(evidence: Evidence) -> Iterator[Fit]:
    """The items of the output in another order, or queries, keys or values of other items."""
    call = evidence.call
    batch = call.shape[0]
    if not evidence.by_heads or not 1 < batch <= MOST:
        return
    p = matched(_pairs(evidence, 0))
    if p is not None and (p != np.arange(batch)).any():
        yield from evidence.fit(
            "batch", f"items of the output {permutation_words(p, 'item')}", _taken(call, 0, p)
        )
        return
    for names in (("key",), ("value",), ("key", "value"), ("query",), ("mask",), ("bias",)):
        fields = [PARTS.get(name, name) for name in names]
        if any(getattr(call, f) is None or getattr(call, f).shape[0] != batch for f in fields):
            continue
        found = _read_items(evidence, fields)
        if found is not None:
            what = " and ".join(names)
            how = (
                f"of item {found[0]} in every item"
                if (found == found[0]).all()
                else permutation_words(found, "item")
            )
            yield from evidence.fit("batch", f"{what} of other items: {how}", _exchanged(call, fields, found))


def _exchanged(call: Call, fields: list[str], p: Floats) -> Call:
    moved: dict[str, Any] = {f: getattr(call, f)[p] for f in fields}
    return replace(call, **moved)


def _read_items(evidence: Evidence, fields: list[str]) -> Floats | None:
    """The item that each item reads those arrays of, if all are explained so; its own where that explains it."""
    call, batch = evidence.call, evidence.call.shape[0]
    found = np.arange(batch)
    for item in sorted(range(batch), key=lambda b: b != evidence.worst[0][0]):
        wrong = (evidence.by_row[item] > ACCEPTANCE).sum(-1)
        if not wrong.any():
            continue
        head = int(np.argmax(wrong))
        probe = evidence.cut([item], [head], evidence.telling(item, head), turn=False)
        for other in range(batch):
            p = np.arange(batch)
            p[item] = other
            if other != item and probe.explained(
                evidence.cut_call(_exchanged(call, fields, p), [item], [head])
            ):
                found[item] = other
                break
        else:
            return None
    return found


def _taken(call: Call, axis: int, p: Floats) -> Call:
    """The call with its heads or items in the order p."""
    n = call.shape[axis]
    names = ("q", "k", "v", "mask", "shift", "bias", "temperature", "added")
    moved: dict[str, Any] = {}
    for name in names:
        x = getattr(call, name)
        if x is not None and x.shape[axis] == n:
            moved[name] = np.take(x, p, axis)
    if axis == 1 and call.sinks is not None:
        moved["sinks"] = call.sinks[p]
    return replace(call, **moved)


def kv_maps(evidence: Evidence) -> Iterator[Fit]:
    """Query heads that read other kv heads: their keys and values, or only one of the two."""
    call = evidence.call
    heads, kv_heads = call.shape[1], call.k.shape[1]
    if (
        not evidence.by_heads
        or not 1 < kv_heads <= MOST
        or heads > MOST
        or evidence.settings.heads != "grouped"
    ):
        return
    own = np.arange(heads) // (heads // kv_heads)
    item, worst = evidence.worst[0]
    rows = evidence.telling(item, worst, SOME)
    for names in (("key", "value"), ("key",), ("value",)):
        p = own.copy()
        for head in sorted(range(heads), key=lambda h: h != worst):
            if not (evidence.by_row[item, head] > ACCEPTANCE).any():
                continue
            allowed = _readable(evidence, item, head, rows, names)
            if not allowed.any():
                break
            nearest = np.flatnonzero(allowed)
            p[head] = nearest[np.argmin(np.abs(nearest - own[head]))]
        else:
            if (p == own).all():
                continue
            which = own if "key" not in names else p, own if "value" not in names else p
            listed = ", ".join(map(str, p[:16])) + (", ..." if heads > 16 else "")
            what = " and ".join(f"{name}s" for name in names)
            how = permutation_words(p, "head") if heads == kv_heads and len(set(p)) == heads else listed
            found = list(
                evidence.fit(
                    "heads",
                    f"query heads read {what} of other kv heads: {how}",
                    replace(call, k=call.k[:, which[0]], v=call.v[:, which[1]]),
                )
            )
            yield from found
            if found:
                return


def _readable(evidence: Evidence, item: int, head: int, rows: Floats, names: tuple[str, ...]) -> Floats:
    """(Hkv,) bool: the kv heads that explain a query head of an item."""
    call, n = evidence.call, evidence.call.k.shape[1]
    allowed = np.zeros(n, bool)
    for start in range(0, n, PAIRS):
        some = list(range(start, min(start + PAIRS, n)))
        probe = evidence.cut([item], [head] * len(some), rows, turn=False)
        others = {PARTS[name]: getattr(call, PARTS[name])[[item]][:, some] for name in names}
        left = np.abs(probe.residual(replace(probe.call, **others)))
        allowed[some] = left.max((0, 2, 3)) <= ACCEPTANCE
    return allowed


def row_orders(evidence: Evidence) -> Iterator[Fit]:
    """The rows of the output in another order, or moved."""
    call, rows = evidence.call, evidence.rows
    length = call.shape[2]
    if not evidence.by_heads or length < 3:
        return
    item, head = evidence.worst[0]
    all_rows = np.arange(length)
    cut = evidence.cut_call(call, [item], [head], all_rows)
    some = evidence.telling(item, head)
    probe = evidence.cut([item], [head], some)
    with np.errstate(all="ignore"):
        base = answer(cut, probe.settings, all_rows)
        unit = evidence.seen.unit(base)[0, 0]
        error = np.abs(probe.out[0, 0][:, None] - base.out[0, 0]) / unit
    trusted = probe.trusted[0, 0][:, None]
    fits = ~((~(error <= ACCEPTANCE)) & trusted).any(-1)  # (some, L)
    for words, order in _orders(length, rows[some], fits):
        if fits[np.arange(len(some)), order[rows[some]]].mean() > 0.5:
            found = list(evidence.fit("rows", words, replace(call, order=order), but=FEW))
            if found:
                yield from found
                return


def _orders(length: int, rows: Floats, fits: Floats) -> Iterator[tuple[str, Floats]]:
    """Orders of the rows that are tried: reversed, moved by what the evidence says, interleaved."""
    i = np.arange(length)
    yield "rows of the output in reverse order", i[::-1].copy()
    steps = [
        int(other - row) for row, which in zip(rows, fits, strict=True) for other in np.flatnonzero(which)[:8]
    ]
    for n in sorted(set(steps), key=lambda n: (-steps.count(n), abs(n)))[:8]:
        if n:
            yield (
                f"rows of the output moved by {-n}: row i holds the answer of row i {'+' if n > 0 else '-'} {abs(n)}",
                (i + n) % length,
            )
    for a in range(2, length):
        if length % a == 0:
            yield (
                f"rows of the output as {a} x {length // a}, transposed",
                i.reshape(a, length // a).T.ravel().copy(),
            )
    if length % 2 == 0:
        halves = np.stack([i[: length // 2], i[length // 2 :][::-1]], -1).ravel()
        yield "rows of the output in zigzag order, one from each end", halves
        yield "rows of the output in zigzag order, one to each end", np.argsort(halves)
