"""Recorded and plain arrays in one call."""

from __future__ import annotations

from typing import Any

from polyattn.arrays import Array
from polyattn.gradients.backend import raised
from polyattn.gradients.recorded import Recorded
from polyattn.gradients.trees import mapped

__all__ = ["together"]


def together(values: Any) -> Any:
    """Arguments of one call, in which a recorded array makes constants of the plain ones of its library."""
    highest: Any = None
    plain = False

    def look(x: Array) -> Array:
        nonlocal highest, plain
        if not isinstance(x, Recorded):
            plain = True
        elif highest is None or x.backend is not highest:
            plain = plain or highest is not None
            highest = x.backend if highest is None or x.backend.level > highest.level else highest
        return x

    mapped(look, values)
    if highest is None or not plain:
        return values
    backend = highest
    return mapped(lambda x: raised(x, backend), values)
