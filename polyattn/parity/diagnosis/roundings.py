"""Half precision inside: what right programs round besides their weights, and what nobody asked to be rounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.causes import LOW, ROUNDINGS, Cause, without_merge
from polyattn.conventions.settings import CONTRACT
from polyattn.parity.diagnosis.case import REMAINS, Case, Explanation, answered
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.seen import rms
from polyattn.truth.measure import ACCEPTANCE, round_to
from polyattn.truth.spec import Floats

__all__ = ["allowed_beside", "inside", "rightly_rounded"]

#: Simulating the roundings of a right program leaves an eta of at most 1.7 of the 4.3 to 40 that they caused.
HALVED = 1 / 2


def rightly_rounded(what: Explanation, dtype: str) -> Iterator[Explanation]:
    """The explanation as eager programs in half precision compute it: they store scores, and what was turned by rotary."""
    call, settings = what.call, what.settings
    if settings.precision != CONTRACT.precision:
        return
    scores = f"scores rounded to {dtype}"
    turned = f"query and key rounded to {dtype} after rotary"

    def of(call: Call, stage: str | None, *words: str) -> Explanation:
        changed = settings if stage is None else replace(settings, precision=f"{dtype} {stage}")
        return Explanation(call, changed, (*what.words, *words), what.causes)

    yield of(call, "steps", scores)
    yield of(call, "scores", scores)
    plain = settings.rotary == CONTRACT.rotary and settings.layout == CONTRACT.layout
    if call.rotary is not None and plain:
        early = _turned(call, dtype)
        yield of(early, None, turned)
        yield of(early, "steps", turned, scores)
    if plain and call.scale > 0 and settings.scale == CONTRACT.scale and math.frexp(call.scale)[0] != 0.5:
        early = call if call.rotary is None else _turned(call, dtype)
        words = (scores,) if call.rotary is None else (turned, scores)
        for q, k in ((call.scale, 1.0), (math.sqrt(call.scale), math.sqrt(call.scale))):
            yield of(_scaled(early, q, k, dtype), "steps", *words)


def _turned(call: Call, dtype: str) -> Call:
    """The call whose query and key were turned, and stored."""
    assert call.rotary is not None
    at_q = np.arange(call.q.shape[2]) + np.reshape(call.offset, (-1, 1, 1))
    q, k = call.rotary(call.q, at_q), call.rotary(call.k, np.arange(call.k.shape[2]))
    return replace(call, q=_stored(q, dtype), k=_stored(k, dtype), rotary=None)


def _scaled(call: Call, q: float, k: float, dtype: str) -> Call:
    """The call whose query and key were scaled, and stored."""
    return replace(call, q=_stored(q * call.q, dtype), k=_stored(k * call.k, dtype), scale=1.0)


def _stored(x: Floats, dtype: str) -> Floats:
    return round_to(x.astype(np.float32).astype(np.float64), dtype)


def allowed_beside(case: Case, explanations: Iterable[Explanation]) -> list[Finding]:
    """Explanations that hold beside the roundings of a right program, each with the fewest that it needs."""
    found = []
    for what in explanations:
        # Where roundings are all that is wrong, what was wrong was small already.
        most = REMAINS if what.causes or what.call is not case.call else HALVED
        for rounded in rightly_rounded(what, case.seen.dtype):
            case.tried += 1
            if (finding := case.finding(rounded, most)) is not None:
                found.append(finding)
                break
    return found


def inside(case: Case, call: Call, causes: Iterable[Cause]) -> list[Finding]:
    """A lower precision inside: simulating it must remove most of the error, and the rest be of its size."""
    found = list[tuple[float, Finding]]()
    for tried in ((), *((cause,) for cause in causes)):
        others, undone = without_merge(tried)
        whole = case.seen.unmerged() if undone else case.seen
        seen = whole.at(np.unique(np.linspace(0, whole.out.shape[2] - 1, 16).astype(int)))
        what = Explanation.of(call, others)
        plain = answered(call, what.settings, seen.rows)
        if not seen.eta(plain) * seen.unit <= ACCEPTANCE * max(LOW.values()):
            continue  # wrong by more than any rounding
        before = rms(seen.gap(plain.out))
        for rounding in ROUNDINGS:
            unit = LOW[rounding.choice.partition(" ")[0]]
            if unit <= seen.unit:
                continue
            case.tried += 1
            named = Explanation.of(call, (*tried, rounding))
            simulated = answered(call, Explanation.of(call, (*others, rounding)).settings, seen.rows)
            ratio = seen.ratio(simulated)
            eta = float(np.max(ratio, initial=0.0))
            if rms(seen.gap(simulated.out)) < before / 3 and eta * seen.unit <= ACCEPTANCE * unit:
                # Ties make a few elements wrong, whatever the rounding was: most elements decide.
                missed = float(np.mean(np.minimum(ratio, ACCEPTANCE)))
                found.append((missed, Finding(named.settings, named.words, eta, call)))
    return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]
