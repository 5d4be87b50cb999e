"""Dropout that was left on, recognised by its two values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.causes import Cause, without_merge
from polyattn.conventions.dropped import dropout_rate
from polyattn.parity.diagnosis.answering import answered
from polyattn.parity.diagnosis.case import Case, Explanation
from polyattn.parity.diagnosis.findings import Finding

__all__ = ["dropped"]

FEW, MANY = (12, 3), (48, 8)  # rows and heads that decide whether it is worth while, and whether it is so


def dropped(case: Case, call: Call, causes: Iterable[Cause]) -> list[Finding]:
    """Dropout left on, alone or with one other change."""
    found = list[tuple[float, Finding]]()
    for tried in ((), *((cause,) for cause in causes)):
        case.tried += 1
        others, undone = without_merge(tried)
        seen = case.seen.unmerged() if undone else case.seen
        what = Explanation.of(call, others)
        some = seen.at(np.unique(np.linspace(0, seen.out.shape[2] - 1, FEW[0]).astype(int)))
        part = answered(call, what.settings, some.rows)
        if dropout_rate(some.out, part, some.unit, *FEW, trusted=some.trusted) is None:
            continue
        expected = answered(call, what.settings, seen.rows)
        rate = dropout_rate(seen.out, expected, seen.unit, *MANY, trusted=seen.trusted)
        if rate is not None:
            named = Explanation.of(call, tried)
            words = (*named.words, f"dropout of the weights left on (rate about {rate:.2g})")
            found.append((rate, Finding(named.settings, words, seen.eta(expected), call)))
        if found and not tried:
            break
    # A wrong explanation leaves more to be explained by dropping.
    return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]
