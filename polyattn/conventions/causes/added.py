"""Mistakes in the soft cap and in what is added to the scores."""

from __future__ import annotations

from polyattn.conventions.causes.cause import Cause, both, has, masked, say, square, varies

__all__ = ["ADDED"]

ADDED = (
    Cause("softcap", "dropped", say("soft cap ignored"), has("softcap")),
    Cause("softcap", "after the mask", say("soft cap applied after the mask: hidden keys leak at -cap"), both(has("softcap"), masked)),
    Cause("softcap", "rational", say("soft cap as x / (1 + |x| / cap), not cap tanh(x / cap)"), has("softcap")),
    Cause("softcap", "before the scale", say("soft cap applied before the scale"), has("softcap")),
    Cause("softcap", "after the bias", say("soft cap applied after the bias"), lambda c: c.softcap is not None and (c.bias is not None or c.shift is not None)),
    Cause("softcap", "tanh alone", say("soft cap without its factor: tanh(x / cap)"), has("softcap")),
    Cause("shift", "dropped", say("score modification ignored"), has("shift")),
    Cause("shift", "before the scale", say("score modification added before the scale: (q k + shift) scale"), has("shift")),
    Cause("bias", "dropped", say("bias ignored"), has("bias")),
    Cause("bias", "before the scale", say("bias added before the scale: (q k + bias) scale"), has("bias")),
    Cause("bias", "subtracted", say("bias subtracted"), has("bias")),
    Cause("bias", "twice", say("bias added twice"), has("bias")),
    Cause("bias", "transposed", say("bias transposed: rows and keys exchanged"), both(varies("bias", 2, 3), square)),
    Cause("bias", "after the softmax", say("bias added to the weights, after the softmax"), has("bias")),
    Cause("bias", "first head's", say("bias of the first head used for all"), varies("bias", 1), rare=True),
    Cause("bias", "heads reversed", say("bias of the heads in reverse order"), varies("bias", 1), rare=True),
    Cause("bias", "first item's", say("bias of the first batch item used for all"), varies("bias", 0), rare=True),
)  # fmt: skip
