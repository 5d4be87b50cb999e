"""Two sides agree with each other and not with what was meant: what else may have been meant, so that both are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.arrays import is_array
from polyattn.conventions.call import Call, call_of
from polyattn.masks.algebra import Mask
from polyattn.parity.backward_pass import BackwardPass
from polyattn.parity.meaning import meaning_of
from polyattn.rotary import Rotary
from polyattn.truth.measure import ACCEPTANCE, eta
from polyattn.truth.spec import Floats

__all__ = ["meant_instead"]

_Change = tuple[str, dict[str, Any]]  # in words, and the arguments


def meant_instead(call: Call, meant: Mapping[str, Any], outs: Sequence[Floats], dtype: str) -> list[str]:
    """The one argument of `meant`, written as it would be given, that makes all the outputs (B, Hq, L, E) right.

    Several where they cannot be told apart on these inputs; none where no single change does it.
    """
    found = []
    for words, changes in _changes(call, meant):
        arguments = {
            name: x for name, x in {**meant, **changes}.items() if x is not None and name != "layout"
        }
        try:
            other = call_of(call.q, call.k, call.v, arguments, who="polyattn.parity.compare")
            meaning = meaning_of(other, dtype)
        except (TypeError, ValueError):  # arguments that do not go together
            continue
        heads = slice(0, call.shape[1] // call.k.shape[1])
        part = BackwardPass(meaning, outs[0]).part(0, 0).meaning.judged()["out"]
        if any(eta(out[:1, heads], part, dtype) > ACCEPTANCE for out in outs):
            continue
        whole = meaning.judged()["out"]
        if all(eta(out, whole, dtype) <= ACCEPTANCE for out in outs):
            found.append(words)
    return found


def _changes(call: Call, meant: Mapping[str, Any]) -> Iterator[_Change]:
    """Every argument, given otherwise."""
    rows, keys = call.shape[2:]
    causal = bool(meant.get("is_causal", False))
    if not causal and rows == keys:
        yield "is_causal=True", {"is_causal": True}
    elif not causal:
        yield 'is_causal=True with query_offset="end"', {"is_causal": True, "query_offset": "end"}
        yield "is_causal=True with query_offset=0", {"is_causal": True, "query_offset": 0}
    else:
        yield "is_causal=False", {"is_causal": False}
    if np.any(np.asarray(call.offset) != 0):
        yield "query_offset=0", {"query_offset": 0}
    if np.any(np.asarray(call.offset) != keys - rows):
        yield 'query_offset="end"', {"query_offset": "end"}
    yield from _dropped(meant)
    mask = meant.get("mask")
    if isinstance(mask, Mask) or (mask is not None and is_array(mask)):
        yield "mask=~mask (True = may attend)", {"mask": ~mask}
    if meant.get("bias") is not None:
        yield "bias=-bias", {"bias": -meant["bias"]}
    width = max(call.q.shape[3], 1)
    for words, scale in (("1.0", 1.0), ("1 / sqrt(D)", width**-0.5), ("1 / D", 1 / width)):
        if scale != call.scale:
            yield f"scale={words}", {"scale": scale}
    if call.sinks is None:
        yield "sinks=zeros (exp(score) over 1 + the sum)", {"sinks": np.zeros(call.shape[1])}
    yield from _turned(call)


def _dropped(meant: Mapping[str, Any]) -> Iterator[_Change]:
    for name in ("mask", "scale", "score_mod", "bias", "sinks", "rotary"):
        if meant.get(name) is not None:
            yield f"no {name}=", {name: None}


def _turned(call: Call) -> Iterator[_Change]:
    if call.rotary is None:
        if call.q.shape[3] % 2 == 0:
            yield "rotary=Rotary()", {"rotary": Rotary()}
            yield "rotary=Rotary(interleaved=True)", {"rotary": Rotary(interleaved=True)}
        return
    other = not call.rotary.interleaved
    yield f"a rotary with interleaved={other}", {"rotary": replace(call.rotary, interleaved=other)}
