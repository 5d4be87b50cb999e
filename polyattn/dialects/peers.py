"""What the libraries behind the dialects make of the cases of the contract, asked in their own words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn.dialects import libraries
from polyattn.dialects.table import DIALECTS
from polyattn.parity.case import Case, Later
from polyattn.parity.cases import cases
from polyattn.parity.reasons import blind_rows, why_infinite
from polyattn.truth.definition import truth
from polyattn.truth.measure import ACCEPTANCE, eta

__all__ = ["PeerOutcome", "by_case", "judge", "peer_table"]


@dataclass(frozen=True)
class PeerOutcome:
    """What one library made of one case."""

    case: str
    rules: str  # of the contract
    peer: str
    eta: float | None  # None: the case cannot be said, or the library refused it
    sentence: str = ""  # why there is no eta, or why it is infinite
    word: str = ""  # that in a cell of a table

    @property
    def agrees(self) -> bool:
        return self.eta is not None and self.eta <= ACCEPTANCE


def peer_table(
    only: Sequence[Case] | None = None, peers: Sequence[str] = (), seed: int = 0
) -> Iterator[PeerOutcome]:
    """Every case of the contract in float32 on every library here, through its dialect and without repair.

    One column after the other; libraries that are not installed give no outcomes.
    """
    for name in peers or libraries.PEERS:
        library = libraries.library_of(name)
        if isinstance(library, str):
            continue
        for case in cases() if only is None else only:
            yield judge(libraries.PEERS[name], library, case, seed)


def by_case(outcomes: Iterable[PeerOutcome]) -> dict[str, dict[str, PeerOutcome]]:
    """case -> peer -> outcome"""
    table: dict[str, dict[str, PeerOutcome]] = {}
    for outcome in outcomes:
        table.setdefault(outcome.case, {})[outcome.peer] = outcome
    return table


def judge(peer: libraries.Peer, library: libraries.Library, case: Case, seed: int = 0) -> PeerOutcome:
    """One case on one library."""
    dialect, sample = DIALECTS[peer.dialect], case.sample(seed, "float32")

    def convert(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        return library.array(x.astype(np.float32) if x.dtype.kind == "f" else x)

    options = {
        name: value.make(convert) if isinstance(value, Later) else convert(value)
        for name, value in sample.options.items()
    }
    query, key, value = (convert(x) for x in sample.inputs or (sample.spec.q, sample.spec.k, sample.spec.v))
    try:
        said = dialect.from_polyattn(query, key, value, repair=False, **options)
        found = library.call(said)
    except Exception as error:  # whatever a library raises is its answer
        sentence = " ".join(str(error).split()).removeprefix(f"{dialect.who('from_polyattn')}: ")
        return PeerOutcome(case.name, case.rule_numbers, peer.name, None, sentence)
    spec = sample.spec
    out = libraries.heads_apart(dialect, found, spec.q.shape[1])
    judged = truth(spec)["out"]
    ratio = eta(out.astype(np.float64), judged, "float32")
    if not math.isinf(ratio):
        return PeerOutcome(case.name, case.rule_numbers, peer.name, ratio)
    why = why_infinite(out, judged, blind_rows(spec))
    return PeerOutcome(case.name, case.rule_numbers, peer.name, ratio, why.sentence, why.word)
