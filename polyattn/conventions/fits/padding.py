"""Which keys each item has: padding on the other side, of other lengths, of other items; first or last keys missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.probe import Fit
from polyattn.conventions.fits.ranges import Ranges, masks_as_stated, stated_ranges
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["padding"]

Part = tuple[int, int]  # keys lo to hi - 1
MOST = 64  # items that are looked at


def padding(evidence: Evidence) -> Iterator[Fit]:
    """A range of keys for each item that is wrong, whatever its mask says."""
    call = evidence.call
    if not masks_as_stated(evidence) or call.shape[3] < 2 or call.shape[0] > MOST:
        return
    stated = _stated(call)
    if stated is None:
        return
    wrong = [b for b in range(call.shape[0]) if (evidence.by_row[b] > ACCEPTANCE).any()]
    found = dict[int, list[Part]]()
    for b in wrong:
        found[b] = _parts(evidence, b, stated[b])
        if not found[b]:
            return
    for words, parts in _hypotheses(evidence, stated, found):
        seen = np.stack([_inside(call, parts.get(b, stated[b])) for b in range(call.shape[0])])[:, None, None]
        same = len({parts.get(b, stated[b]) for b in range(call.shape[0])}) == 1
        field = "keys" if call.mask is None and same else "mask"
        fit = list(evidence.masking(field, words, replace(call, mask=seen[:1] if same else seen)))
        if fit:
            yield from fit
            return


def _inside(call: Call, part: Part) -> Floats:
    key = np.arange(call.shape[3])
    return (key >= part[0]) & (key < part[1])


def _stated(call: Call) -> list[Part] | None:
    """The range of keys of every item, if its mask is one for all rows and heads."""
    batch, keys = call.shape[0], call.shape[3]
    if call.mask is None:
        return [(0, keys)] * batch
    mask = call.mask
    if mask.shape[2] > 1 and (mask == mask[:, :, :1]).all():
        mask = mask[:, :, :1]
    if mask.shape[1] != 1 or mask.shape[2] != 1 or mask.shape[3] != keys:
        return None
    found = []
    for row in np.broadcast_to(mask, (batch, 1, 1, keys))[:, 0, 0]:
        (seen,) = np.nonzero(row)
        part = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
        if len(seen) != part[1] - part[0]:
            return None
        found.append(part)
    return found


def _parts(evidence: Evidence, item: int, stated: Part) -> list[Part]:
    """Ranges that explain an item: with one end as stated, with one end free, mirrored; the nearest to the stated first."""
    call = evidence.call
    head = int(np.argmax((evidence.by_row[item] > ACCEPTANCE).sum(-1)))
    ranges = Ranges.of(evidence, replace(call, mask=None), item, head, evidence.telling(item, head, 8))
    keys = call.shape[3]
    n = np.arange(keys + 1)
    pairs = [np.stack([np.full(n.shape, lo), n], -1) for lo in {stated[0], 0}]
    pairs += [np.stack([n, np.full(n.shape, hi)], -1) for hi in {stated[1], keys}]
    pairs += [np.stack([n, n + stated[1] - stated[0]], -1)]

    def span(at: int, part: Floats) -> tuple[Floats, Floats, int]:
        lo, hi = stated_ranges(call, at)
        return np.maximum(part[:, 0], lo), np.minimum(part[:, 1], hi), 0

    parts, worst = ranges.survivors(span, np.unique(np.concatenate(pairs), axis=0))
    away = np.abs(parts - np.array(stated)).sum(-1)
    return [(int(lo), int(hi)) for lo, hi in parts[np.lexsort((away, np.round(worst)))]]


def _hypotheses(
    evidence: Evidence, stated: list[Part], found: dict[int, list[Part]]
) -> Iterator[tuple[str, dict[int, Part]]]:
    """What the ranges have in common, as a sentence; at last the ranges themselves."""
    keys = evidence.call.shape[3]

    if evidence.call.mask is None:
        common = set.intersection(*(set(parts) for parts in found.values()))
        for lo, hi in sorted(common, key=lambda part: part[0] + keys - part[1]):
            if lo == 0 or hi == keys:
                end, n = ("last", keys - hi) if lo == 0 else ("first", lo)
                yield f"the {end} {'key' if n == 1 else f'{n} keys'} missing", dict.fromkeys(found, (lo, hi))
                break
    else:
        yield from _of_padding(stated, found, keys)
    parts = {b: ranges[0] for b, ranges in found.items()}
    listed = "; ".join(
        f"item {b} sees keys {lo} to {hi - 1} instead of {stated[b][0]} to {stated[b][1] - 1}"
        for b, (lo, hi) in list(parts.items())[:4]
    )
    yield listed + ("; ..." if len(parts) > 4 else ""), parts


def _of_padding(
    stated: list[Part], found: dict[int, list[Part]], keys: int
) -> Iterator[tuple[str, dict[int, Part]]]:
    def fits(parts: dict[int, Part]) -> bool:
        return all(parts[b] in found[b] for b in found)

    mirrored = {b: (keys - stated[b][1], keys - stated[b][0]) for b in found}
    if fits(mirrored):
        sides = ("left", "right") if all(stated[b][0] == 0 for b in found) else ("right", "left")
        yield f"padding hidden on the {sides[0]} instead of the {sides[1]}", mirrored
    ignored = dict.fromkeys(found, (0, keys))
    which = ", ".join(map(str, found))
    if fits(ignored):
        yield f"padding ignored in item{'s' * (len(found) > 1)} {which}", ignored
    # Items that are as stated are not said to be off.
    where = f" in item{'s' * (len(found) > 1)} {which}" if len(found) < len(stated) else ""
    near = sorted(range(-keys, keys + 1), key=abs)
    for end in (1, 0):
        for n in near:
            moved = {b: (stated[b][0] + n * (1 - end), stated[b][1] + n * end) for b in found}
            if n and fits(moved):
                more = n if end else -n
                side = "last" if end else "first"
                yield (
                    f"padding off by {abs(n)}: {abs(n)} key{'s' * (abs(n) > 1)} {'more' if more > 0 else 'less'} seen at the {side} end{where}",
                    moved,
                )
                break
    batch = len(stated)
    for n in range(1, batch):
        rolled = {b: stated[(b + n) % batch] for b in found}
        if fits(rolled):
            yield f"padding of another item: item b has that of item b + {n} of {batch}", rolled
    for b, part in enumerate(stated):
        if fits(dict.fromkeys(found, part)):
            yield f"padding of item {b} in every item", dict.fromkeys(found, part)
