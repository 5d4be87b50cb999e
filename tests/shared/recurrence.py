"""Linear attention token by token in plain NumPy, with the error that rounding explains: the oracle of its tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyattn.parity import UNIT_ROUNDOFF
from polyattn.truth.definition import Judged
from polyattn.truth.rounding import noise

Floats = np.ndarray[Any, Any]


def recurrence(
    q: Floats, k: Floats, v: Floats, decay: Floats | None, beta: Floats | None, state: Floats, scale: float
) -> tuple[Floats, Floats]:
    """The outputs and the last state.

    q (..., Hkv, G, T, D), k (..., Hkv, T, D), v (..., Hkv, T, E), decay and beta (..., Hkv|1, T, width), state
    (..., Hkv, D, E); outputs (..., Hkv, G, T, E).
    """
    out = []
    for t in range(k.shape[-2]):
        if decay is not None:
            state = state * np.exp(decay[..., t, :])[..., None]
        u = v[..., t, :]
        if beta is not None:
            u = beta[..., t, :] * (u - (k[..., t, None, :] @ state)[..., 0, :])
        state = state + k[..., t, :, None] * u[..., None, :]
        out.append(scale * (q[..., t, :] @ state))
    return np.stack(out, axis=-2), state


def judged(*arguments: Any) -> tuple[Judged, Judged]:
    """Both in extended precision; the condition is what the noise of float32 grows to, in units of one rounding."""

    def run(number: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        return recurrence(*(number(x) if isinstance(x, np.ndarray) else x for x in arguments))

    def condition(part: int) -> float:
        return noise(lambda number: run(number)[part]) / UNIT_ROUNDOFF["float32"]

    out, state = run(lambda x: np.asarray(x, np.longdouble))
    return Judged(out, np.full(out.shape, condition(0))), Judged(state, np.full(state.shape, condition(1)))
