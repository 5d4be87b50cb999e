"""What a question to a library of attention is, and what an answer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings

__all__ = ["Changes", "Convention", "Question", "WrittenCall"]


@dataclass(frozen=True)
class WrittenCall:
    """A call as it is meant, and how it is written down."""

    call: Call
    layout: str = "BHLD"  # of query, key and value
    dtype: str = "float32"
    numbers: bool = False  # the mask came as 0.0 and 1.0
    lse: bool = False


Changes = Mapping[str, str]


@dataclass(frozen=True)
class Convention:
    """One answer: in words, and as `conventions.Settings` (those that differ from the contract)."""

    says: str
    settings: Changes | Callable[[WrittenCall], Changes] = field(default_factory=dict)
    refuses: bool = False  # a call that raises the question is an error
    unmasked: bool = False  # ... only if it has no mask

    def refused(self, case: WrittenCall) -> bool:
        """Whether a call that raises the question is an error."""
        return self.refuses and not (self.unmasked and case.call.mask is not None)

    def changes(self, case: WrittenCall) -> Changes:
        return self.settings(case) if callable(self.settings) else self.settings


@dataclass(frozen=True)
class Question:
    """`asks` is a row of the table; `raised` tells whether a call depends on the answer, where a library reads it with
    these settings (`READING`).

    The first choice is the commonest.
    """

    asks: str
    choices: Mapping[str, Convention]
    raised: Callable[[WrittenCall, Settings], bool]
