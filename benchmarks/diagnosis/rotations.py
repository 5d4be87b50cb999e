"""Rotary embedding, with the mistakes that are made there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyattn.rotary import Rotary

from .problems import Problem

HALF = Rotary()
PAIRS = Rotary(interleaved=True)


def turn(
    x: Tensor,
    positions: Tensor,
    rotary: Rotary,
    *,
    interleaved: bool | None = None,
    base: float | None = None,
    width: int | None = None,
    factor: float = 1.0,
    table: str = "cos sin",
) -> Tensor:
    """Rows at positions, which broadcast to (B, H, L). table: as the rows of cos and sin were made."""
    paired = rotary.interleaved if interleaved is None else interleaved
    width = width or x.shape[-1]
    half = width // 2
    powers = (base or rotary.base) ** (-torch.arange(half).double() / half)
    angle = positions.double()[..., None] / factor * powers
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if table == "sin cos":
        cos, sin = sin, cos
    if table == "backwards":
        sin = -sin
    turned, rest = x[..., :width], x[..., width:]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if paired else (turned[..., :half], turned[..., half:])
    pair = (a * cos - b * sin, a * sin + b * cos)
    if table == "mixed":  # each angle stands twice in a row, as it does for the other pairing
        cos, sin = (
            torch.cat((y, y), -1) if paired else y.repeat_interleave(2, -1)
            for y in (cos.expand(a.shape), sin.expand(a.shape))
        )
        other = torch.stack((-b, a), -1).flatten(-2) if paired else torch.cat((-b, a), -1)
        return torch.cat((turned * cos + other * sin, rest), -1)
    return torch.cat((torch.stack(pair, -1).flatten(-2) if paired else torch.cat(pair, -1), rest), -1)


def row(x: Tensor, start: float = 0.0) -> Tensor:
    return torch.arange(x.shape[2]).double() + start


def rotate(
    queries: float = 0,
    keys: bool = True,
    other: bool = False,
    from_0: bool = False,
    both: bool = True,
    later: float = 0,
    values: bool = False,
    twice: bool = False,
    **how: Any,
) -> Callable[..., Any]:
    """queries, later: by how much their positions and those of the keys are off; both False: keys alone."""

    def run(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if p.rotary is None:
            return q, k
        paired = p.rotary.interleaved is not other
        at, to = row(q, (0 if from_0 else p.start) + queries), row(k, later)
        for _ in range(1 + twice):
            q = turn(q, at, p.rotary, interleaved=paired, **how) if both else q
            k = turn(k, to, p.rotary, interleaved=paired, **how) if keys else k
        return (q, k, turn(v, row(v), p.rotary, interleaved=paired)) if values else (q, k)

    return run


def unasked(rotary: Rotary = HALF, **how: Any) -> Callable[..., Any]:
    return lambda p, q, k, v: (turn(q, row(q, p.start), rotary, **how), turn(k, row(k), rotary, **how))


def at(queries: Callable[[Problem, Tensor], Tensor], keys: Callable[[Problem, Tensor], Tensor]) -> Any:
    """Positions of queries and keys that are computed otherwise."""

    def run(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert p.rotary is not None
        return turn(q, queries(p, q), p.rotary), turn(k, keys(p, k), p.rotary)

    return run
