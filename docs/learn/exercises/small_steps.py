"""The gradients that small steps find, for the laws of the chapter on gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from classroom import apart

H = 2.0**-17


def slopes(f: Callable[..., Any], arrays: tuple[Any, ...], d_out: Any) -> list[Any]:
    """The gradients of sum(f(...) * d_out), by moving every entry of every array by 2^-17 in both directions."""
    found = []
    for number, x in enumerate(arrays):
        d = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            ends = []
            for sign in (1, -1):
                moved = [y.copy() for y in arrays]
                moved[number][at] += sign * H
                ends.append((f(*moved) * d_out).sum())
            d[at] = (ends[0] - ends[1]) / (2 * H)
        found.append(d)
    return found


def compared(pullback: Any, f: Any, arrays: tuple[Any, ...], d_out: Any, names: str) -> str:
    found, expected = pullback(*arrays, d_out), slopes(f, arrays, d_out)
    for name, mine, slope in zip(names.split(), found, expected, strict=True):
        if said := apart(mine, slope, f"the gradient for {name}, beside the slope of small steps"):
            return said
    return ""


def softmax(s: Any) -> Any:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q: Any, k: Any, v: Any) -> Any:
    return softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5) @ v
