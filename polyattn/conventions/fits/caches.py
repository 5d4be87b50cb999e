"""Keys and values that are not those given: moved, stale, of zeros, of another item or head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn.conventions.answers import answer
from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.probe import Change, Fit
from polyattn.conventions.fits.ranges import ROOM, masks_as_stated
from polyattn.conventions.settings import CONTRACT
from polyattn.conventions.visible import allowed_keys
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["moved_keys", "other_keys"]

STEPS = 8  # by which keys may be rolled
OTHERS = 4  # items and heads that a key may come from
LONGEST = 4096  # keys up to which every one is tried


def moved_keys(evidence: Evidence) -> Iterator[Fit]:
    """Keys, values or both rolled or reversed along the sequence, against the mask and each other."""
    yield from evidence.first("keys", _moves(evidence.call.shape[3]))


def _rolled(n: int, axis: int) -> Callable[[Floats], Floats]:
    return lambda x: np.roll(x, n, axis)


def _moves(keys: int) -> Iterator[tuple[str, Change]]:
    which = {("k",): "keys", ("v",): "values", ("k", "v"): "keys and values", ("q",): "queries"}

    def change(names: tuple[str, ...], move: Callable[[Floats], Floats]) -> Change:
        def changed(call: Call) -> Call:
            moved: dict[str, Any] = {name: move(getattr(call, name)) for name in names}
            return replace(call, **moved)

        return changed

    for names, said in which.items():
        yield f"{said} in reverse order", change(names, lambda x: x[:, :, ::-1])
        for n in sorted(range(-STEPS, STEPS + 1), key=abs)[1:]:
            yield (
                f"{said} rolled by {n:+d} along the sequence",
                change(names, _rolled(n, 2)),
            )
    for n in (1, -1):
        places = "one later" if n > 0 else "one earlier"

        def off(call: Call, n: int = n) -> Call:
            at = (np.arange(call.q.shape[2]) + call.offset, np.arange(call.k.shape[2]))
            return replace(call, k=np.roll(call.k, n, 2), positions=(at[0], np.roll(at[1], n)))

        yield f"keys, already turned, {places} than their values", off


# Keys that come from elsewhere


@dataclass(frozen=True)
class _Beside:
    """Every key beside what may stand in its place: weights before they are normalised, for some rows of a head."""

    own: Floats  # (R, S)
    other: Floats
    sink: Floats  # (R, 1)
    v: Floats  # (S, E)
    w: Floats  # (S, E): the values in their place
    out: Floats  # (R, E)
    unit: Floats

    def places(self, names: tuple[str, ...]) -> dict[str, Floats]:
        """{pattern: (S,) bool}: where one key, all from there on, or all up to there, in place of its own, explains the rows."""
        weight = self.other if "k" in names else self.own
        value = self.w if "v" in names else self.v
        ok = {name: np.ones(len(value), bool) for name in ("one", "from", "to")}
        ok["from"][0] = ok["to"][-1] = False  # all of them: not a matter of places
        for i in range(len(self.out)):
            new, old = weight[i][:, None] * value, self.own[i][:, None] * self.v
            more, mass = new - old, weight[i] - self.own[i]
            total, weights = old.sum(0), self.own[i].sum() + self.sink[i]
            for name, change, change_mass in (
                ("one", more, mass),
                ("from", np.cumsum(more[::-1], 0)[::-1], np.cumsum(mass[::-1])[::-1]),
                ("to", np.cumsum(more, 0), np.cumsum(mass)),
            ):
                if not ok[name].any():
                    continue
                with np.errstate(all="ignore"):
                    result = (total + change) / (weights + change_mass)[:, None]
                    error = np.abs(self.out[i] - result) / self.unit[i]
                ok[name] &= (error <= ROOM * ACCEPTANCE).all(-1)
        return ok


def other_keys(evidence: Evidence) -> Iterator[Fit]:
    """One key, or all from or up to a place, that is another one: of zeros, the one before, of another item or head."""
    call = evidence.call
    if not masks_as_stated(evidence) or not 2 < call.shape[3] <= LONGEST:
        return
    item, head = evidence.worst[0]
    rows = evidence.telling(item, head)
    for what, source in _sources(call, item):
        beside = _beside(evidence, source, item, head, rows)
        for names, said in ((("k", "v"), "key and value"), (("v",), "value"), (("k",), "key")):
            for pattern, ok in beside.places(names).items():
                found = list(
                    _judged(evidence, what, source, names, said, pattern, np.flatnonzero(ok), item, head)
                )
                if found:
                    yield from found
                    return


def _judged(
    evidence: Evidence,
    what: str,
    source: Any,
    names: tuple[str, ...],
    said: str,
    pattern: str,
    places: Floats,
    item: int,
    head: int,
) -> Iterator[Fit]:
    """The places of a pattern, in every item and head, in the item, or in its head alone."""
    call = evidence.call
    keys = call.shape[3]
    kv_head = head // (call.shape[1] // call.k.shape[1])
    for place in (places if pattern != "from" else places[::-1])[:2]:
        where = (
            slice(place, place + 1)
            if pattern == "one"
            else slice(place, None)
            if pattern == "from"
            else slice(None, place + 1)
        )
        n = keys - place if pattern == "from" else place + 1
        which = (
            f"{said} {place}"
            if pattern == "one"
            else f"{said} of the {'last' if pattern == 'from' else 'first'} {'position' if n == 1 else f'{n} positions'}"
        )
        scopes = [(slice(None), slice(None), ""), (slice(item, item + 1), slice(None), f" in item {item}")]
        scopes.append(
            (slice(item, item + 1), slice(kv_head, kv_head + 1), f" in kv head {kv_head} of item {item}")
        )
        for items, heads, words in scopes:
            changed: dict[str, Any] = {}
            for name in names:
                x = getattr(call, name).copy()
                x[items, heads, where] = source(getattr(call, name))[items, heads, where]
                changed[name] = x
            found = list(evidence.fit("keys", f"{which}{words} replaced by {what}", replace(call, **changed)))
            if found:
                yield from found
                return


def _sources(call: Call, item: int) -> Iterator[tuple[str, Callable[[Floats], Floats]]]:
    """What may stand in place of a key or a value, of all of them at once."""
    yield "zeros", np.zeros_like
    yield "those of the position before (stale)", lambda x: np.roll(x, 1, 2)
    yield "those of the next position", lambda x: np.roll(x, -1, 2)
    yield "those of the first position", lambda x: np.broadcast_to(x[:, :, :1], x.shape)
    yield "those of the last position", lambda x: np.broadcast_to(x[:, :, -1:], x.shape)
    for n in range(1, min(call.shape[0], OTHERS + 1)):
        other = (item + n) % call.shape[0]
        yield (
            f"those of item {other}" if call.shape[0] == 2 else f"those of item b + {n} of {call.shape[0]}",
            _rolled(-n, 0),
        )
    for n in (1, -1)[: call.k.shape[1] - 1]:
        yield f"those of the {'next' if n > 0 else 'previous'} kv head", _rolled(-n, 1)


def _beside(
    evidence: Evidence, source: Callable[[Floats], Floats], item: int, head: int, rows: Floats
) -> _Beside:
    call = evidence.call
    probe = evidence.cut([item], [head], rows)
    other = evidence.cut_call(replace(call, k=source(call.k), v=source(call.v)), [item], [head], probe.rows)
    keys = call.shape[3]

    def twice(x: Floats | None) -> Floats | None:
        return None if x is None else np.concatenate((x, x), -1) if x.shape[3] == keys > 1 else x

    allowed = np.broadcast_to(
        allowed_keys(replace(probe.call, bias=None), CONTRACT, np.arange(call.shape[2])), probe.call.shape
    )
    both = replace(
        probe.call,
        k=np.concatenate((probe.call.k, other.k), 2),
        v=np.concatenate((probe.call.v, other.v), 2),
        mask=twice(allowed),
        is_causal=False,
        window=None,
        shift=twice(probe.call.shift),
        bias=twice(probe.call.bias),
    )
    with np.errstate(all="ignore"):
        found, stated = (
            answer(both, probe.settings, probe.rows),
            answer(probe.call, probe.settings, probe.rows),
        )
        unit = np.maximum(probe.unit(found), probe.unit(stated))[0, 0]
    w = np.nan_to_num(found.weights[0, 0])
    sink = np.maximum(1.0 - w.sum(-1, keepdims=True), 0.0)
    unit = np.where(probe.trusted[0, 0], unit, np.inf)
    v = found.values[0, 0]
    return _Beside(
        w[:, :keys], w[:, keys:], np.where(sink < 1e-12, 0.0, sink), v[:keys], v[keys:], probe.out[0, 0], unit
    )
