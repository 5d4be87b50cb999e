"""The claims of the table, put to the libraries themselves.

A question is a few calls. They are written down plainly, each argument in the parameter that plays its role, and
what comes back is compared with what `conventions.answer` gives under the settings of a choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.conventions.answers import answer
from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.dialects.libraries import PEERS, Library, heads_apart, library_of
from polyattn.dialects.question import Convention, WrittenCall
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Record
from polyattn.dialects.table import DIALECTS
from polyattn.dialects.words import Words, spell
from polyattn.mods import softcap
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["ABSENT", "answers_as_judged", "calls", "check", "fits", "plainly"]

#: Where an answer is that there is no parameter of this role, the signature tells.
ABSENT = {
    ("causal", "in the mask"): ("causal",),
    ("mask and causal", "no flag"): ("causal",),
    ("mask and causal", "no mask"): ("mask",),
    ("window", "in the mask"): ("window", "left"),
    ("softcap", "none"): ("softcap", "score_mod"),
    ("sinks", "none"): ("sinks",),
    ("sinks", "zero"): ("sinks",),
    ("lse", "none"): ("lse", "aux"),
    ("bias", "none"): ("bias", "score_mod"),
    ("empty bias row", "no bias"): ("bias", "score_mod"),
    ("bool mask", "refused"): ("mask",),
    ("float mask", "refused"): ("mask",),
}


def check(dialect: str, question: str) -> str | None:
    """What the library of a dialect does otherwise than the table says, as a sentence; None if nothing.

    ImportError without the library.
    """
    d = DIALECTS[dialect]
    claim = d.answers[question].choice
    absent = ABSENT.get((question, claim))
    if absent is not None and not any(d.of(role) for role in absent):
        return None
    if fits(dialect, question, d.choice(question)):
        return None
    others = [
        choice.says
        for name, choice in QUESTIONS[question].choices.items()
        if name not in (claim, "unknown") and fits(dialect, question, choice)
    ]
    found = f"it fits {' or '.join(map(repr, others))}" if others else "it is something else"
    return f"{dialect}: {QUESTIONS[question].asks}: the table says {d.choice(question).says!r}; {found}"


def fits(dialect: str, question: str, choice: Convention) -> bool:
    """Whether the library does what one choice of an answer says, on every call of the question."""
    d, library = DIALECTS[dialect], _library(dialect)
    if question == "lse":
        return _lse(d, library) == choice.says
    return all(_fits(d, library, question, case, choice) for case in calls(d, question))


def _library(dialect: str) -> Library:
    library = library_of(next(peer.name for peer in PEERS.values() if peer.dialect == dialect))
    if isinstance(library, str):
        raise ImportError(library)
    return library


def calls(d: Record, question: str) -> Iterator[WrittenCall]:
    """Small calls whose result depends on the answer to a question."""
    rng = np.random.default_rng(7)

    def numbers(*shape: int) -> Floats:
        return rng.normal(size=shape).astype(np.float32).astype(np.float64)

    def call(
        rows: int = 3, keys: int = 3, heads: int = 2, kv_heads: int = 2, width: int = 16, **more: Any
    ) -> Call:
        k = numbers(1, kv_heads, keys, 16)  # some kernels take no narrower ones
        more = {"scale": 0.25, "embed_dim": 32} | more
        return Call(numbers(1, heads, rows, 16), k, numbers(1, kv_heads, keys, width), **more)

    some = np.array([[[[1, 1, 0], [0, 1, 1], [1, 0, 1]]]], bool)
    gap = some.copy()
    gap[..., 1, :] = False
    bias = numbers(1, 1, 3, 3)
    hollow = bias.copy()
    hollow[..., 1, :] = -np.inf

    def poisoned() -> Iterator[WrittenCall]:
        for name in ("k", "v"):
            made = call(mask=some & (np.arange(3) < 2) | (np.arange(3) == 0))
            getattr(made, name)[0, :, 2] = np.nan  # in every head: heads that lie side by side mix it
            yield WrittenCall(made)

    if question == "float mask":
        return iter([WrittenCall(call(mask=some), numbers=True)])
    if question == "float64":
        return iter([WrittenCall(call(), dtype="float64")])
    if question == "poison":
        return poisoned()
    if question == "causal":
        return (WrittenCall(call(rows=rows, keys=4, is_causal=True, offset=1)) for rows in (2, 1))
    asked: Mapping[str, dict[str, Any]] = {
        "layout": {"heads": 3, "kv_heads": 3},
        "bool mask": {"mask": some},
        "empty row": {"mask": gap},
        "bias": {"bias": bias},
        "empty bias row": {"bias": hollow},
        "mask and causal": {"mask": some | (np.arange(3) == 0), "is_causal": True},
        "window": {"rows": 4, "keys": 6, "window": (1, 1), "offset": 1}
        if not d.chose("window", "with itself")
        else {"rows": 4, "keys": 6, "window": (2, None), "is_causal": True, "offset": 2},
        "scale": {"scale": 0.3},
        "grouped heads": {"heads": 4},
        "value width": {"width": 3},
        "softcap": {"softcap": 0.7, "bias": bias if d.of("score_mod") is None else None},
        "sinks": {"sinks": numbers(2)},
        "no keys": {"keys": 0},
    }
    return iter([WrittenCall(call(**asked[question]))])


def plainly(d: Record, library: Library, case: WrittenCall, turned: bool = True) -> Words:
    """A call as somebody says it who knows the names of the parameters, and turned masks round if need be."""
    call = case.call

    def array(x: Floats | None) -> Any:
        return None if x is None else library.array(x if x.dtype == bool else x.astype(case.dtype))

    mask, bias = call.mask, call.bias
    if mask is not None and case.numbers:
        mask = mask.astype(np.float64)
    elif mask is not None and turned and d.chose("bool mask", "ignore"):
        mask = ~mask
    if bias is not None and d.chose("bias", "mask"):
        mask, bias = bias, None
    if (
        mask is not None and d.of("bias") is not None and d.of("mask") is None
    ):  # what hides is -inf in the bias
        hiding: Any = np.where(mask, 0.0 if bias is None else bias, -np.inf)
        mask, bias = None, hiding
    cap = call.softcap
    return Words(
        array(call.q),
        array(call.k),
        array(call.v),
        causal=call.is_causal,
        window=call.window,
        mask=array(mask),
        bias=array(bias),
        scale=call.scale
        if d.of("scale") is not None and call.scale != 1.0 / call.q.shape[3] ** 0.5
        else None,
        softcap=cap if d.of("score_mod") is None else None,
        score_mod=softcap(cap) if cap is not None and d.of("score_mod") is not None else None,
        sinks=array(call.sinks),
    )


def answers_as_judged(dialect: str, case: WrittenCall) -> bool | None:
    """Whether the library returns what `Record.settings` says, if the arguments are passed on by name.

    None where it has no words for the call, or refuses it by its own table."""
    d = DIALECTS[dialect]
    library = _library(dialect)
    if [name for name in d.refusals(case) if name != "layout"]:
        return None
    if case.call.mask is not None and case.call.bias is not None and d.chose("bias", "mask"):
        return None  # one place for both
    found = _asked(d, library, case, turned=False)
    return None if found is None else _matches(found, case, d.settings(case))


def _asked(
    d: Record, library: Library, case: WrittenCall, turned: bool = True, laid: bool = True
) -> Floats | None:
    """What a library returns, (B, H, L, E) in float64; None if it refuses. laid: in its own layout."""
    with library.scope():
        words = plainly(d, library, case, turned)
        try:
            said = spell(d, words)
            if not laid:  # the arrays as they are
                said |= {
                    p.name: getattr(words, p.role[0])
                    for p in d.parameters
                    if p.role in ("query", "key", "value")
                }
            return heads_apart(d, library.call(said), case.call.q.shape[1]).astype(np.float64)
        except Exception:  # whatever it is, it is a refusal
            return None


def _fits(d: Record, library: Library, question: str, case: WrittenCall, choice: Convention) -> bool:
    found = _asked(d, library, case, turned=question != "bool mask", laid=question != "layout")
    if found is None or choice.refused(case):
        return found is None and choice.refused(case)
    if question == "layout":
        settings = Settings(**choice.changes(case))
        if (d.result or d.answers["layout"].choice) == "BLHD" and d.chose("layout", "BLHD"):
            found = found.swapaxes(1, 2)  # as the arrays were given, without regard to the layout
    else:
        attend = QUESTIONS["bool mask"].choices["attend"]
        settings = d.settings(case, **{"bool mask": attend, question: choice})
    return _matches(found, case, settings)


def _matches(found: Floats, case: WrittenCall, settings: Settings) -> bool:
    with np.errstate(all="ignore"):
        expected = answer(case.call, settings)
        # A softmax in float32 is exact to float32 alone.
        unit = UNIT_ROUNDOFF["float32" if settings.precision != "as stated" else case.dtype]
        if found.shape != expected.out.shape:
            return False
        near = np.abs(found - expected.out) <= ACCEPTANCE * unit * expected.condition
    same = (found == expected.out) | (np.isnan(found) & np.isnan(expected.out)) | near
    if settings.precision != "as stated" and same.all():  # and is not exact to float64
        return not _matches(found, case, Settings())
    return bool(same.all())


def _lse(d: Record, library: Library) -> str:
    """What the log of the sum of exp(score) is, in the words of the table."""
    choices = QUESTIONS["lse"].choices
    if d.of("lse") is None:
        return choices["none"].says
    case = next(calls(d, "bias" if d.of("bias") is not None else "scale"))
    found = {}
    for dtype in ("float32", "float16"):
        words = plainly(d, library, replace(case, dtype=dtype))
        words.lse = True
        found[dtype] = np.asarray(library.call(spell(d, words))[1])
    call, lse = case.call, found["float32"].astype(np.float64)
    s = call.scale * call.q @ call.k.swapaxes(-1, -2) + (0.0 if call.bias is None else call.bias)
    natural = np.log(np.exp(s).sum(-1))
    if lse.shape != natural.shape:
        lse = lse.swapaxes(1, 2)
    if not np.allclose(
        lse, natural, rtol=0, atol=4 * UNIT_ROUNDOFF["float32"] * (1 + np.abs(s).max() * math.e)
    ):
        return "another logarithm"
    low = found["float16"].dtype != np.float32
    return choices["natural, low" if low else "natural"].says
