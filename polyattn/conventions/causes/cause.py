"""What a cause is, and the properties of a call that make one possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyattn.conventions.call import Call

__all__ = [
    "Applies",
    "Cause",
    "always",
    "anew",
    "batched",
    "both",
    "by_position",
    "equal_widths",
    "grouped",
    "has",
    "masked",
    "same_heads",
    "say",
    "several_heads",
    "square",
    "unmodified",
    "varies",
]

Applies = Callable[[Call], bool]


class Cause(NamedTuple):
    """One change of the settings, and how to say it."""

    field: str
    choice: str
    sentence: Callable[[Call], str]
    applies: Applies
    rare: bool = False  # hardly made together with another
    whole_batch: bool = False  # what an item gets depends on the others


def say(text: str) -> Callable[[Call], str]:
    """The same sentence for every call."""
    return lambda call: text


def always(call: Call) -> bool:
    return True


def has(name: str) -> Applies:
    """Whether that part of a call is there."""
    return lambda call: getattr(call, name) is not None


def both(*conditions: Applies) -> Applies:
    """Whether all of them hold."""
    return lambda call: all(condition(call) for condition in conditions)


def varies(name: str, *axes: int) -> Applies:
    """Whether a mask, a bias or a shift is there and differs along these axes."""

    def applies(call: Call) -> bool:
        x = getattr(call, name)
        return x is not None and np.ndim(x) == 4 and all(np.shape(x)[axis] > 1 for axis in axes)

    return applies


def batched(call: Call) -> bool:
    return bool(call.shape[0] > 1)


def grouped(call: Call) -> bool:
    return bool(1 < call.k.shape[1] < call.q.shape[1])


def square(call: Call) -> bool:
    return bool(call.q.shape[2] == call.k.shape[2])


def equal_widths(call: Call) -> bool:
    return bool(call.k.shape[3] == call.v.shape[3])


def masked(call: Call) -> bool:
    return call.mask is not None or call.is_causal or call.window is not None


def unmodified(call: Call) -> bool:
    """Nothing in the call says anything of single scores."""
    return not masked(call) and call.bias is None and call.shift is None


def by_position(call: Call) -> bool:
    return call.is_causal or call.window is not None


def several_heads(call: Call) -> bool:
    return bool(call.q.shape[1] > 1)


def same_heads(call: Call) -> bool:
    return several_heads(call) and call.q.shape[1] == call.k.shape[1]


def anew(call: Call) -> bool:
    """A query could stand for key and value: as wide, and nothing else says how many keys there are."""
    return equal_widths(call) and (
        square(call) or (call.mask is None and call.bias is None and call.shift is None)
    )
