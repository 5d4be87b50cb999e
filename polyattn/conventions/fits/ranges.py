"""Which keys a row has seen, where those are neighbours: what every range of keys would answer, from running sums.

With e_j the weight of a key before any mask, a row that sees keys lo to hi - 1 answers (C_hi - C_lo) / (Z_hi - Z_lo + z), C and
Z the running sums of e_j v_j and e_j, and z what a sink takes. So thousands of windows cost as much as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from polyattn.conventions.answers import answer
from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Ranges", "Span", "free", "masks_as_stated", "stated_ranges"]

ROOM = 4.0  # units are those of the stated answer until a proposal is judged by its own
FIRST = 4  # columns of the output that decide first

#: Positions of a row, and numbers (n,), give lo and hi (n,) and how many first keys are seen besides.
Span = Callable[[int, Floats], tuple[Floats, Floats, Floats | int]]


@dataclass(frozen=True)
class Ranges:
    """The rows of a head of an item, with their running sums."""

    at: Floats  # (R,) positions of the rows
    sums: Floats  # (R, S + 1, E)
    mass: Floats  # (R, S + 1)
    sink: Floats  # (R,)
    out: Floats  # (R, E)
    unit: Floats  # (R, E), infinite where an element does not count

    @classmethod
    def of(cls, evidence: Evidence, stripped: Call, item: int, head: int, rows: Floats) -> Ranges:
        """From the call without the masks in question."""
        probe = evidence.cut([item], [head], rows)
        with np.errstate(all="ignore"):
            free = answer(evidence.cut_call(stripped, [item], [head], probe.rows), probe.settings, probe.rows)
            stated = answer(probe.call, probe.settings, probe.rows)
            unit = np.maximum(probe.unit(free), probe.unit(stated))[0, 0]
        w, v = np.nan_to_num(free.weights[0, 0]), np.nan_to_num(free.values[0, 0])
        sums = np.cumsum(np.pad(w[..., None] * v, ((0, 0), (1, 0), (0, 0))), 1)
        mass = np.cumsum(np.pad(w, ((0, 0), (1, 0))), 1)
        sink = np.maximum(1.0 - mass[:, -1], 0.0)
        unit = np.where(probe.trusted[0, 0], unit, np.inf)
        sink = np.where(sink < 1e-12, 0.0, sink)
        return cls(probe.rows + stripped.offset, sums, mass, sink, probe.out[0, 0], unit)

    def misfit(
        self, i: int, lo: Floats, hi: Floats, first: Floats | int, columns: slice = slice(None)
    ) -> Floats:
        """(n,): how far row i is from what those ranges answer, in units."""
        last = self.mass.shape[1] - 1
        first = np.clip(first, 0, last)
        lo, hi = np.maximum(np.clip(lo, 0, last), first), np.clip(hi, 0, last)
        hi = np.maximum(hi, lo)
        sums, mass = self.sums[i][:, columns], self.mass[i]
        with np.errstate(all="ignore"):
            total = mass[hi] - mass[lo] + mass[first] + self.sink[i]
            value = (sums[hi] - sums[lo] + sums[first]) / np.where(total > 0, total, np.inf)[..., None]
            error = np.abs(self.out[i, columns] - value) / self.unit[i, columns]
        error = np.where(np.isnan(error), np.inf, error).max(-1, initial=0.0)
        return np.where((hi <= lo) & (first == 0), 0.0, error)  # programs put anything where nothing is seen

    def survivors(self, span: Span, numbers: Floats) -> tuple[Floats, Floats]:
        """The numbers that explain every row, and how far each is from the worst of them."""
        worst = np.zeros(len(numbers))
        for i, at in enumerate(self.at):
            for columns in (slice(FIRST), slice(None)):
                lo, hi, first = span(int(at), numbers)
                misfit = self.misfit(i, lo, hi, first, columns)
                kept = misfit <= ROOM * ACCEPTANCE
                numbers, worst = numbers[kept], np.maximum(worst[kept], misfit[kept])
            if not len(numbers):
                break
        return numbers, worst


def masks_as_stated(evidence: Evidence) -> bool:
    """Whether the settings hide what the call says and nothing else, and weights are a softmax over the keys."""
    s = evidence.settings
    stated = (s.polarity, s.mask, s.hidden, s.causal, s.window) == (
        "attend",
        "hides",
        "-inf",
        "as stated",
        "as stated",
    )
    return stated and s.softmax in ("keys", "base 2", "plus one") and s.keys == "all" and evidence.by_heads


def stated_ranges(call: Call, at: int) -> tuple[int, int]:
    """The keys that causality and the window leave to the row at a position: lo and hi."""
    keys = call.shape[3]
    left, right = call.window or (None, None)
    lo = 0 if left is None else at - left
    hi = keys if right is None else at + right + 1
    hi = min(hi, at + 1) if call.is_causal else hi
    return min(max(lo, 0), keys), min(max(hi, 0), keys)


def free(call: Call) -> Call:
    """Without causality and window."""
    return replace(call, is_causal=False, window=None)
