"""Mistakes in the factor on the scores."""

from __future__ import annotations

from polyattn.conventions.call import Call
from polyattn.conventions.causes.cause import Applies, Cause, always, equal_widths

__all__ = ["SCALES"]


def _scale(choice: str, text: str, applies: Applies = always) -> Cause:
    def sentence(call: Call) -> str:
        return text.format(
            D=call.q.shape[3],
            V=call.v.shape[3],
            E=call.embed_dim,
            S=call.k.shape[2],
            KV=call.k.shape[1] * call.q.shape[3],
            s=f"{call.scale:.4g}",
        )

    return Cause("scale", choice, sentence, applies)


SCALES = (
    _scale("1", "scale = 1 (scores not divided)"),
    _scale("1/sqrt(embed_dim)", "scale = 1/sqrt({E}) (model width, not head width)"),
    _scale("1/sqrt(D)", "scale = 1/sqrt({D}) (the default, not the scale that was asked for)"),
    _scale("twice", "scale {s} applied twice"),
    _scale("after the softmax", "scale {s} applied to the weights, after the softmax"),
    _scale("1/D", "scale = 1/{D} (no square root)"),
    _scale("sqrt(D)", "scale = sqrt({D}) (multiplied, not divided)"),
    _scale("1/sqrt(S)", "scale = 1/sqrt({S}) (number of keys, not head width)"),
    _scale("1/sqrt(kv_heads D)", "scale = 1/sqrt({KV}) (width of all kv heads, not of one)"),
    _scale(
        "1/sqrt(E)",
        "scale = 1/sqrt({V}) (width of the values, not of the keys)",
        lambda c: not equal_widths(c),
    ),
)
