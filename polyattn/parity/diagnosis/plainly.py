"""Outputs that say at a glance what they are: nothing at all, one number, the values themselves, one head for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import CONTRACT
from polyattn.parity.diagnosis.case import REMAINS, Case, Explanation
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.seen import rms
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["plain_findings"]

_UNBIASED: dict[str, Any] = {"softcap": None, "shift": None, "bias": None, "sinks": None}
_UNMASKED: dict[str, Any] = {"mask": None, "is_causal": False, "window": None}


def plain_findings(case: Case) -> list[Finding]:
    """What the output plainly is, the first that fits; empty if it is nothing of the kind."""
    shown = case.seen.out[case.seen.counts]
    if (word := _one_number(shown)) is not None:
        return [Finding(CONTRACT, (word,), 0.0)]
    for what in (*_values(case.call), *_repeated(case)):
        case.tried += 1
        if (finding := case.finding(what)) is not None:
            return [finding]
    return []


def _one_number(shown: Floats) -> str | None:
    """What all numbers are."""
    if shown.size < 2:
        return None
    if np.isnan(shown).all():
        return "an output of NaN alone"
    first = shown.flat[0]
    if not (shown == first).all():
        return None
    return (
        "an output of zeros alone: nothing was computed, or written"
        if first == 0
        else f"an output of one number, {first:.4g}, everywhere"
    )


def _values(call: Call) -> Iterator[Explanation]:
    """The values as they are, or their mean."""
    flat = replace(call, scale=0.0, rotary=None, **_UNBIASED)
    masked = call.mask is not None or call.is_causal or call.window is not None
    if masked:
        yield _plain(flat, "the mean of the values that a row sees: all weights equal, scores not used")
    whole = (
        "the mean of all values: all weights equal, scores" + (" and mask" if masked else "") + " not used"
    )
    yield _plain(replace(flat, **_UNMASKED), whole)
    rows, keys = call.shape[2:]
    if rows == keys:
        own = np.eye(keys, dtype=bool)[None, None]
        yield _plain(
            replace(flat, **_UNMASKED | {"mask": own}),
            "the values themselves: every row returns the value of its own key",
        )


def _plain(call: Call, words: str) -> Explanation:
    return Explanation(call, CONTRACT, (words,))


def _repeated(case: Case) -> Iterator[Explanation]:
    """One head for all heads, or one batch item for all items."""
    call, (batch, heads, _, _) = case.call, case.call.shape
    group = heads // call.k.shape[1]
    for name, axis, count in (("head", 1, heads), ("batch item", 0, batch)):
        if count < 2 or not _alike(case, axis):
            continue
        for i in range(count):
            if np.take(case.ratio, i, axis).max(initial=0.0) <= ACCEPTANCE:
                where = np.zeros(count, int) + i
                repeated = _heads(call, where, group) if axis else _items(call, where)
                of_all = "every head" if axis else "every item"
                yield _plain(repeated, f"{name} {i} repeated for {of_all}")


def _alike(case: Case, axis: int) -> bool:
    """Whether what was seen is the same along an axis, to a small part of how wrong it is."""
    out = np.where(case.seen.counts, case.seen.out, np.nan)
    with np.errstate(all="ignore"):
        apart = out - np.take(out, [0], axis)
    apart = apart[~np.isnan(apart)]
    return rms(apart) <= REMAINS * case.before


def _heads(call: Call, which: Floats, group: int) -> Call:
    """The call with those query heads, and for each the kv head that it reads."""

    def of(x: Floats | None) -> Floats | None:
        return x if x is None or x.ndim < 3 or x.shape[-3] == 1 else np.take(x, which, -3)

    sinks = None if call.sinks is None else call.sinks[which]
    kv = which // group
    return replace(
        call, q=call.q[:, which], k=call.k[:, kv], v=call.v[:, kv], mask=of(call.mask), bias=of(call.bias),
        shift=of(call.shift), sinks=sinks,
    )  # fmt: skip


def _items(call: Call, which: Floats) -> Call:
    """The call with those batch items."""

    def of(x: Floats | None) -> Floats | None:
        return x if not isinstance(x, np.ndarray) or x.ndim < 4 or x.shape[0] == 1 else x[which]

    arrays: dict[str, Any] = {
        name: of(getattr(call, name)) for name in ("q", "k", "v", "mask", "bias", "shift")
    }
    offsets = None if call.offsets is None else tuple(call.offsets[i] for i in which)
    return replace(call, **arrays, offsets=offsets)
