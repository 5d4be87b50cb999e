"""The search among explanations: which call, of those that somebody may have meant, answers an observed output.

The output is compared with what an implementation with other settings would have returned (`polyattn.conventions.answers`):
one change at a time, with a number fitted, two changes at a time. What explains it must do so to rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.causes import CAUSES, NAMES, Cause
from polyattn.conventions.items import one_by_one
from polyattn.conventions.recognised import recognised
from polyattn.conventions.settings import CONTRACT
from polyattn.parity.diagnosis.case import Case, Explanation
from polyattn.parity.diagnosis.dropout import dropped
from polyattn.parity.diagnosis.findings import Diagnosis, Finding
from polyattn.parity.diagnosis.fitted import fitted
from polyattn.parity.diagnosis.partly import partly
from polyattn.parity.diagnosis.plainly import plain_findings
from polyattn.parity.diagnosis.profiling import profile_of
from polyattn.parity.diagnosis.ranking import ranked
from polyattn.parity.diagnosis.roundings import HALVED, allowed_beside, inside, with_inputs
from polyattn.parity.diagnosis.screening import CLOSE, Scored, Screen
from polyattn.parity.diagnosis.seen import Seen
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["searched"]

LARGE = (
    2**22
)  # scores beyond which changes that need every row are not tried in pairs, and no number is fitted beside a change
BESIDE = 10  # changes beside which a number is fitted, a rounding simulated and dropout recognised
CLOSEST = 6  # explanations beside which roundings of a right program are tried
#: What a mask that was given as one array says of position, when it is taken apart.
POSITIONAL = ("causal", "window")


def searched(call: Call, seen: Seen, pairs: bool = True) -> Diagnosis:
    """What explains the output, in the order in which things are likely."""
    case = Case(call, seen)
    stated = case.stated
    if stated <= ACCEPTANCE:
        return Diagnosis(stated, (), (), 0)
    where = profile_of(case)
    low, note = seen.lower(), ""
    if low is not None:
        note = f"; the output holds {NAMES[low]} numbers"
        case.measure(replace(seen, dtype=low))
        if case.stated <= ACCEPTANCE:
            return Diagnosis(stated, (_stored_in(low, case.stated, call),), (), 1, profile=where)
    if case.seen.low and (rounded := _rounded(case, low)) is not None:
        if low is None:
            return Diagnosis(stated, (), (), case.tried, note, rounded=rounded)
        return Diagnosis(stated, (rounded,), (), case.tried, profile=where)
    explained = Search(case).run(pairs)
    if low is not None:
        explained = [_stored(finding, low) for finding in explained]
    best, alike = ranked(case, explained)
    note += _not_finite(case)
    if not best:
        note += "".join(f"; {text} were not tried" for text in case.untried)
    return Diagnosis(stated, tuple(best), tuple(alike), case.tried, note, profile=where)


class Search:
    """One case against everything that is known."""

    def __init__(self, case: Case) -> None:
        self.case, self.screen = case, Screen(case)
        self.large = math.prod(case.call.shape) > LARGE
        self.readings = [case.call]
        if (other := recognised(case.call)) is not None:
            self.readings.append(other)
        self.applicable = [
            [c for c in CAUSES if any(c.applies(one) for one in one_by_one(call))] for call in self.readings
        ]
        self.effective = [
            list(self.screen.effective(call, causes))
            for call, causes in zip(self.readings, self.applicable, strict=True)
        ]

    def run(self, pairs: bool) -> list[Finding]:
        """What the first kind of explanation that explains anything says."""
        case = self.case
        singles = self.screen.scored(self._singles())
        close = list(singles)
        if found := self.screen.confirmed(singles) or plain_findings(case) or self._beside(singles):
            return found
        if found := fitted(case, self.screen, case.call, (), close):
            return found
        if pairs:
            for explanations in (self._pairs(), self._silent_pairs()):
                scored = self.screen.glanced(explanations)
                close += scored
                if found := self.screen.confirmed(scored) or self._beside(scored):
                    return found
            if found := self._fitted_beside(singles, close):
                return found
        if found := partly(case, close, _again):
            return found
        likely = [x.what.causes[0] for x in _likely(singles) if x.what.call is case.call]
        return inside(case, case.call, likely) or dropped(case, case.call, likely)

    # what is tried

    def _own(self, i: int, causes: Iterable[Cause]) -> list[Cause]:
        """The causes that a reading has for itself: the first has all, the second what the first cannot say."""
        if i == 0:  # where a mask is causal, causality is not what nobody asked for
            return [c for c in causes if len(self.readings) == 1 or not c.choice.startswith("unasked")]
        call = self.readings[i]
        bands = int(call.is_causal) + int(call.window is not None)
        alone = call.mask is None and bands == 1
        own = [c for c in causes if c.field in POSITIONAL and not (alone and c.choice == "dropped")]
        return (
            own
            if call.mask is None
            else own + [c for c in causes if c.field in ("mask", "polarity") and "all" not in c.choice]
        )

    def _explain(self, i: int, causes: tuple[Cause, ...]) -> Explanation:
        found = Explanation.of(self.readings[i], causes)
        if i == 0:
            return found
        words = tuple(
            f"{text} (its padding, not its causality or window)"
            if cause.field in ("mask", "polarity")
            else text
            for cause, text in zip(causes, found.words, strict=True)
        )
        return found._replace(words=words)

    def _singles(self) -> Iterator[Explanation]:
        for i, causes in enumerate(self.effective):
            yield from (self._explain(i, (cause,)) for cause in self._own(i, causes))

    def _pairs(self) -> Iterator[Explanation]:
        """Pairs of causes, in the order of the table."""
        for i, causes in enumerate(self.effective):
            own = self._own(i, causes)
            for pair in combinations(own if i == 0 else causes, 2):
                if (pair[0] in own or pair[1] in own) and self._compatible(pair):
                    yield self._explain(i, pair)

    def _silent_pairs(self) -> Iterator[Explanation]:
        """Some causes show only beside another: a key dropped that the stated mask hides."""
        for i, causes in enumerate(self.effective):
            own, silent = self._own(i, causes), [c for c in self.applicable[i] if c not in causes]
            for pair in product(own, silent):
                if self._compatible(pair):
                    yield self._explain(i, pair)

    def _compatible(self, pair: tuple[Cause, ...]) -> bool:
        if any(cause.rare for cause in pair):
            return False
        fields = {cause.field for cause in pair}
        if self.large and "softmax" in fields:
            self.case.leave_out(f"pairs with another softmax, at {_scores(self.case.call)},")
            return False
        return len(fields) == 2

    def _beside(self, scored: list[Scored]) -> list[Finding]:
        """In half precision: what explains the output beside the roundings of a right program."""
        if not self.case.seen.low:
            return []
        close = sorted((x for x in scored if x.left <= CLOSE), key=lambda x: x.left)[:CLOSEST]
        return allowed_beside(self.case, [x.what for x in close])

    def _fitted_beside(self, singles: list[Scored], close: list[Scored]) -> list[Finding]:
        """A fitted number beside a listed cause, of those that leave least to be explained."""
        if self.large:
            self.case.leave_out(f"pairs with a fitted number, at {_scores(self.case.call)},")
            return []
        # A cache is rounded anew for every number that is tried.
        likely = _likely([x for x in singles if all(cause.field != "cache" for cause in x.what.causes)])
        if len(likely) < len(singles):
            self.case.leave_out(
                f"fitted numbers beside {len(singles) - len(likely)} of {len(singles)} changes"
            )
        found = []
        for scored in likely:
            found += fitted(self.case, self.screen, scored.what.call, scored.what.causes, close)
        return found


def _likely(singles: list[Scored]) -> list[Scored]:
    """The changes beside which something else may be the matter: those that leave least, of each field the best two; and
    a merge, which moves all."""
    merges = [x for x in singles if any(cause.field == "merge" for cause in x.what.causes)]
    others, seen = list[Scored](), Counter[str]()
    for x in sorted((x for x in singles if all(x is not y for y in merges)), key=lambda x: x.left):
        field = x.what.causes[0].field
        seen[field] += 1
        others += [x] if seen[field] <= 2 else []
    return others[: BESIDE - len(merges)] + merges


def _again(rest: Case) -> list[Finding]:
    """What explains a few rows on their own."""
    search = Search(rest)
    return search.screen.confirmed(search.screen.scored(search._singles())) or plain_findings(rest)


def _rounded(case: Case, low: str | None) -> Finding | None:
    """What half precision rounds inside, where that is all; low: into which an output of more was rounded."""
    meant = Explanation.of(case.call, ())
    if low is None:
        return next(iter(allowed_beside(case, [meant], HALVED)), None)
    early = Explanation(with_inputs(case.call, low), CONTRACT, (f"query, key and value rounded to {low}",))
    if (found := case.finding(early, HALVED)) is None:
        allowed = allowed_beside(case, [meant, early], HALVED)
        if not allowed:
            return None
        found = allowed[0]
    stored = _stored_in(low, found.eta, case.call)
    return replace(found, settings=stored.settings, sentences=(*found.sentences, *stored.sentences))


def _stored_in(low: str, eta: float, call: Call) -> Finding:
    """A right output in a lower precision than was said."""
    settings = replace(CONTRACT, precision=f"{low} output")
    words = (f"computed or stored in {NAMES[low]}: every number of the output is one of that",)
    return Finding(settings, words, eta, call)


def _stored(finding: Finding, low: str) -> Finding:
    """The finding, and that the output was stored in a lower precision."""
    if "precision" in finding.settings.changes():
        return finding
    return replace(finding, settings=replace(finding.settings, precision=f"{low} output"))


def _not_finite(case: Case) -> str:
    """How many numbers are NaN or infinite that should not be."""
    said, counts = "", case.seen.counts
    for what, is_it in (("NaN", np.isnan), ("infinite", np.isinf)):
        if is_it(case.seen.out[counts]).any() and not is_it(case.contract.out[counts]).any():
            said += f"; {int(is_it(case.seen.out[counts]).sum())} of {counts.sum()} elements are {what}"
    return said


def _scores(call: Call) -> str:
    """How many scores there are, as a person would say it.

    >>> _scores(Call(np.zeros((1, 4, 1024, 1)), np.zeros((1, 4, 1024, 1)), np.zeros((1, 4, 1024, 1))))
    '4M scores'
    """
    count = math.prod(call.shape)
    return f"{count / 2**20:.0f}M scores" if count >= 2**20 else f"{count} scores"
