"""The backward pass of a problem, head by head, as it is and as mistakes make it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from polyattn.parity.meaning import Meaning
from polyattn.truth.forward import Forward, forward
from polyattn.truth.judged import Judged
from polyattn.truth.spec import Floats, Spec
from polyattn.truth.tiles import Place, cut

__all__ = ["RIGHT", "BackwardPass", "Head", "Mistake"]


class Head(NamedTuple):
    """What the backward pass of one head is made of."""

    tile: Forward
    do: Floats
    w: Floats
    unmasked: Floats  # the weights, had nothing been hidden, over the same sums
    dp: Floats
    delta: Floats


class Mistake(NamedTuple):
    """What a program takes for dS, or for P in dv; in words that follow the name of a gradient."""

    words: str
    matrix: Callable[[Head], Floats]
    transposed: bool = False
    above: bool = True  # whether the gradient that comes from above is used


def _of_scores(h: Head) -> Floats:
    return h.tile.slope * h.w * (h.dp - h.delta)


def _of_values(h: Head) -> Floats:
    return h.w * h.tile.keep


#: What is right.
RIGHT = {"dq": Mistake("", _of_scores), "dk": Mistake("", _of_scores), "dv": Mistake("", _of_values)}


@dataclass(frozen=True)
class BackwardPass:
    """What was meant, and the gradient that comes from above, (B, Hq, L, E)."""

    meaning: Meaning
    cotangent: Floats

    @property
    def spec(self) -> Spec:
        """The problem of query and key as they meet."""
        return self.meaning.spec

    @property
    def group(self) -> int:
        """How many query heads share a key."""
        return self.spec.shape[1] // max(self.spec.k.shape[1], 1)

    def part(self, item: int, kv_head: int) -> BackwardPass:
        """The pass of one batch item and of the query heads of one kv head, in float64."""
        one, heads = slice(item, item + 1), slice(kv_head * self.group, (kv_head + 1) * self.group)
        rows, kv = slice(0, self.spec.shape[2]), slice(kv_head, kv_head + 1)
        spec, scale = self.spec, self.spec.scale
        scores, query, key = (one, heads, rows), (one, heads), (one, kv)
        places = {
            **dict.fromkeys(("allowed", "shift", "bias", "keep"), scores),
            **dict.fromkeys(("q", "q_size"), query),
            **dict.fromkeys(("k", "v", "k_size"), key),
        }
        cuts: dict[str, Any] = {
            n: cut(getattr(spec, n), at) for n, at in places.items() if getattr(spec, n) is not None
        }
        sinks = None if spec.sinks is None else spec.sinks[heads]
        scale = scale if scale is None or np.ndim(scale) == 0 else np.asarray(scale)[heads]
        turnings = self.meaning.turnings
        if turnings is not None:
            turnings = (turnings[0].item(item), turnings[1].item(item))
        meaning = replace(
            self.meaning, spec=replace(spec, **cuts, sinks=sinks, scale=scale), turnings=turnings
        )
        return BackwardPass(meaning, self.cotangent[one, heads])

    def each(self, quantity: str, mistake: Mistake | None = None) -> Judged:
        """The gradient of every query head, (B, Hq, ., .), for what was given."""
        mistake = RIGHT[quantity] if mistake is None else mistake
        parts = [self._product(quantity, head, mistake) for head in self._heads(mistake.above)]
        batch, heads, _, _ = self.spec.shape
        found = Judged(
            *(np.concatenate(x).reshape(batch, heads, *x[0].shape[2:]) for x in zip(*parts, strict=True))
        )
        turnings = dict(zip(("dq", "dk"), self.meaning.turnings or (), strict=False))
        return turnings[quantity].judged(found) if quantity in turnings else found

    def shared(self, quantity: str, mistake: Mistake | None = None) -> Judged:
        """The same, summed over the query heads that share a key."""
        like = getattr(self.spec, quantity[1]).shape

        def share(x: Floats) -> Floats:
            batch, heads, *rest = x.shape
            x = x.reshape(batch, like[1], heads // like[1], *rest).sum(2)
            return x.sum(0, keepdims=True) if like[0] == 1 < batch else x

        return self.each(quantity, mistake).moved(share)

    def _product(self, quantity: str, head: Head, mistake: Mistake) -> tuple[Floats, ...]:
        """The product with K, Q or dO, and bounds on what rounding does to it, whatever the matrix."""
        q, k, v, q_size, k_size = head.tile.operands
        scale = head.tile.scale
        x, size = {"dq": (scale * k, abs(scale) * k_size), "dk": (scale * q, abs(scale) * q_size)}.get(
            quantity, (head.do, np.abs(head.do))
        )
        matrix = mistake.matrix(head)
        weights = np.where(matrix != 0, np.maximum(head.w, head.unmasked), head.w)
        terms = terms_size = np.ones_like(weights)
        if quantity != "dv":
            size_of_dp = np.abs(head.do) @ np.abs(v).mT
            of_output = (np.abs(head.do) * np.abs(head.tile.out.value)).sum(-1, keepdims=True)
            terms = np.abs(head.dp) + (head.w * np.abs(head.dp)).sum(-1, keepdims=True) + of_output
            terms_size = size_of_dp + (head.w * size_of_dp).sum(-1, keepdims=True)
        sabs = head.tile.raw_sabs
        spread = 1 + sabs + (head.w * sabs).sum(-1, keepdims=True)
        rounded = np.maximum(weights * terms, np.abs(matrix))
        condition = np.maximum(weights * terms_size * spread, np.abs(matrix))
        floor = terms * (weights > 0)
        turned = (quantity != "dq") != mistake.transposed
        parts = (part.mT if turned else part for part in (matrix, condition, floor, rounded))
        value, *bounds = (part @ y for part, y in zip(parts, (x, size, size, size), strict=True))
        return value, bounds[0], bounds[1], (np.abs(value) + bounds[2]) / 2

    def _heads(self, above: bool) -> Iterator[Head]:
        batch, heads, rows, _ = self.spec.shape
        with np.errstate(all="ignore"):
            for b in range(batch):
                for h in range(heads):
                    yield self._head(Place(slice(b, b + 1), slice(h, h + 1), slice(0, rows)), above)

    def _head(self, place: Place, above: bool) -> Head:
        stages: dict[str, Floats] = {}
        tile = forward(self.spec, place, np.float64, lambda n, x: stages.__setitem__(n, x.value), False)
        do = cut(self.cotangent, place)
        do = do if above else np.ones_like(do)
        unhidden = next(stages[name] for name in ("biased", "after softcap", "scores") if name in stages)
        if self.spec.bias is None and self.spec.shift is not None:
            unhidden = unhidden + cut(self.spec.shift, place)
        # exp of a score that the true sum does not hold may be anything; beyond 1e30 it is nothing to explain.
        total = np.logaddexp(stages["lse"][..., None], tile.sink)
        unmasked = np.where(np.isfinite(total), np.exp(np.minimum(unhidden - total, 69.0)), 0.0)
        w = tile.weighing.weights
        dp = tile.keep * (do @ tile.operands.v.mT)
        return Head(tile, do, w, unmasked, dp, (w * dp).sum(-1, keepdims=True))
