"""What another library can be told: every feature of a problem, and what may carry it in a dialect.

A feature that is not here, or none of whose ways a dialect has, is refused in a sentence made from this table: a new
argument of attention is refused by every dialect until somebody says here how it is carried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["CARRIED", "Carried", "Way"]

#: The role of a parameter; or a question of the table, and those of its answers that will do.
Way = str | tuple[str, ...]


class Carried(NamedTuple):
    """How one feature can be said: any of the ways will do."""

    ways: tuple[Way, ...]
    question: str = ""  # whose answer a refusal cites
    instead: str = "leave it out, or call polyattn.attention"  # what to do where there is no way


_MASK: tuple[Way, ...] = ("mask", "block_mask", "bias")  # -inf in a bias hides as well
_BIAS: Way = ("bias", "bias", "mask", "score_mod")  # the answers to the question of the same name
_CAP: tuple[Way, ...] = (("softcap", "before the bias", "after the bias"), "score_mod")
_ALWAYS: tuple[Way, ...] = ("query",)  # multiplied into the query, or part of a mask, or seen there

#: The features of `Problem.features`; after these, the finer ones that a translator finds in them.
CARRIED: Mapping[str, Carried] = {
    "causal": Carried(("causal", ("causal", "in the window"), *_MASK), "causal"),
    "mask": Carried(("causal", "window", "left", *_MASK), "bool mask"),
    "query_offset": Carried(_ALWAYS),
    "traced_offset": Carried(_ALWAYS),
    "positions": Carried(_ALWAYS),
    "bias": Carried((_BIAS,), "bias", "nothing else there can express it: leave it out"),
    "score_mod": Carried((_BIAS, *_CAP), "bias", "nothing else there can express it: leave it out"),
    "scale": Carried(_ALWAYS),
    "sinks": Carried(
        (("sinks", "given"), _BIAS), "sinks", "nothing else there can express them: leave them out"
    ),
    **{
        name: Carried((), "", "nothing there can express it: call polyattn.attention")
        for name in ("sigmoid", "softpick", "sparsemax", "entmax15", "top_k", "normalizer")
    },
    "dropout": Carried((), "", "it draws other weights to drop from any seed: ask it for its own dropout"),
    "dense mask": Carried(_MASK, "bool mask", "only causality and windows can be said there: leave it out"),
    "softcap": Carried(_CAP, "softcap", "nothing else there can express it: leave it out"),
    "function": Carried(("score_mod",), "bias", "nothing there can express it: call polyattn.attention"),
    "value width": Carried((("value width", "any", "some"),), "value width", "pad the narrower with zeros"),
    "float64": Carried(
        (("float64", "float64", "unknown"),), "float64", "cast them, or keep float64 with polyattn.attention"
    ),
    "no keys": Carried((("no keys", "0", "unknown"),), "no keys", "return zeros without the call"),
    "empty row": Carried((("empty row", "0", "0, causal mean"), *_MASK), "empty row", "leave those rows out"),
}
