"""What the arguments of masks must be, and how arrays are fitted to the scores."""

from __future__ import annotations

from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.calls import array, integer, shown
from polyattn.places import Frame


def fit_array(array: Array, frame: Frame, name: str) -> Array:
    """A mask or bias array checked against the scores (lead..., H, L, S) and brought to rank 4."""
    lead = frame.lead
    scores = (*lead, frame.heads, frame.rows, frame.keys)
    shape = tuple(array.shape)
    advice = "write a key padding mask of shape (B, S) as mask[:, None, None, :], an (L, S) one as mask[None, None]"
    advice = advice.replace("mask[", f"{name}[")
    if len(shape) < 2:
        raise ValueError(f"{frame.who}: expected a {name} of rank 2 or more, got shape {shape}; {advice}")
    fits = len(shape) <= max(len(scores), 4) and all(
        n in (1, size) for n, size in zip(reversed(shape), (*reversed(scores), 1, 1), strict=False)
    )
    if not fits:
        other = (*lead, frame.rows, frame.heads, frame.heads)
        turned = frame.rows == frame.keys and shape[-1] == frame.heads
        if turned and all(n in (1, size) for n, size in zip(reversed(shape), reversed(other), strict=False)):
            advice = f"did you mean the other layout, in which the scores are {other}?"
        raise ValueError(
            f"{frame.who}: expected a {name} that broadcasts to the scores (..., Hq, L, S) = {scores}, "
            f"got shape {shape}; {advice}"
        )
    # Axes that the caller may take for the batch: B of (B, H, L, D), the first of (B, L, D).
    batch = {0: frame.heads, 1: frame.batch}.get(len(lead), 1)
    first_axis = len(scores) - len(shape)  # the axis of the scores that the first axis of the array falls on
    if first_axis > 0 and shape[0] == batch > 1:
        axes = ("B", "Hq", "L", "S")[1 - len(lead) :]
        raise ValueError(
            f"{frame.who}: expected a {name} whose first axis can be told apart, got shape {shape} for scores "
            f"({', '.join(axes)}) = {scores}, where its first axis could be {axes[0]} or {axes[first_axis]}; "
            + (
                advice
                if lead
                else f"write {name}[None] for (L, S), {name}[:, None, :] for one row per {axes[0]}"
            )
        )
    if len(scores) <= 4:
        return fill_rank(array, 4)
    xp = backend_of(array).xp
    here = (*(1,) * (len(scores) - len(shape)), *shape)[: len(lead)]
    tail = (*(1,) * (3 - len(shape)), *shape[-3:])
    if all(n == 1 for n in here):
        return reshape(array, (1, *tail))
    return reshape(xp.broadcast_to(array, (*lead, *tail)), (frame.batch, *tail))


def reshape(array: Array, shape: tuple[int, ...]) -> Array:
    return backend_of(array).xp.reshape(array, shape)


def positive(value: Any, function: str, name: str, least: int = 1) -> int:
    """A Python integer of at least `least`, or the sentence that says otherwise."""
    who = f"polyattn.masks.{function}"
    if isinstance(value, (tuple, list)) and function == "window" and len(value) == 2:
        raise TypeError(
            f"{who}: expected left and right one by one, got {shown(value)}; write masks.window(*sides)"
        )
    if isinstance(value, int) and value < least and function == "window":
        raise ValueError(f"{who}: expected {name} >= {least}, got {value!r}; use None for an unbounded side")
    return integer(who, name, value, least)


def sizes(value: Any, function: str, name: str, axes: int | None = None) -> tuple[int, ...]:
    """An integer of at least 1 for each axis; where their number is known, one integer is that of all of them."""
    if not isinstance(value, (list, tuple)):
        return (positive(value, function, name),) * (axes or 1)
    if not value or axes not in (None, len(value)):
        raise ValueError(
            f"polyattn.masks.{function}: expected {name} with one integer for each axis{f', {axes}' if axes else ''}, got "
            f"{shown(value)}; name every axis of the grid"
        )
    return tuple(positive(n, function, f"every number of {name}") for n in value)


def check_bools(who: str, given: Array, as_mask: str, as_bias: str) -> None:
    """A TypeError unless a mask is of bools, which says what to write for the numbers that others have in its place.

    as_mask: how the mask is written, with {} where it is compared; as_bias: how it is added to the scores.
    """
    backend = array(who, "mask", given)
    if backend.isdtype(given.dtype, "bool"):
        return
    visible, hidden = as_mask.format(" != 0"), as_mask.format(" == 0")
    if backend.compute_dtype(given.dtype) is None:
        line = f"write {visible} if 1 may attend, {hidden} if 1 hides"
    else:
        line = f"write {visible} if its numbers are 1 and 0, {as_bias} if they are 0 and -inf or large negative ones"
    raise TypeError(f"{who}: expected a bool mask (True = may attend), got dtype {given.dtype}; {line}")


def fill_rank(array: Array, rank: int) -> Array:
    """The array with axes of size 1 in front, up to a rank."""
    return array if array.ndim >= rank else reshape(array, (*(1,) * (rank - array.ndim), *array.shape))


def clipped(x: Array, least: int, most: int) -> Array:
    """xp.clip(x, least, most) in comparisons, which FlexAttention's compiler takes too."""
    xp = backend_of(x).xp
    x = xp.where(x < least, least, x)
    return xp.where(x > most, most, x)
