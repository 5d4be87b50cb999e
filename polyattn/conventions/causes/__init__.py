"""What may be the matter with an implementation: every known convention and mistake, and how to say it.

cause.py        what a cause is, and the properties of a call that make one possible
scales.py       the factor on the scores
hiding.py       masks, causality, windows, rows that see nothing
added.py        soft cap, score modifications, bias
arrays.py       heads, layouts, packings, arrays taken for one another
averages.py     sinks, the softmax and what stands in its place, the output
positions.py    norms and rotary embedding
lower.py        lower precisions inside, and caches in them
"""

from __future__ import annotations

from dataclasses import replace

from polyattn.conventions.causes.added import ADDED
from polyattn.conventions.causes.arrays import ARRAYS
from polyattn.conventions.causes.averages import AVERAGES
from polyattn.conventions.causes.cause import Cause
from polyattn.conventions.causes.hiding import HIDING
from polyattn.conventions.causes.lower import CACHES, LOW, NAMES, ROUNDINGS
from polyattn.conventions.causes.positions import POSITIONS
from polyattn.conventions.causes.scales import SCALES
from polyattn.conventions.settings import CONTRACT, Settings

__all__ = ["CAUSES", "LOW", "NAMES", "ROUNDINGS", "Cause", "settings_of", "without_merge"]

#: The order decides between causes that explain an output equally well: what is made often comes first.
CAUSES = tuple(
    sorted(
        (*SCALES, *HIDING, *ADDED, *ARRAYS, *AVERAGES, *POSITIONS, *CACHES),
        key=lambda cause: cause.rare,
    )
)


def without_merge(causes: tuple[Cause, ...]) -> tuple[tuple[Cause, ...], bool]:
    """The other causes. A wrong merge permutes the output: undoing that is cheaper than computing every row."""
    others = tuple(cause for cause in causes if cause.field != "merge")
    return others, len(others) < len(causes)


def settings_of(causes: tuple[Cause, ...]) -> Settings:
    """The contract with these changes."""
    return replace(CONTRACT, **{cause.field: cause.choice for cause in causes})
