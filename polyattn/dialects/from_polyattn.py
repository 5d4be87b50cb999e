"""Arguments of `polyattn.attention` as a call in a foreign dialect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from operator import and_
from typing import Any

from polyattn import masks
from polyattn.arrays import Array, Backend
from polyattn.dialects.capabilities import CARRIED
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Record
from polyattn.dialects.words import Words, adding, spell
from polyattn.masks.algebra import And, Mask
from polyattn.masks.arbitrary import Filled
from polyattn.masks.documents import Segments
from polyattn.masks.relative import Window
from polyattn.mods import Compose, ScoreMod, Softcap
from polyattn.problem import Problem, pose, say

__all__ = ["express", "from_polyattn"]

Sides = tuple[int | None, int | None]


def from_polyattn(
    d: Record, query: Array, key: Array, value: Array, repair: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of a foreign call."""
    problem = pose(d.who("from_polyattn"), query, key, value, **options)
    if not problem.packed:
        return express(d, problem, repair)
    ends, key_ends = options["cu_seqlens_q"], options.get("cu_seqlens_k")
    return express(d, problem, repair, (ends, ends if key_ends is None else key_ends))


def express(
    d: Record, problem: Problem, repair: bool = True, ends: tuple[Array, Array] | None = None
) -> dict[str, Any]:
    """The keyword arguments of the foreign call that means a problem.

    ends: where packed sequences end, if it is made of such; without words for that they are said by a mask.
    """
    adapting = _Adapting(d, problem, ends if d.has("ends_q") else None)
    return spell(d, adapting.words(repair))


class _Adapting:
    """One problem, adapted to what a dialect can say."""

    def __init__(self, d: Record, p: Problem, ends: tuple[Array, Array] | None) -> None:
        self.d, self.p, self.ends = d, p, ends
        self.backend: Backend = p.backend
        self.xp = p.backend.xp
        self.batch, self.heads, self.rows, self.keys = p.scores_shape
        self.q, self.k, self.v = (
            x if x.shape[0] == self.batch else self.xp.broadcast_to(x, (self.batch, *x.shape[1:]))
            for x in (p.q, p.k, p.v)
        )
        self.bias: Array | None = None if p.bias is None else self.backend.astype(p.bias, p.q.dtype)
        self.allowed: Array | None = None  # what flags do not say: (B, H, L, S)
        self.sequences: Mask | None = None  # what `ends` say
        self.score_mod: ScoreMod | None = None

    def cannot(self, feature: str, got: str) -> ValueError:
        """The refusal of a feature, made from the table of what a dialect carries."""
        d, carried = self.d, CARRIED.get(feature)
        if carried is not None and carried.question:
            words = f"{QUESTIONS[carried.question].asks}: {d.choice(carried.question).says}"
        else:
            words = f"it has them for {', '.join(sorted(d.carries))}"
        instead = "leave it out, or call polyattn.attention" if carried is None else carried.instead
        return ValueError(
            f"{d.who('from_polyattn')}: expected what {d.name} has words for ({words}), got {got}; {instead}"
        )

    def demand(self, feature: str, got: str) -> None:
        if feature not in self.d.carries:
            raise self.cannot(feature, got)

    def words(self, repair: bool) -> Words:
        d, p = self.d, self.p
        for feature in sorted(p.features):
            self.demand(feature, say(frozenset({feature})))
        width, out_width = self.q.shape[3], self.v.shape[3]
        if width != out_width:
            self.demand("value width", f"width {width} and {out_width}")
        if repair and str(p.q.dtype).endswith("float64"):
            self.demand("float64", "float64 arrays")
        if repair and not self.keys:
            self.demand("no keys", "no keys")
        softcap = self.functions()
        causal, window = self.flags()
        own, sinks = (p.sinks, None) if d.chose("sinks", "given") else (None, p.sinks)
        if self.needs_a_key(causal, window, sinks, repair):
            # From here on everything is said by one mask.
            self.hide(_flag_masks(causal, window))
            causal, window = False, None
            self.append_key(sinks)
        if self.heads != self.k.shape[1] and d.chose("grouped heads", "none", "h % Hkv"):
            reads = self.backend.arange(0, self.heads, self.q) // max(
                self.heads // max(self.k.shape[1], 1), 1
            )
            self.k, self.v = (self.xp.take(x, reads, axis=1) for x in (self.k, self.v))
        scale = self.scale()
        mask, bias = self.places()
        own = None if own is None else self.xp.broadcast_to(self.xp.reshape(own, (-1,)), (self.heads,))
        if window is not None and d.chose("window", "with itself"):
            window = (window[0] + 1 if window[0] is not None else None, window[1])
        said = (self.q, self.k, self.v, causal, window, mask, bias, scale, softcap, own, self.score_mod)
        return Words(*said, ends=self.ends)

    # masks

    def flags(self) -> tuple[bool, Sides | None]:
        """Causality and the window as flags, where the dialect's mean the same; the rest goes to one mask."""
        d, p = self.d, self.p
        causal, window, rest = False, None, list[Mask]()
        for part in _conjuncts(p.mask):
            if self.ends is not None and self.sequences is None and isinstance(part, Segments):
                self.sequences = part  # the first ones: `pose` made them
                continue
            if self.ends is not None and isinstance(part, Filled):  # keys behind the last sequence
                continue
            if not isinstance(part, Window):
                rest.append(part)
                continue
            bounded = part.left is not None or part.right not in (None, 0)
            if bounded and window is not None:
                rest.append(part)
                continue
            causal = causal or part.right == 0
            if bounded:
                window = (part.left, part.right)
        if causal and d.chose("causal", "in the window"):
            window = (None if window is None else window[0], 0)
        start = self.keys - self.rows if d.aligns_last else 0
        here = p.places.fixed and p.places.key == 0 and p.places.query == start
        here = here or self.ends is not None  # the last row of each beside its last key, there as here
        windowed = window is not None and here and self.says(window, causal)
        if window is not None and not windowed:
            rest.append(masks.window(*window))
        masked = bool(rest) or (self.bias is not None and d.chose("bias", "mask"))
        can = (
            causal
            and here
            and d.has("causal")
            and not d.chose("causal", "hint")
            and not (d.chose("causal", "first rows unless alone") and self.rows == 1)
            and not (masked and d.chose("mask and causal", "kernel", "mask", "flag", "one place"))
            # Rows that see nothing are said better by a mask.
            and not (d.aligns_last and self.rows > self.keys and "dense mask" in d.carries)
        )
        right = windowed and window is not None and window[1] == 0 and not self.left_alone
        if causal and not can and not right:
            rest.append(masks.causal())
        for part in rest:
            self.hide(part)
        return can, window if windowed else None

    @property
    def left_alone(self) -> bool:
        """Whether a window has a left side only."""
        return self.d.chose("window", "with itself") or (self.d.has("left") and not self.d.has("right"))

    def says(self, window: Sides, causal: bool) -> bool:
        """Whether there are arguments for a window."""
        d, (left, right) = self.d, window
        if not d.chose("window", "neighbours", "neighbours, last rows", "with itself"):
            return False
        if self.left_alone and not (left is not None and (right is None or (right == 0 and causal))):
            return False
        if d.chose("window", "with itself") and not causal:
            return False
        return d.has("window") or d.has("left")

    def dense(self, mask: Mask) -> Array:
        """A mask as (B, H, L, S)."""
        return self.xp.broadcast_to(mask.allowed(self.p.positions()), self.p.scores_shape)

    def hide(self, mask: Mask | None) -> None:
        if mask is not None:
            dense = self.dense(mask)
            self.allowed = dense if self.allowed is None else self.allowed & dense

    def visible(self, flags: Mask | None) -> Array:
        """What queries may attend to, everything together."""
        scores = self.p.scores_shape
        everything: Array = self.xp.ones(scores, dtype=self.xp.bool, device=self.backend.device(self.p.q))
        for mask in (flags, self.sequences):
            everything = everything if mask is None else everything & self.dense(mask)
        if self.allowed is not None:
            everything = everything & self.allowed
        return everything if self.bias is None else everything & (self.bias != -self.xp.inf)

    # arrays that are changed

    def needs_a_key(self, causal: bool, window: Sides | None, sinks: Array | None, repair: bool) -> bool:
        """Whether a key is to be appended; on the way, hidden keys that are not finite become zero."""
        d, any_, all_ = self.d, self.xp.any, self.xp.all
        looked_at = (x for x in (self.q, self.k, self.v, self.allowed, self.bias) if x is not None)
        if not (repair and self.keys and all(map(self.backend.is_concrete, looked_at))):
            return sinks is not None
        flags = _flag_masks(causal, window)
        finite = all_(self.xp.isfinite(self.k)) & all_(self.xp.isfinite(self.v))
        if not d.chose("poison", "cannot leak") and not bool(finite):
            seen = any_(self.visible(flags), axis=2)
            seen = any_(self.xp.reshape(seen, (self.batch, self.k.shape[1], -1, self.keys)), axis=2)
            self.k, self.v = (self.xp.where(seen[..., None], x, 0.0) for x in (self.k, self.v))
        zero = all(
            d.chose(question, "0", "no bias", "0, causal mean")
            for question in ("empty row", "empty bias row")
        )
        if sinks is not None or zero or (window is self.allowed is self.bias is None):
            return sinks is not None  # causality alone leaves the first key
        self.empty = ~any_(self.visible(flags), axis=-1, keepdims=True)
        if not bool(any_(self.empty)):
            return False
        self.demand("empty row", "such rows")
        return True

    def append_key(self, sinks: Array | None) -> None:
        """One more key and value of zeros: its score is 0, so that a bias makes it a sink, and a row that sees
        nothing else becomes 0."""
        xp, scores = self.xp, self.p.scores_shape
        column = (*scores[:3], 1)
        where = {"device": self.backend.device(self.p.q)}

        def one_more(x: Array) -> Array:
            return xp.concat([x, xp.zeros((*x.shape[:2], 1, x.shape[3]), dtype=x.dtype, **where)], axis=2)

        self.k, self.v = one_more(self.k), one_more(self.v)
        allowed = xp.ones(scores, dtype=xp.bool, **where) if self.allowed is None else self.allowed
        seen = xp.ones(column, dtype=xp.bool, **where) if sinks is not None else self.empty
        self.allowed = xp.concat([allowed, xp.broadcast_to(seen, column)], axis=-1)
        if self.bias is not None or sinks is not None:
            added = xp.zeros(column, dtype=self.q.dtype, **where)
            bias = xp.broadcast_to(added if self.bias is None else self.bias, scores)
            if sinks is not None:
                added = added + self.backend.astype(sinks, self.q.dtype)
            self.bias = xp.concat([bias, added], axis=-1)

    # numbers

    def scale(self) -> float | None:
        """The scale as an argument; where there is none, and where each head has its own, multiplied into q."""
        scale, default = self.p.scale, 1.0 / math.sqrt(max(self.q.shape[3], 1))
        takes, per_head = self.d.has("scale"), hasattr(scale, "ndim")
        if not per_head and (takes or scale == default):
            return None if scale == default else float(scale)
        self.q = self.backend.astype(self.q * (scale if takes else scale / default), self.q.dtype)
        return 1.0 if takes else None

    def functions(self) -> float | None:
        """A soft cap as an argument; other score modifications as a function, or as a bias if they add."""
        d, mod = self.d, self.p.score_mod
        if mod is None:
            return None
        if d.has("score_mod"):
            self.score_mod = mod
            return None
        parts = list(mod.parts) if isinstance(mod, Compose) else [mod]
        cap: float | None = None
        if isinstance(parts[0], Softcap):
            adds = self.bias is not None or self.p.sinks is not None or len(parts) > 1
            self.demand("softcap", f"{parts[0]!r}")
            if adds and d.chose("softcap", "after the bias"):
                raise self.cannot("softcap", f"{parts[0]!r} and something added")
            given = parts.pop(0)
            cap = float(given.cap)  # type: ignore[attr-defined]
        for part in parts:
            self.add(part)
        return cap

    def add(self, mod: ScoreMod) -> None:
        """The effect of a mod that adds to the scores, as a bias."""
        self.demand("bias", f"the score_mod {mod!r}")
        xp, at = self.xp, self.p.positions()
        like = {"dtype": self.p.compute_dtype, "device": self.backend.device(self.p.q)}
        zero, one, low = (
            mod(xp.full(self.p.scores_shape, x, **like), at.b, at.h, at.q, at.kv) for x in (0.0, 1.0, -2.0)
        )
        apart = xp.abs(one - zero - 1.0) + xp.abs(low - zero + 2.0)
        near = 8.0 * xp.finfo(zero.dtype).eps * (3.0 + xp.abs(zero))  # the roundings of these sums
        if not self.backend.is_concrete(zero) or not bool(xp.all(apart <= near)):
            raise self.cannot("function", f"the score_mod {mod!r}, which does not only add")
        added = self.backend.astype(zero, self.q.dtype)
        self.bias = added if self.bias is None else self.bias + added

    # places

    def places(self) -> tuple[Array | None, Array | None]:
        """The mask and the bias, where the dialect has a place for them."""
        d, allowed, bias = self.d, self.allowed, self.bias
        if d.has("score_mod"):
            if self.score_mod is not None or bias is not None:
                self.score_mod = adding(bias, self.score_mod, self.p.positions(), self.keys)
            return allowed, None
        if allowed is not None:
            self.demand("dense mask", f"the mask {self.p.mask} with query_offset = {self.p.places.query}")
        if allowed is not None and not d.has("mask"):  # what hides is -inf in the bias
            bias = self.xp.zeros_like(self.q[:1, :1, :1, :1]) if bias is None else bias
            return None, self.xp.where(allowed, bias, -self.xp.inf)
        if bias is not None and d.chose("bias", "mask"):
            if allowed is not None:
                bias = self.xp.where(allowed, bias, -self.xp.inf)
            return bias, None
        if allowed is not None and d.chose("bool mask", "refused"):
            zero = self.xp.zeros_like(self.q[:1, :1, :1, :1])
            return self.xp.where(allowed, zero, -self.xp.inf), bias
        if allowed is not None and d.chose("bool mask", "ignore"):
            allowed = ~allowed
        return allowed, bias


def _conjuncts(mask: Mask | None) -> list[Mask]:
    if mask is None:
        return []
    return [*_conjuncts(mask.left), *_conjuncts(mask.right)] if isinstance(mask, And) else [mask]


def _flag_masks(causal: bool, window: Sides | None) -> Mask | None:
    parts = [masks.causal()] * causal + ([] if window is None else [masks.window(*window)])
    return reduce(and_, parts) if parts else None
