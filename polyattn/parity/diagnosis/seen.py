"""An observed output, the part of it that counts, and how far it lies from an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from polyattn.conventions.answers import Answer, merged_rightly
from polyattn.truth.definition import Judged
from polyattn.truth.measure import UNIT_ROUNDOFF, round_to, unit_of
from polyattn.truth.spec import Floats

__all__ = ["Seen", "rms"]

LOWER = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # in which an output may be stored, the usual one first


@dataclass(frozen=True)
class Seen:
    """What came from anywhere, on some query rows or all, and which elements of it are to be explained."""

    out: Floats  # (B, Hq, rows, E) float64
    dtype: str
    length: int  # L, of the call
    rows: Floats | None = None  # which of the L they are
    trusted: Floats | None = None  # bool (B, Hq, rows, E): the elements that count
    half: float = 0.0  # what printing to some decimals may have moved a number
    floor: float = 0.0  # what weights that underflow may move: S max |v|

    @property
    def unit(self) -> float:
        return UNIT_ROUNDOFF[self.dtype]

    @property
    def low(self) -> bool:
        """Whether the precision is a half one."""
        return self.dtype in LOWER

    @property
    def which(self) -> Floats:
        """The query rows, always as indices."""
        return np.arange(self.length) if self.rows is None else self.rows

    @property
    def counts(self) -> Floats:
        """Which elements are to be explained, always as an array."""
        return np.ones(self.out.shape, bool) if self.trusted is None else self.trusted

    def gap(self, expected: Floats) -> Floats:
        """|seen - expected| beyond the rounding of the print; 0 where both are the same infinity or both NaN, and where nothing
        counts; inf where one of them is NaN."""
        with np.errstate(all="ignore"):
            gap = np.abs(self.out - expected)
            if self.half:  # and of a decimal that float64 itself cannot hold
                gap = np.maximum(gap - self.half - 2.0**-52 * np.abs(expected), 0.0)
        same = (self.out == expected) | (np.isnan(self.out) & np.isnan(expected))
        if self.trusted is not None:
            same |= ~self.trusted
        return np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))

    def unit_at(self, expected: Answer) -> Floats:
        """What rounding may move, elementwise."""
        return unit_of(Judged(expected.out, expected.condition, self.floor, expected.rounded), self.dtype)

    def ratio(self, expected: Answer) -> Floats:
        """The eta of every element."""
        gap = self.gap(expected.out)
        with np.errstate(all="ignore"):
            ratio = gap / self.unit_at(expected)
        return np.where(gap == 0, 0.0, np.where(np.isnan(ratio), np.inf, ratio))

    def eta(self, expected: Answer) -> float:
        return float(np.max(self.ratio(expected), initial=0.0))

    # parts of it

    def at(self, index: Floats) -> Seen:
        """Some of its rows, by their place among them."""
        return replace(
            self,
            out=self.out[:, :, index],
            rows=self.which[index],
            trusted=None if self.trusted is None else self.trusted[:, :, index],
        )

    def items(self, items: Floats) -> Seen:
        """Some of its batch items."""
        return replace(
            self, out=self.out[items], trusted=None if self.trusted is None else self.trusted[items]
        )

    def only(self, trusted: Floats) -> Seen:
        """The same, of which fewer elements count."""
        both = np.broadcast_to(trusted, self.out.shape) & self.counts
        kept = np.flatnonzero(both.any((0, 1, 3)))
        return (
            replace(self, trusted=both).at(kept)
            if len(kept) < self.out.shape[2]
            else replace(self, trusted=both)
        )

    def unmerged(self) -> Seen:
        """The output as it was before heads were laid side by side without a transpose."""
        if self.rows is None:
            trusted = None if self.trusted is None else merged_rightly(self.trusted)
            return replace(self, out=merged_rightly(self.out), trusted=trusted)
        batch, heads, _, width = self.out.shape
        whole, counts = (
            np.zeros((batch, heads, self.length, width)),
            np.zeros((batch, heads, self.length, width), bool),
        )
        whole[:, :, self.rows], counts[:, :, self.rows] = self.out, self.counts
        return replace(self, out=merged_rightly(whole), rows=None, trusted=None).only(merged_rightly(counts))

    # what its numbers say

    def lower(self) -> str | None:
        """The lower precision to which every number that counts is already rounded."""
        shown = self.out[self.counts]
        if self.half or np.count_nonzero(np.isfinite(shown) & (shown != 0)) <= 16:
            return None
        for low, unit in LOWER.items():
            if unit > self.unit and np.array_equal(round_to(shown, low), shown, equal_nan=True):
                return low
        return None


def rms(x: Floats) -> float:
    """The root of the mean square; inf if any is not finite.

    >>> rms(np.array([3.0, 4.0, 0.0, 0.0]))
    2.5
    """
    return float(np.sqrt(np.mean(x**2))) if x.size and np.isfinite(x).all() else math.inf if x.size else 0.0
