"""Numbers recovered by least squares, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Numbers", "figure", "pick", "polish", "solve"]

STEPS = 14  # of Gauss and Newton, from a point of the grid
STARTS = 3  # points of the grid from which it begins
DOUBT = 6.0  # standard deviations within which a number is what it is read as
CHANCE = 0.1  # a reading among many is one only if fewer than so many would lie as near by chance


class Numbers(NamedTuple):
    """One number for each of some problems."""

    values: Floats  # (n,)
    doubts: Floats  # (n,): how far the truth may be
    found: Floats  # (n,) bool: whether rounding explains what the number leaves


def solve(residual: Callable[[Floats], Floats], grid: Floats, n: int = 1) -> Numbers:
    """The number of each of n problems that brings its residual to 0: the best points of a grid, then Gauss and Newton.

    residual takes n numbers and gives (n, m) errors in units of rounding.

    >>> solve(lambda x: (x[:, None] ** 2 - 2.0) * 1e6, np.linspace(0.5, 3.0, 6)).values.round(6)
    array([1.414214])
    """
    losses = np.stack([_loss(residual(np.full(n, x))) for x in grid])  # (grid, n)
    starts = _minima(losses)
    best, size = np.full(n, np.nan), np.full(n, np.inf)
    doubt, worst = np.full(n, np.inf), np.full(n, np.inf)
    for start in starts:
        x = grid[start]
        step = np.gradient(grid)[start] if len(grid) > 1 else np.ones(n)
        x, loss, doubts, most = _descend(residual, x, np.abs(step))
        better = loss < size
        best, size = np.where(better, x, best), np.where(better, loss, size)
        doubt, worst = np.where(better, doubts, doubt), np.where(better, most, worst)
        if (worst <= ACCEPTANCE).all():
            break
    return Numbers(best, doubt, worst <= ACCEPTANCE)


def polish(residual: Callable[[float], Floats], x: float) -> tuple[float, float]:
    """A number that is nearly right, and how far the truth may be, from more of the output."""
    found = solve(lambda y: residual(y[0]).reshape(1, -1), np.array([x]))
    return (float(found.values[0]), float(found.doubts[0])) if found.found[0] else (x, np.inf)


def _minima(losses: Floats) -> list[Floats]:
    """The points where each problem's loss is least among its neighbours, the lowest first: STARTS arrays of n indices."""
    padded = np.pad(losses, ((1, 1), (0, 0)), constant_values=np.inf)
    least = (losses <= padded[:-2]) & (losses <= padded[2:])
    order = np.argsort(np.where(least, losses, np.inf), axis=0, kind="stable")
    return list(order[:STARTS])


def _descend(
    residual: Callable[[Floats], Floats], x: Floats, step: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    r = residual(x)
    loss = _loss(r)
    slope = np.full(x.shape, np.nan)
    for count in range(STEPS):
        h = np.maximum(1e-6 * np.abs(x), 1e-9)
        with np.errstate(all="ignore"):
            j = (residual(x + h) - r) / h[:, None]
            jj = np.sum(j * j, -1)
            move = -np.sum(j * r, -1) / jj
        slope = np.where(np.isfinite(jj), jj, slope)
        move = np.where(np.isfinite(move), np.clip(move, -2 * step, 2 * step), 0.0)
        for _ in range(6):  # shorter steps where the loss rises
            with np.errstate(all="ignore"):
                r_new = residual(x + move)
            rises = ~(_loss(r_new) <= loss)
            if not (rises & (move != 0)).any():
                break
            move = np.where(rises, np.where(np.abs(move) > 1e-9 * np.abs(x), move / 4, 0.0), move)
        else:
            move = np.where(rises, 0.0, move)
            r_new = residual(x + move)
        x, r, old = x + move, r_new, loss
        loss = _loss(r)
        if (np.abs(move) <= 1e-12 * np.abs(x)).all() or (loss >= (0.9 if count > 2 else 0.999) * old).all():
            break  # near a root every step takes most of what is left
    with np.errstate(all="ignore"):
        doubt = DOUBT * np.maximum(loss, 0.3) / np.sqrt(slope)
    return (
        x,
        loss,
        np.where(np.isfinite(doubt), np.maximum(doubt, 1e-9 * np.abs(x)), np.inf),
        np.abs(r).max(-1),
    )


def _loss(r: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return np.sqrt(np.mean(np.square(np.nan_to_num(r, nan=1e30, posinf=1e30, neginf=-1e30)), -1))


def pick(
    value: float, doubt: float, readings: Iterable[tuple[float, str]], family: bool = False
) -> tuple[float, str] | None:
    """The first reading within the doubt. family: of many numbers that lie close, so that one of them fits by chance
    unless the doubt is much smaller than the gaps.

    >>> pick(0.5001, 0.001, [(0.25, "a quarter"), (0.5, "a half")])
    (0.5, 'a half')
    """
    listed = [(x, words) for x, words in readings if math.isfinite(x)]
    near = [(x, words) for x, words in listed if abs(x - value) <= doubt]
    if not near:
        return None
    if family:
        gaps = sorted(abs(x - near[0][0]) for x, _ in listed if x != near[0][0])
        if gaps and 2 * doubt > CHANCE * gaps[0]:
            return None
    return near[0]


def figure(x: float, doubt: float = 0.0) -> str:
    """A number with as many digits as are known, three at least and six at most.

    >>> figure(0.94281, 1e-2), figure(0.94281, 1e-5), figure(30.0)
    ('0.943', '0.9428', '30')
    """
    digits = 6
    if doubt > 0 and x:
        known = abs(x) / doubt  # 0 where it may be anything
        digits = min(max(math.floor(math.log10(known)), 3), 6) if known else 3
    return f"{x:.{digits}g}"
