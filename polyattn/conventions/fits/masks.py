"""A mask that was moved, mirrored, taken of another batch item, or hides the diagonal too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.fits.evidence import Evidence
from polyattn.conventions.fits.probe import Fit
from polyattn.conventions.fits.ranges import masks_as_stated
from polyattn.truth.spec import Floats

__all__ = ["mask_places"]

STEPS = (1, -1, 2, -2)


def mask_places(evidence: Evidence) -> Iterator[Fit]:
    """The first way to misplace the mask that explains what was observed; each is tried on the probe before."""
    call = evidence.call
    if not evidence.by_heads or not masks_as_stated(evidence):
        return
    item, head = evidence.worst[0]
    stated = np.ones((1, 1, 1, 1), bool) if call.mask is None else call.mask
    for words, mask in _moved(call, stated):
        other = replace(call, mask=mask)
        if not np.array_equal(np.broadcast_to(mask, call.shape), np.broadcast_to(stated, call.shape)) and (
            evidence.raw.explained(evidence.cut_call(other, [item], [head]), mostly=True)
        ):
            found = list(evidence.masking("mask", f"mask {words}", other))
            if found:
                yield from found
                return


def _moved(call: Call, mask: Floats) -> Iterator[tuple[str, Floats]]:
    batch, heads, rows, keys = call.shape
    own = (np.arange(rows) + call.offset)[:, None] != np.arange(keys)
    yield "hides the diagonal, which nobody asked for: a token does not see itself", mask & own
    if mask.shape[0] == batch > 1:
        yield "applied in the first batch item alone", mask | (np.arange(batch) > 0)[:, None, None, None]
        if mask.shape[1] == 1 < heads:
            # Item b and head h lie at b H + h: B masks repeated as a whole, where each was to be repeated H times.
            which = np.arange(batch * heads).reshape(batch, heads) % batch
            words = f"repeated wrongly over the heads: head h of item b reads the mask of item (b {heads} + h) % {batch}"
            yield words, mask[which, 0]
        for n in dict.fromkeys((1, -1)) if batch > 2 else ():
            yield f"of the batch item {'before' if n > 0 else 'after'}", np.roll(mask, n, 0)
    if mask.shape[1] == heads > 1:
        yield "with its heads in reverse order", mask[:, ::-1]
    for axis, along in ((2, "rows"), (3, "keys")):
        if mask.shape[axis] > 1:
            yield f"in reverse order along the {along}", np.flip(mask, axis)
            for n in STEPS:
                yield (
                    f"moved by {n:+d} along the {along}, around the end",
                    np.roll(mask, n, axis),
                )
