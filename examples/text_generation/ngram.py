"""The baseline: the next character by the counts of what followed the same few characters before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

#: For contexts of 0, 1, ... characters: how often an n-gram came; its context came; kinds of followers of that.
Counts = list[tuple[Counter[str], Counter[str], Counter[str]]]


def count(text: str, order: int) -> Counts:
    """The counts of all n-grams of 1 to `order` characters."""
    found: Counts = []
    for n in range(1, order + 1):
        grams = Counter(text[i : i + n] for i in range(len(text) - n + 1))
        contexts: Counter[str] = Counter()
        for gram, times in grams.items():
            contexts[gram[:-1]] += times
        found.append((grams, contexts, Counter(gram[:-1] for gram in grams)))
    return found


@dataclass(frozen=True)
class NGram:
    """p(c | h) = (count(hc) + w kinds(h) p(c | h without its first)) / (count(h) + w kinds(h)).

    kinds(h): how many different characters followed h; p without any context is 1 / size. For weight w = 1 it
    is the smoothing of Witten and Bell 1991 (method C), interpolated.
    """

    counts: Counts
    order: int
    size: int
    weight: float

    def bits(self, text: str, start: int) -> float:
        """Bits per character of text[start:], each character given the order - 1 before it."""
        total = 0.0
        for i in range(start, len(text)):
            p = 1.0 / self.size
            for n, (grams, contexts, kinds) in enumerate(self.counts[: self.order]):
                context = text[i - n : i]
                if context not in contexts:
                    break
                back = self.weight * kinds[context]
                p = (grams[text[i - n : i + 1]] + back * p) / (contexts[context] + back)
            total -= math.log2(p)
        return total / (len(text) - start)


def tuned(text: str, orders: Sequence[int], size: int) -> NGram:
    """The n-gram model of the text whose order and weight did best on the last tenth, given the rest."""
    cut = len(text) * 9 // 10
    rest = count(text[:cut], max(orders))
    weights = (2.0, 8.0, 32.0)
    tried = (NGram(rest, order, size, weight) for order in orders for weight in weights)
    best = min(tried, key=lambda model: model.bits(text, cut))
    return NGram(count(text, best.order), best.order, size, best.weight)
