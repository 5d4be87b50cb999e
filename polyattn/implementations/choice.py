"""Which implementation runs a problem, and why: a loop over those that the array library has."""

from __future__ import annotations

from typing import Any, NamedTuple

from polyattn.arrays import Backend
from polyattn.calls import shown
from polyattn.implementations.blockwise import BLOCKWISE
from polyattn.implementations.fused import Fused
from polyattn.implementations.implementation import Implementation, Output
from polyattn.implementations.nothing import asks_for_nothing, nothing
from polyattn.implementations.reference import REFERENCE
from polyattn.problem import Problem, say

NAMES = ("auto", "reference", "blockwise", "fused", "native")
#: Every library has these; an adapter may put kernels before them, or policies of its own.
GENERIC = (BLOCKWISE, REFERENCE)


class Choice(NamedTuple):
    """An implementation ready to run."""

    implementation: Implementation
    settings: Any
    why: str

    def run(self, p: Problem) -> Output:
        return nothing(p) if asks_for_nothing(p) else self.implementation.run(p, self.settings)


def implementations_of(backend: Backend) -> tuple[Implementation, ...]:
    """The implementations of a library, the one that "auto" likes best first."""
    return backend.implementations or GENERIC


def choose(p: Problem, wish: Any) -> Choice:
    """The implementation that was asked for, or for "auto" the first that accepts the problem and is worth it.

    ValueError with the reasons if what was asked for by name does not apply.
    """
    known = implementations_of(p.backend)
    automatic = isinstance(wish, str) and wish == "auto"
    settings = None if isinstance(wish, str) else wish
    named = known if automatic else [i for i in known if i.is_meant_by(wish)]
    if not named and not (isinstance(wish, Fused) or (isinstance(wish, str) and wish in NAMES)):
        line = f"write implementation={wish.__name__}()" if isinstance(wish, type) else "use 'auto'"
        raise ValueError(
            f"{p.who}: expected implementation 'auto', 'reference', 'blockwise', 'fused', 'native', a Reference, a "
            f"Blockwise or a Fused, got {shown(wish)}; {line}"
        )
    reasons: list[str] = []
    features = p.features
    for implementation in named:
        reason = implementation.refuses(p, features, settings)
        if reason is None and automatic:
            reason = implementation.passed_over(p)
        if reason is None:
            why = "; ".join(reasons) or implementation.why
            return Choice(implementation, settings, why if automatic else "asked for")
        reasons.append(f"not {implementation.name}: {reason}" if automatic else reason)
    name = named[0].name if named else "fused" if isinstance(wish, Fused) else wish
    nowhere = features.difference(*(i.accepts for i in named)) if named else frozenset()
    if nowhere:
        nobody = "it does not take" if len(named) == 1 else "none of them takes"
        got = f"with {say(nowhere)}, which {nobody}"
    else:
        kind = "fused kernel" if name == "fused" else "attention kernel"
        kind += " with tiles of a given size" if isinstance(wish, Fused) else ""
        got = f"where {'; '.join(reasons) or f'{p.backend.name} has no {kind}'}"
    raise ValueError(
        f"{p.who}: expected a problem that {_WORDS.get(name, name)} computes exactly for "
        f"implementation={name!r}, got one {got}; use 'auto'"
    )


_WORDS = {
    "native": "a kernel of the library",
    "fused": "a fused kernel",
    "blockwise": "the blockwise engine",
    "reference": "the definition",
}
