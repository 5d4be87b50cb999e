"""The sides of a comparison: what each gave, and how far off it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from polyattn.parity.diagnosis import Diagnosis
from polyattn.parity.reasons import Reason
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["STAGES", "Side", "Worst"]

#: What `polyattn.trace` calls its stages, in the order of the definition.
STAGES = ("scores", "after softcap", "biased", "masked", "row maximum", "weights", "output", "lse")


@dataclass
class Side:
    """One of the two implementations, and what it gave."""

    name: str
    library: str
    etas: dict[str, float] = field(
        default_factory=dict
    )  # "out", "dq", "dk", "dv" -> error in units of rounding
    values: dict[str, Floats] = field(default_factory=dict)  # the same names, float64, in BHLD
    stages: dict[str, Floats] = field(default_factory=dict)
    stage_etas: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    reasons: dict[str, Reason] = field(default_factory=dict)  # why an eta is infinite
    diagnosis: Diagnosis | None = None
    allowed: tuple[str, ...] = ()  # what it rounds beside what a kernel does, and was judged by
    gradient_causes: dict[str, str] = field(
        default_factory=dict
    )  # "dq" -> what explains it, where out is right

    @property
    def agrees(self) -> bool:
        """Whether everything that it gave is the truth to rounding, be it to roundings that are named in `allowed`."""
        return self.error is None and bool(self.etas) and max(self.etas.values()) <= ACCEPTANCE


@dataclass(frozen=True)
class Worst:
    """The element on which the two differ most."""

    quantity: str
    index: tuple[int, ...]  # in BHLD
    f: float
    g: float
    truth: float
