"""How one tensor differs from another that it should equal, in words."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from polyattn.parity.components.orders import order_of, say_order
from polyattn.parity.components.pairing import content
from polyattn.truth.measure import UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["fresh", "moved_axes", "relation", "same_values"]


def relation(reference: Floats, port: Floats) -> str | None:
    """What port is, seen from reference, as the end of a sentence; None where both hold the same numbers.

    >>> relation(np.array([1.0, 2.0]), np.array([-1.0, -2.0]))
    'is negated'
    >>> relation(np.ones((2, 3)), np.zeros((2, 3)))
    'is 0 throughout, as before weights are loaded'
    """
    if reference.shape != port.shape:
        return _other_shape(reference, port)
    if np.array_equal(reference, port, equal_nan=True):
        return None
    a, b = reference.astype(np.float64), port.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        wrong = int((np.isfinite(a) & ~np.isfinite(b)).sum())
        return (
            f"holds {wrong} numbers that are NaN or infinite"
            if wrong
            else "differs where the reference is not finite"
        )
    return (
        fresh(b)
        or _multiple(a, b)
        or _rounded(a, b)
        or _moved(reference, port)
        or _few(a, b)
        or _low_rank(a, b)
        or _spread(a, b)
    )


def same_values(reference: Floats, port: Floats) -> str | None:
    """How port holds exactly the numbers of reference in another order, or ""; None where it does not.

    >>> same_values(np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T)
    'transposed'
    """
    if reference.shape == port.shape and np.array_equal(reference, port):
        return ""
    if reference.size != port.size or not np.array_equal(np.sort(reference, None), np.sort(port, None)):
        return None
    if reference.ndim == port.ndim == 2 and np.array_equal(reference.T, port):
        return "transposed"
    if np.array_equal(reference.ravel(), port.ravel()):
        return f"in shape {port.shape}, in the reference {reference.shape}"
    if (axes := moved_axes(reference, port)) is not None:
        return f"with its axes in the order {axes}"
    return _order(reference, port) or "with its numbers in another order"


def moved_axes(reference: Floats, port: Floats) -> tuple[int, ...] | None:
    """The order of axes in which port is reference; None where there is none but the one they have."""
    if not 2 < reference.ndim == port.ndim <= 5:
        return None
    orders = (a for a in permutations(range(reference.ndim)) if a != tuple(range(reference.ndim)))
    fitting = (a for a in orders if tuple(reference.shape[i] for i in a) == port.shape)
    return next((a for a in fitting if np.array_equal(reference.transpose(a), port)), None)


def _other_shape(reference: Floats, port: Floats) -> str:
    same = same_values(reference, port)
    if same == "transposed":
        return f"is transposed: {port.shape}, in the reference {reference.shape}"
    if same:
        return f"holds the same numbers {same}"
    if reference.ndim == port.ndim == 2 and reference.shape == port.shape[::-1]:
        inner = relation(np.ascontiguousarray(reference.T), port)
        return f"has the shape of the transposed, {port.shape} for {reference.shape}, and then {inner}"
    return f"has shape {port.shape}, in the reference {reference.shape}"


def _multiple(a: Floats, b: Floats) -> str | None:
    """b as a multiple of a, or a plus 1."""
    size = float((a * a).sum())
    if not size:
        return None
    factor = float((a * b).sum() / size)
    close = UNIT_ROUNDOFF["float32"] * 4
    if np.array_equal(b, -a):
        return "is negated"
    if factor and (np.abs(b - factor * a) <= close * np.abs(b)).all():
        return f"is {_number(factor)} times that of the reference"
    for sign, said in ((1.0, "is 1 more"), (-1.0, "is 1 less")):
        if (np.abs(b - a - sign) <= close * (1 + np.abs(a))).all():
            return f"{said} than in the reference (weight, and 1 + weight)"
    return None


def _number(x: float) -> str:
    root = round(x * x) if x > 1 else round(1 / (x * x)) if x > 0 else 0
    if root > 1 and math.isqrt(root) ** 2 != root:
        named = np.sqrt(root) if x > 1 else 1 / np.sqrt(root)
        if abs(x / named - 1) < UNIT_ROUNDOFF["float32"] * 8:
            return f"sqrt({root})" if x > 1 else f"1/sqrt({root})"
    return f"{x:.6g}"


def _rounded(a: Floats, b: Floats) -> str | None:
    if np.abs(a - b).max(initial=0.0) > np.abs(a).max(initial=0.0) / 127:
        return None  # no rounding moves as much, that to 8 bits least of all
    for name in ("bfloat16", "float16"):
        for x, y, said in (
            (a, b, f"is rounded to {name}"),
            (b, a, f"is not rounded to {name}, as the reference is"),
        ):
            if np.array_equal(round_to(x.astype(np.float32), name), y.astype(np.float32)):
                return said
    if np.array_equal(a.astype(np.float32), b):
        return "is rounded to float32"
    for axis, said in ((None, "a tensor"), (-1, "a row"), (0, "a column")):
        step = np.abs(a).max(axis, keepdims=True) / 127
        with np.errstate(all="ignore"):
            off = np.abs(np.where(step > 0, b - np.rint(a / step) * step, b))
        if a.size > 1 and a.ndim > (axis is not None) and (off <= 1e-3 * step).all():
            return f"is rounded to 8 bits, with one scale {said}"
    return None


def _moved(a: Floats, b: Floats) -> str | None:
    if content(a) != content(b):
        return None
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.array_equal(a.T, b):
        return "is transposed"
    said = _order(a, b)
    if said is None and a.ndim == 2 and a.shape[0] == a.shape[1] and (other := _order(a.T, b)) is not None:
        return f"is transposed, {other}"
    return None if said is None else f"is held {said}"


def _order(a: Floats, b: Floats) -> str | None:
    """b as a with rows, columns, or both in another order."""
    if a.shape != b.shape or np.unique(a).size < 2:
        return None
    if (rows := order_of(a, b)) is not None:
        return ("rows " if a.ndim > 1 else "") + say_order(rows)
    if a.ndim != 2:
        return None
    if (columns := order_of(a.T, b.T)) is not None:
        return f"columns {say_order(columns)}"
    rows = order_of(np.sort(a, 1), np.sort(b, 1))
    if rows is None or (columns := order_of(a[rows].T, b.T)) is None:
        return None
    return f"rows {say_order(rows)}, and columns {say_order(columns)}"


def fresh(b: Floats) -> str | None:
    """That a tensor looks as initialisers leave it."""
    if b.size and (b == b.flat[0]).all():
        return f"is {b.flat[0]:g} throughout, as before weights are loaded"
    return None


def _low_rank(a: Floats, b: Floats) -> str | None:
    """A difference of low rank, as an adapter is."""
    if a.ndim != 2 or min(a.shape) < 8:
        return None
    difference = b - a
    rank = rank_of(difference, UNIT_ROUNDOFF["float32"] * 4 * float(np.abs(a).max(initial=0.0)))
    if rank is not None and rank <= min(a.shape) // 4:
        return f"differs by a matrix of rank {rank}: an adapter (LoRA) that only one side has merged"
    return None


def rank_of(x: Floats, noise: float) -> int | None:
    """The rank of a matrix above noise of that size in each entry, by a sketch; None where it is above 1/4 of it, or 64."""
    cut = min(min(x.shape) // 4, 64) + 1
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(x @ rng.normal(size=(x.shape[1], cut)))
    values = np.linalg.svd(basis.T @ x, compute_uv=False)
    bound = max(noise * np.sqrt(max(x.shape)) * 2, float(values[0]) * 1e-6)
    rank = int((values > bound).sum())
    return None if rank >= cut else rank


def _few(a: Floats, b: Floats) -> str | None:
    """That it differs in few rows or columns."""
    if a.ndim != 2:
        return None
    wrong = a != b
    rows, columns = np.flatnonzero(wrong.any(1)), np.flatnonzero(wrong.any(0))
    for name, places, total in (("rows", rows, a.shape[0]), ("columns", columns, a.shape[1])):
        if len(places) < total / 4:
            shown = ", ".join(map(str, places[:4])) + (", ..." if len(places) > 4 else "")
            return f"differs in {len(places)} of {total} {name} ({shown})"
    return None


def _spread(a: Floats, b: Floats) -> str:
    """How much of it differs, and whether it is another tensor altogether."""
    wrong = a != b
    share = f"differs in {int(wrong.sum())} of {wrong.size} numbers"
    size = np.sqrt((a * a).sum() * (b * b).sum())
    likeness = float((a * b).sum() / size) if size else 0.0
    if wrong.mean() > 0.9 and abs(likeness) < 6 / np.sqrt(a.size) and np.ptp(a):
        return f"has nothing in common with the reference ({_drawn(b)}): never loaded, or another layer's"
    return f"{share}, by at most {np.abs(a - b).max():.3g}, correlation {likeness:.4f}"


def _drawn(b: Floats) -> str:
    """What its numbers look as if drawn from."""
    spread, mean = float(b.std()), float(b.mean())
    if not spread:
        return f"{mean:g} throughout"
    kurtosis = float((((b - mean) / spread) ** 4).mean())
    room = 4 * np.sqrt(24 / b.size)
    if abs(kurtosis - 1.8) < room:
        return f"uniform within {np.abs(b).max():.3g}, as initialised"
    if abs(kurtosis - 3.0) < room:
        return f"normal with deviation {spread:.3g}, as initialised"
    return f"deviation {spread:.3g}, in the tails unlike an initialiser"
