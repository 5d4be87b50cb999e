"""Why a gradient is wrong where the output is right: what mistakes in writing the backward pass give.

With P the weights, dP = dO V^T and delta the row sum of P dP, right is dS = P (dP - delta), dQ = scale dS K,
dK = scale dS^T Q and dV = P^T dO, those of keys and values summed over the query heads that share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from polyattn.parity.backward_pass import RIGHT, BackwardPass, Mistake
from polyattn.parity.meaning import Meaning
from polyattn.truth.judged import Judged
from polyattn.truth.measure import ACCEPTANCE, eta
from polyattn.truth.spec import Floats

__all__ = ["explain_gradients"]

LEFT = 0.1  # what an explanation may leave of the error, rms: in 16 bits an eta of 4 alone is no evidence

_SCORES = (
    Mistake("is made without delta, the row sum of P dP", lambda h: h.tile.slope * h.w * h.dp),
    Mistake("adds delta, which is to be subtracted", lambda h: h.tile.slope * h.w * (h.dp + h.delta)),
    Mistake(
        "has the mask not applied in the backward pass",
        lambda h: h.tile.slope * h.unmasked * (h.dp - h.delta),
    ),
    Mistake("lacks the derivative of the softmax: dP in place of dS", lambda h: h.dp * h.tile.allowed),
    Mistake("lacks the derivative of the soft cap", lambda h: h.w * (h.dp - h.delta)),
    Mistake("has dS transposed", RIGHT["dq"].matrix, transposed=True),
    Mistake("has P in place of dS", lambda h: h.w),
    Mistake("leaves out the gradient that comes from above", RIGHT["dq"].matrix, above=False),
)

_VALUES = (
    Mistake("has the mask not applied in the backward pass", lambda h: h.unmasked * h.tile.keep),
    Mistake("has P transposed", RIGHT["dv"].matrix, transposed=True),
    Mistake("has dS in place of P", RIGHT["dq"].matrix),
    Mistake("leaves out the gradient that comes from above", RIGHT["dv"].matrix, above=False),
)


def explain_gradients(
    meaning: Meaning, cotangent: Floats, values: Mapping[str, Floats], judged: Mapping[str, Judged]
) -> dict[str, str]:
    """For every wrong gradient among dq, dk and dv a sentence, where a known mistake gives it.

    values: what an implementation gave for a cotangent of its output, (B, Hq, L, E), in the shapes of the truth; one of
    another shape is explained if it is that of gradients not summed over the query heads of a group.
    """
    search = _Search(BackwardPass(meaning, cotangent), judged, meaning.dtype)
    found = {}
    for quantity in ("dq", "dk", "dv"):
        if quantity in values and eta(values[quantity], judged[quantity], meaning.dtype) > ACCEPTANCE:
            cause = search.cause(quantity, values[quantity])
            if cause is not None:
                found[quantity] = cause
    return found


class _Search:
    def __init__(self, work: BackwardPass, judged: Mapping[str, Judged], dtype: str) -> None:
        self.work, self.judged, self.dtype = work, judged, dtype

    def cause(self, quantity: str, x: Floats) -> str | None:
        """The first mistake that gives x, the cheap ones to look for first."""
        if not np.isfinite(x).all():
            return None
        right = self.judged[quantity].value
        for words, guess in self._guesses(quantity):
            if self._fits(x, guess, right):
                return words
        if x.shape != right.shape:
            return None
        factor = _factor(x, right)
        if factor and self._fits(x, _times(self.judged[quantity], factor), right):
            return f"is {factor:.4g} times what it should be"
        mistakes = _VALUES if quantity == "dv" else _SCORES
        return next(filter(None, (self._mistaken(quantity, x, mistake) for mistake in mistakes)), None)

    def _fits(self, x: Floats, guess: Judged, right: Floats) -> bool:
        """Whether a guess explains x, and not only because rounding explains anything."""
        if guess.value.shape != x.shape or eta(x, guess, self.dtype) > ACCEPTANCE:
            return False
        return x.shape != right.shape or _rms(x - guess.value) <= LEFT * _rms(x - right)

    def _mistaken(self, quantity: str, x: Floats, mistake: Mistake) -> str | None:
        """Its words, where it gives x, maybe times a number: looked for in one group of heads, then confirmed in all."""
        rows, keys = self.work.spec.shape[2:]
        if mistake.transposed and rows != keys:
            return None
        right = self.judged[quantity].value
        item, head = (int(i) for i in np.unravel_index(_worst(x - right), x.shape[:2]))
        kv_head = head // self.work.group if quantity == "dq" else head
        part = self.work.part(item, kv_head)
        heads = slice(kv_head * self.work.group, (kv_head + 1) * self.work.group)
        at = (slice(item, item + 1), heads if quantity == "dq" else slice(kv_head, kv_head + 1))
        if x.shape[0] < self.work.spec.shape[0]:  # summed over the batch: no item can be seen alone
            part, at = self.work, (slice(None), slice(None))
        guess = _summed(part, quantity, mistake)
        factor = _factor(x[at], guess.value)
        for words, times in (
            (mistake.words, 1.0),
            (f"{mistake.words}, and is {factor:.4g} times that", factor),
        ):
            if times and self._fits(x[at], _times(guess, times), right[at]):
                whole = guess if part is self.work else _summed(self.work, quantity, mistake)
                if self._fits(x, _times(whole, times), right):
                    return words
        return None

    def _guesses(self, quantity: str) -> Iterator[tuple[str, Judged]]:
        """What needs no other backward pass."""
        right = self.judged[quantity]
        yield "is 0: detached, or never written", _times(right, 0.0)
        for words, factor in self._factors(quantity):
            if factor != 1.0:
                yield words, _times(right, factor)
        if quantity == "dq":
            return
        other = {"dk": "dv", "dv": "dk"}[quantity]
        yield f"is {other}: the two are swapped", self.judged[other]
        if self.work.group > 1:
            yield from self._of_groups(quantity)
        if self.work.spec.k.shape[1] > 1:
            yield "has the kv heads in reverse order", right.moved(lambda x: x[:, ::-1])

    def _factors(self, quantity: str) -> Iterator[tuple[str, float]]:
        """Factors that are left out, or applied twice."""
        scales = np.unique(np.asarray(self.work.spec.scales, np.float64))
        if quantity != "dv" and len(scales) == 1 and scales[0] > 0:
            scale = float(scales[0])
            yield f"lacks the scale, {scale:.4g}", 1 / scale
            yield f"has the scale, {scale:.4g}, twice", scale
            yield f"has the square root of the scale, {scale:.4g}", scale**-0.5
        yield "has the wrong sign", -1.0
        yield "is that of the mean of the output, not of the sum", 1 / self.work.cotangent.size
        if quantity != "dq":
            yield "is the mean over the query heads of a group, not the sum", 1 / self.work.group
        yield "is divided by the batch size", 1 / self.work.spec.shape[0]
        yield "is counted twice", 2.0

    def _of_groups(self, quantity: str) -> Iterator[tuple[str, Judged]]:
        """Query heads that share a key and a value, taken together wrongly."""
        group, each = self.work.group, self.work.each(quantity)

        def parts(x: Floats, first: int) -> Floats:
            return x.reshape(x.shape[0], first, -1, *x.shape[2:])

        kv_heads = self.work.spec.k.shape[1]
        yield "is not summed over the query heads that share it", each
        yield (
            "is that of the first query head of each group alone",
            each.moved(lambda x: parts(x, kv_heads)[:, :, 0]),
        )
        yield (
            "is that of the last query head of each group alone",
            each.moved(lambda x: parts(x, kv_heads)[:, :, -1]),
        )
        tiled = each.moved(lambda x: parts(x, group).sum(1))
        yield "is summed over query heads h, h + Hkv, ..., which are of different groups", tiled


def _summed(work: BackwardPass, quantity: str, mistake: Mistake) -> Judged:
    return work.each(quantity, mistake) if quantity == "dq" else work.shared(quantity, mistake)


def _times(judged: Judged, factor: float) -> Judged:
    return judged.moved(lambda x: abs(factor) * x)._replace(value=factor * judged.value)


def _factor(x: Floats, value: Floats) -> float:
    """The number times which value is nearest to x."""
    size = float((value * value).sum())
    return float((x * value).sum()) / size if size else 0.0


def _rms(x: Floats) -> float:
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))


def _worst(error: Floats) -> int:
    """The batch item and head where most is wrong."""
    return int(np.argmax(np.sum(np.asarray(error, np.float64) ** 2, axis=(2, 3))))
