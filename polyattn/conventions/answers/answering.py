"""What implementations return: one function of a call and of settings, and a value that shares what they share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from polyattn.conventions.answers.operands import OVER
from polyattn.conventions.answers.outputs import finished, merged_wrongly
from polyattn.conventions.answers.products import Products, in_groups, key_of, multiplied
from polyattn.conventions.answers.rounding import rounded, stage_of
from polyattn.conventions.answers.scores import Scores, scored
from polyattn.conventions.answers.weighing import kept_keys, weighed
from polyattn.conventions.call import Call
from polyattn.conventions.settings import CONTRACT, Settings
from polyattn.conventions.visible import at_rows, bias_of
from polyattn.truth.spec import Floats

__all__ = ["Answer", "Answers", "answer"]

_KEPT = 2**24  # numbers of products that are kept, at most


@dataclass(frozen=True)
class Answer:
    """What an implementation with some settings returns on some rows, and how much rounding may move it."""

    out: Floats  # (B, Hq, rows, E)
    condition: Floats  # likewise: |error| <= eta * u * condition
    rounded: Floats  # likewise, what half precision rounds: `polyattn.truth.definition.Judged`
    weights: Floats  # (B, Hq, rows, S)
    kv_values: Floats  # (B, Hkv or Hq, S, E)

    @property
    def values(self) -> Floats:
        """(B, Hq, S, E)"""
        return np.repeat(self.kv_values, self.weights.shape[1] // max(self.kv_values.shape[1], 1), axis=1)

    def moved(self, move: Callable[[Floats], Floats]) -> Answer:
        """The answer with the elements of its output moved."""
        return replace(self, out=move(self.out), condition=move(self.condition), rounded=move(self.rounded))

    def at(self, rows: Floats | None) -> Answer:
        """Of an answer on all rows, some."""
        if rows is None:
            return self
        by_row = self.weights.shape[2] == self.out.shape[2]
        weights = self.weights[:, :, rows] if by_row else self.weights
        return replace(self.moved(lambda x: x[:, :, rows]), weights=weights)


def answer(call: Call, settings: Settings = CONTRACT, rows: Floats | None = None) -> Answer:
    """What an implementation with these settings returns, on some query rows or on all."""
    return Answers(call, rows)(settings)


class Answers:
    """What implementations return for one call, on some query rows or on all: settings in, an `Answer` out.

    Products of query and key, which many settings have in common, are computed once and kept while there is room.
    """

    def __init__(self, call: Call, rows: Floats | None = None) -> None:
        if call.order is not None:
            rows = call.order if rows is None else call.order[rows]
            call = replace(call, order=None)
        self.call, self.rows = call, rows
        self._poisoned = not all(np.isfinite(x).all() for x in (call.q, call.k, call.v))
        self._v_size = np.abs(call.v)
        self._kept = OrderedDict[tuple[object, ...], Products]()
        self._held = 0

    def __call__(self, settings: Settings) -> Answer:
        every = settings.layout in OVER or settings.merge != "as stated"
        rows = None if every else self.rows
        found = self._attended(settings, rows)
        if (axis := OVER.get(settings.layout)) is not None:
            found = found.moved(lambda x: x.swapaxes(axis, 2))
        of = (found.out, found.condition, found.rounded)
        of = finished(*of, settings.output, self.call, slice(None) if rows is None else rows)
        found = replace(found, out=of[0], condition=of[1], rounded=of[2])
        if settings.merge != "as stated":
            found = found.moved(merged_wrongly)
        return found.at(self.rows) if every else found

    def _products(self, settings: Settings, rows: Floats | None) -> Products:
        key = (rows is None, *key_of(settings, self._poisoned))
        made = self._kept.pop(key, None)
        if made is None:
            made = multiplied(self.call, settings, rows, self._poisoned, self._v_size)
            self._held += made.numbers
            while self._held > _KEPT and self._kept:
                self._held -= self._kept.popitem(last=False)[1].numbers
        self._kept[key] = made  # the last one used is the last one
        return made

    def _attended(self, settings: Settings, rows: Floats | None) -> Answer:
        over_rows = settings.softmax == "queries"
        made = self._products(settings, None if over_rows else rows)
        here = np.arange(made.product.shape[2]) if rows is None or over_rows else rows
        call, kept = made.call, kept_keys(settings)
        scores = scored(call, settings, made, here)
        if kept != slice(None):
            scores = Scores(*(x[..., kept] for x in scores))
        w, spread = weighed(call, settings, scores, here)
        if over_rows and rows is not None:
            w, spread, here = w[:, :, rows], spread[:, :, rows], rows
        return _averaged(call, settings, made, w, spread, here, kept)


def _averaged(
    call: Call, settings: Settings, made: Products, w: Floats, spread: Floats, rows: Floats, kept: slice
) -> Answer:
    """The average of the values, and all that rounding does to it."""
    low, stage = stage_of(settings.precision)
    v, v_size = made.v[:, :, kept], made.v_size[:, :, kept]
    if settings.scale == "after the softmax":
        w, spread = call.scale * w, abs(call.scale) * spread
    bias = bias_of(call, settings) if settings.bias == "after the softmax" else None
    if bias is not None:
        added = at_rows(bias, rows)
        added = np.broadcast_to(added, (*added.shape[:3], made.v.shape[2]))[..., kept]
        w = w + added
        spread = spread + np.abs(w) + np.abs(added)
    if stage in ("weights", "operands", "second product", "throughout"):
        w, apart = rounded(w, low, made.most / 2 * spread)
        spread = spread + apart
    elif stage == "exponentials":
        w, spread = _exponentials(w, spread, low, made.most)
    if stage == "second product":
        v, _ = rounded(v, low)
    with np.errstate(invalid="ignore", over="ignore"):
        out = in_groups(w, v)
        rows_of = w.shape[2]
        sizes = in_groups(np.concatenate((spread, np.abs(w)), axis=2), v_size)
        condition, mass = sizes[:, :, :rows_of], sizes[:, :, rows_of:]
        if np.ndim(made.v_else):
            condition = condition + in_groups(np.abs(w), np.asarray(made.v_else)[:, :, kept])
        if call.added is not None:
            added = at_rows(call.added, rows)
            out, condition = out + added, condition + np.abs(added)
        return Answer(out, condition, (np.abs(out) + mass) / 2, w, v)


def _exponentials(w: Floats, spread: Floats, low: str, most: float) -> tuple[Floats, Floats]:
    """Weights whose numerators exp(s - max s) were rounded, and their sum was not."""
    top = np.abs(w).max(-1, keepdims=True, initial=0.0)
    top = np.where(top > 0, top, 1.0)
    e, apart = rounded(w / top, low, most / 2 * spread / top)
    return e * top, spread + np.asarray(apart) * top
