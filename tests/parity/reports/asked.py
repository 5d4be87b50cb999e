"""How a report is written down, and the textbook that its program is made of.

A report is a function of one flag: with wrong=True it computes what the thread is about, with wrong=False what was
meant. Both are plain NumPy or PyTorch; what was meant is said in arguments of `polyattn.attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, Any]
#: The output; query, key and value as they were meant; and the rest of what was meant.
Asked = tuple[Any, tuple[Any, Any, Any], dict[str, Any]]
Program = Callable[[bool], Asked]


@dataclass(frozen=True)
class Report:
    """A public thread in which an attention was wrong, and the cause that was found there."""

    thread: str  # owner/repository#number; GitHub leads issues/number to the pull request if it is one
    title: str  # in our words
    names: str  # what the first finding must say
    program: Program

    @property
    def url(self) -> str:
        repository, number = self.thread.split("#")
        return f"https://github.com/{repository}/issues/{number}"

    @property
    def id(self) -> str:
        return f"{self.thread} {self.program.__name__}"


class Reports(list[Report]):
    """The reports of a module, in its order."""

    def __call__(self, thread: str, title: str, names: str) -> Callable[[Program], Program]:
        def note(program: Program) -> Program:
            self.append(Report(thread, title, names, program))
            return program

        return note


def normal(*shape: int, seed: int = 0) -> Floats:
    """Numbers that are the same wherever they are drawn."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def heads(
    rows: int = 10, keys: int | None = None, *, batch: int = 2, q: int = 4, kv: int = 4, width: int = 8
) -> tuple[Floats, Floats, Floats]:
    """Query, key and value, (B, H, L, D)."""
    keys = rows if keys is None else keys
    return (
        normal(batch, q, rows, width, seed=1),
        normal(batch, kv, keys, width, seed=2),
        normal(batch, kv, keys, width, seed=3),
    )


def softmax(scores: Floats, axis: int = -1) -> Floats:
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    total: Floats = e / e.sum(axis=axis, keepdims=True)
    return total


def textbook(
    q: Floats, k: Floats, v: Floats, allowed: Any = True, scale: float | None = None, added: Any = 0.0
) -> Floats:
    """softmax(scale Q K^T + added) V on as many kv heads as query heads; every row sees something."""
    scores = (q.shape[-1] ** -0.5 if scale is None else scale) * q @ k.swapaxes(-1, -2) + added
    out: Floats = softmax(np.where(allowed, scores, -np.inf)) @ v
    return out


def past(rows: int, keys: int | None = None, start: int = 0) -> Floats:
    """Which keys a causal mask shows, if the first row stands at `start`."""
    keys = rows if keys is None else keys
    seen: Floats = np.arange(keys) <= np.arange(rows)[:, None] + start
    return seen


def turned(
    x: Floats,
    at: Any,
    base: float = 10000.0,
    *,
    width: int | None = None,
    interleaved: bool = False,
    of: int | None = None,
    times: Any = 1.0,
) -> Floats:
    """Rotary embedding of the first `width` entries; of: the width in the exponent; times: a factor of each frequency."""
    width = x.shape[-1] if width is None else width
    frequencies = base ** (-np.arange(0, width, 2) / (width if of is None else of)) * times
    angle = np.asarray(at)[..., :, None] * frequencies
    cos, sin = np.cos(angle), np.sin(angle)
    out = x.copy()
    if interleaved:
        a, b = x[..., 0:width:2], x[..., 1:width:2]
        out[..., 0:width:2], out[..., 1:width:2] = a * cos - b * sin, a * sin + b * cos
    else:
        a, b = x[..., : width // 2], x[..., width // 2 : width]
        out[..., : width // 2], out[..., width // 2 : width] = a * cos - b * sin, a * sin + b * cos
    return out
