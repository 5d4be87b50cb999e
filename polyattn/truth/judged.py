"""A true value with what it takes to judge another by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["Judged"]


class Judged(NamedTuple):
    """A true value, its condition, and how it follows roundings to half precision and a weight that underflows.

    |computed - value| <= eta * (u * condition + tiny * floor), elementwise, with u the unit roundoff of the
    result and tiny the smallest normal number of the dtype in which weights are carried. In half precision a right
    program rounds to it only what it stores, and computes in float32: u * rounded + u32 * condition + tiny * floor.
    There tiny is at least half the smallest number of that dtype, which is how far off a stored weight may be at the least.
    Where rounded is None nothing is known of what it stores, and u * condition stands.
    """

    value: Floats
    condition: Floats
    floor: Floats | float = 0.0
    rounded: Floats | None = None

    def moved(self, move: Callable[[Floats], Floats]) -> Judged:
        """Some elements of it, or all in another order or shape: move is applied to each of its arrays.

        >>> Judged(np.arange(3.0), np.ones(3)).moved(lambda x: x[1:]).value
        array([1., 2.])
        """
        return Judged(*(move(np.asarray(x)) if np.ndim(x) else x for x in self))  # type: ignore[arg-type]
