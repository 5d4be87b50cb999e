"""Which of several explanations comes first, and which cannot be told apart."""

from __future__ import annotations

from polyattn.parity.diagnosis.case import Case
from polyattn.parity.diagnosis.findings import Finding
from polyattn.parity.diagnosis.seen import rms
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["ranked"]


def ranked(case: Case, found: list[Finding]) -> tuple[list[Finding], list[Finding]]:
    """The explanations, the best first; and those that are the same as the first on these inputs.

    Among the same ones the order of the table decides: the usual suspects come first.
    """
    if len(found) < 2 or any(finding.call is None or finding.part for finding in found):
        return found, []
    misfit = {id(finding): rms(case.noise(finding)) for finding in found}
    best = min(found, key=lambda finding: misfit[id(finding)])
    # A rounding inside is reproduced only up to ties.
    up_to = ACCEPTANCE if "precision" in best.settings.changes() else None
    same = [finding for finding in found if finding is best or case.same(best, finding, up_to)]
    others = sorted((f for f in found if all(f is not x for x in same)), key=lambda f: misfit[id(f)])
    return [same[0], *others], same[1:]
