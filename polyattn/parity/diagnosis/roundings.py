"""Half precision inside: what right programs round besides their weights, and what nobody asked to be rounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.causes import LOW, ROUNDINGS, Cause, without_merge
from polyattn.conventions.settings import CONTRACT
from polyattn.parity.diagnosis.answering import answered
from polyattn.parity.diagnosis.case import REMAINS, Case, Explanation
from polyattn.parity.diagnosis.eager import TURNS, Loose, by_steps, turned
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.seen import rms
from polyattn.truth.measure import ACCEPTANCE, round_to
from polyattn.truth.spec import Floats

__all__ = ["HALVED", "allowed_beside", "inside", "rightly_rounded", "with_inputs"]

#: Simulating the roundings of a right program leaves an eta of at most 1.7 of the 4.3 to 40 that they caused.
HALVED = 1 / 2


#: Settings of what happens after the scores, which therefore may be computed before.
_AFTER_SCORES = {"mask", "polarity", "hidden", "empty_rows", "causal", "window", "sinks"}


def rightly_rounded(what: Explanation, dtype: str) -> Iterator[Explanation]:
    """The explanation as eager programs in half precision compute it: they store scores, and what was turned by rotary."""
    call, settings = what.call, what.settings
    if settings.precision != CONTRACT.precision:
        return
    scores, stored = f"scores rounded to {dtype}", f"query and key rounded to {dtype} after rotary"
    changed = set(settings.changes())
    asked = call.rotary is not None or "rotary" in changed
    turns = asked and settings.rotary in TURNS and not {"layout", "operands"} & changed

    def of(call: Call, *words: str, stage: str | None = None, loose: Floats | None = None) -> Explanation:
        low = settings if stage is None else replace(settings, precision=f"{dtype} {stage}")
        return Explanation(call, low, (*what.words, *words), what.causes, loose)

    by_hand = changed - {"rotary"} <= _AFTER_SCORES and turns == asked
    if not turns and not by_hand:
        yield of(call, scores, stage="scores")
        return
    words: tuple[str, ...] = (scores,)
    q, k = Loose(call.q), Loose(call.k)
    if turns:
        q, k = turned(call, settings.rotary, dtype)
        settings = replace(settings, rotary=CONTRACT.rotary)
        words = (stored, scores)
        early = replace(call, q=q.value, k=k.value, rotary=None)
        yield of(early, stored)
        if not by_hand:
            yield of(early, *words, stage="scores")
            return
    for before, fused in _ways(call):
        given, off = by_steps(call, q, k, dtype, *before, fused=fused)
        yield of(given, *words, loose=off)


def _ways(call: Call) -> Iterator[tuple[tuple[float, float], bool]]:
    """Where the scale comes, before the product or after it, and whether steps after that are one program."""
    yield (1.0, 1.0), False
    if call.scale <= 0:
        return
    root = math.sqrt(call.scale)
    exact, exact_root = (math.frexp(x)[0] == 0.5 for x in (call.scale, root))  # a power of 2 rounds nothing
    if not exact or call.softcap is not None or call.shift is not None or call.bias is not None:
        yield (1.0, 1.0), True
    if not exact:
        yield (call.scale, 1.0), False
    if not exact_root:
        yield (root, root), False


def with_inputs(call: Call, dtype: str) -> Call:
    """The call whose query, key and value were rounded."""
    q, k, v = (round_to(x, dtype) for x in (call.q, call.k, call.v))
    return replace(call, q=q, k=k, v=v)


def allowed_beside(case: Case, explanations: Iterable[Explanation], most: float = REMAINS) -> list[Finding]:
    """Explanations that hold beside the roundings of a right program, each with the fewest that it needs; `HALVED` for
    what would be right without them: little was wrong then."""
    found = []
    for what in explanations:
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
