"""What must be said of a defect, and whether it was: words, and for what is fitted also the number, to three digits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from .problems import Problem

Numbers = Callable[[Problem], Sequence[float]]

_NUMBER = re.compile(r"(?<![\w.])\d++(?:\.\d++)?+(?:e[+-]?\d++)?+")
_ROOT = re.compile(r"sqrt\((\d++(?:\.\d++)?+)\)")
_RATIO = re.compile(r"(?<![\w.])(\d++(?:\.\d++)?+)\s*/\s*(\d++(?:\.\d++)?+)")
_POWER = re.compile(r"(?<![\w.])(\d++(?:\.\d++)?+)\^(-?\d++)")


def readings(sentence: str) -> Iterator[float]:
    """Every number that a sentence may be understood to give, without its sign.

    >>> [round(x, 4) for x in readings("scale = 1/sqrt(72), 0.943 of 2/16")]
    [72.0, 0.943, 2.0, 16.0, 8.4853, 0.1179, 0.125]
    """
    yield from (float(x[0]) for x in _NUMBER.finditer(sentence) if sentence[x.end() : x.end() + 5] != "/sqrt")
    for root in _ROOT.finditer(sentence):
        yield math.sqrt(float(root[1]))
        if float(root[1]):
            yield 1 / math.sqrt(float(root[1]))
    yield from (float(a) / float(b) for a, b in _RATIO.findall(sentence) if float(b))
    yield from (float(a) ** int(b) for a, b in _POWER.findall(sentence) if float(a) and abs(int(b)) < 200)


def same(said: float, true: float) -> bool:
    """Whether they are one number to three digits: at most one unit of the third apart.

    >>> same(0.943, 0.9428), same(0.95, 0.9428), same(12, 12)
    (True, False, True)
    """
    true, said = abs(true), abs(said)
    if true == 0 or said == true:
        return said == true
    if true == round(true) and true < 1000:
        return said == true  # a count
    return abs(said - true) <= 10.0 ** (math.floor(math.log10(true)) - 2)


@dataclass(frozen=True)
class Said:
    """A sentence in which words (a regular expression) are found, one number of `one`, and every number of `each`."""

    words: str
    one: Numbers | None = None
    each: Numbers | None = None

    def fits(self, sentence: str, p: Problem) -> bool:
        if not re.search(self.words, sentence, re.IGNORECASE):
            return False
        found = list(readings(sentence))
        one = () if self.one is None else self.one(p)
        each = () if self.each is None else self.each(p)
        return (not one or any(same(x, y) for x in found for y in one)) and all(
            any(same(x, y) for x in found) for y in each
        )


Named = tuple[Said, ...]  # any of them


def names(sentences: Sequence[str], planted: Sequence[Named], p: Problem) -> bool:
    """Whether the sentences say what was planted, each a thing of it, and nothing else: roundings are said stage by stage."""
    told = [[any(said.fits(x, p) for said in named) for named in planted] for x in sentences]
    return all(map(any, told)) and any(
        all(told[i][j] for j, i in enumerate(order))
        for order in permutations(range(len(sentences)), len(planted))
    )


def words(pattern: str) -> Named:
    return (Said(pattern),)


def scaled(effective: Callable[[Problem], float], *others: Said) -> Named:
    """Scores multiplied by another number: it, its share of what was asked for, or what a root is taken of."""

    def numbers(p: Problem) -> Sequence[float]:
        f, share = effective(p), effective(p) / p.stated_scale
        return f, 1 / f, f**2, f**-2, share, 1 / share, share**-2

    return (Said("scale|scores (multiplied|divided)|temperature", numbers), *others)
