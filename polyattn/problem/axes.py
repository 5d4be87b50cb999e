"""The way from the axes of the caller to (batch, heads, length, width), and back."""

from __future__ import annotations

import math
from typing import NamedTuple

from polyattn.arrays import Array, backend_of
from polyattn.places import Frame

#: The functions that take a layout.
SAY_LAYOUT = ("polyattn.attention", "polyattn.attention_vjp", "polyattn.trace")


class Axes(NamedTuple):
    """How the caller writes his arrays: leading axes, rank, layout."""

    lead: tuple[int, ...]  # the broadcast leading axes; their product is the batch
    rank: int  # of query, key and value
    layout: str

    def enter(self, x: Array) -> Array:
        """query, key or value (..., H, N, W), whose leading axes may be 1, as (B|1, H, N, W)."""
        xp = backend_of(x).xp
        if self.layout == "BLHD":
            x = xp.permute_dims(x, (*range(x.ndim - 3), x.ndim - 2, x.ndim - 3, x.ndim - 1))
        if x.ndim == 4:
            return x
        if x.ndim < 4:
            return xp.reshape(x, (*(1,) * (4 - x.ndim), *x.shape))
        if all(n == 1 for n in x.shape[:-3]):
            return xp.reshape(x, (1, *x.shape[-3:]))
        if tuple(x.shape[:-3]) != self.lead:
            x = xp.broadcast_to(x, (*self.lead, *x.shape[-3:]))
        return xp.reshape(x, (math.prod(self.lead), *x.shape[-3:]))

    def leave(self, x: Array, *, width: bool) -> Array:
        """A result (B, H, L, ...) in the axes of the caller; only what has a width follows his layout."""
        xp = backend_of(x).xp
        if width and self.layout == "BLHD":
            x = xp.permute_dims(x, (0, 2, 1, 3))
        shape = (*self.lead, *(x.shape[1:] if self.rank > 2 else x.shape[2:]))
        return x if tuple(x.shape) == shape else xp.reshape(x, shape)

    def shape_of(self, frame: Frame, width: int | None) -> tuple[int, ...]:
        """The shape of the output of a problem with values of that width; None: of a result without one, as lse."""
        heads, rows = (frame.heads,) if self.rank > 2 else (), (frame.rows,)
        if width is None:
            return (*self.lead, *heads, *rows)
        inner = (*rows, *heads) if self.layout == "BLHD" else (*heads, *rows)
        return (*self.lead, *inner, width)

    def enter_cotangent(self, x: Array, frame: Frame, *, width: bool) -> Array:
        """The inverse of `leave`, for the gradient of a loss."""
        xp = backend_of(x).xp
        tail = (x.shape[-1],) if width else ()
        if width and self.layout == "BLHD":
            x = xp.reshape(x, (frame.batch, frame.rows, frame.heads, *tail))
            return xp.permute_dims(x, (0, 2, 1, 3))
        return xp.reshape(x, (frame.batch, frame.heads, frame.rows, *tail))

    def leave_gradient(self, gradient: Array, like: Array, *, qkv: bool) -> Array:
        """The gradient of an argument, in its shape; qkv: it is that of query, key or value."""
        xp, shape = backend_of(gradient).xp, tuple(like.shape)
        if qkv and self.layout == "BLHD":
            gradient = xp.permute_dims(gradient, (0, 2, 1, 3))
        if math.prod(gradient.shape) == math.prod(shape):
            return xp.reshape(gradient, shape)
        # Leading axes that were broadcast against the others: summed over.
        tail = tuple(gradient.shape[1:] if not qkv or len(shape) > 2 else gradient.shape[2:])
        gradient = xp.reshape(gradient, (*self.lead, *tail))
        lead = (*(1,) * (gradient.ndim - len(shape)), *shape)[: len(self.lead)]
        axes = tuple(i for i, n in enumerate(lead) if n == 1)
        return xp.reshape(xp.sum(gradient, axis=axes, keepdims=True), shape)


def shapes(
    who: str, layout: str, query: Array, key: Array, value: Array, *, suggest: bool = True
) -> tuple[Axes, list[tuple[int, int, int]]]:
    """The axes, and (heads, length, width) of query, key and value; ValueError where they do not fit together.

    suggest: ask whether the other layout is meant, where they fit in that.
    """
    given = [tuple(x.shape) for x in (query, key, value)]

    def wrong(expected: str, advice: str) -> ValueError:
        other = "BLHD" if layout == "BHLD" else "BHLD"
        if suggest and who in SAY_LAYOUT and all(len(shape) >= 4 for shape in given):
            try:
                shapes(who, other, query, key, value, suggest=False)
            except ValueError:
                pass
            else:
                advice = f"did you mean layout={other!r}, in which they fit?"
        names = f"query {given[0]}, key {given[1]}, value {given[2]} in layout {layout}"
        return ValueError(f"{who}: expected {expected}, got {names}; {advice}")

    rank = len(given[0])
    if rank < 2 or any(len(shape) != rank for shape in given):
        raise wrong("query, key and value of one rank, 2 or more", "add the axes that are missing, of size 1")
    turned = given
    if layout == "BLHD":
        if rank < 3:
            raise wrong(
                "rank 3 or more (..., length, heads, width)", "use layout 'BHLD' for a single head (L, D)"
            )
        turned = [(*shape[:-3], shape[-2], shape[-3], shape[-1]) for shape in given]
    (hq, _, d), (hk, s, dk), (hv, sv, _) = found = [
        (shape[-3] if rank > 2 else 1, shape[-2], shape[-1]) for shape in turned
    ]
    if d != dk:
        raise wrong("query and key of one width D", "project them to the same width")
    if s != sv:
        raise wrong("key and value of one length S", "every key needs its value")
    if hk != hv:
        raise wrong("key and value of one number of heads", "every key head needs its value head")
    if (hk == 0 and hq > 0) or (hk and hq % hk):
        raise wrong(
            "a number of query heads that is a multiple of the number of key heads",
            "grouped heads read key head h // (Hq // Hkv); check the layout",
        )
    lead: list[int] = []
    for sizes in zip(*(shape[:-3] for shape in turned), strict=True):
        several = [n for n in sizes if n != 1]
        if any(n != several[0] for n in several):
            raise wrong("leading axes that broadcast against each other", "give each axis one size, or 1")
        lead.append(several[0] if several else 1)
    return Axes(tuple(lead), rank, layout), found
