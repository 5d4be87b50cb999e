"""What an implementation is: a name, what it accepts, and a function; what it does not list it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyattn.arrays import Array
from polyattn.problem import Problem, say


class Output(NamedTuple):
    """What an implementation computes, in canonical axes; None where the problem does not want it."""

    out: Array  # (B, Hq, L, E)
    lse: Array | None = None  # (B, Hq, L) over the keys alone, in the compute dtype like all that follow
    weights: Array | None = None  # (B, Hq, L, S)
    scores: Array | None = None  # (B, Hq, L, S), -inf where hidden
    max_scores: Array | None = None  # (B, Hq, L)


def no_reason(p: Problem) -> str | None:
    return None


def no_reason_so(p: Problem, settings: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to run a Problem.

    It computes exactly the contract for every problem whose features it lists, unless why_not gives a reason.
    The table that these make decides what "auto" chooses, prints the documentation and steers the tests.
    """

    name: str  # as `implementation=` has it; all kernels of a library are "native", of ours "fused"
    title: str  # what runs, in a sentence
    accepts: frozenset[str]  # names of `polyattn.problem.FEATURES`
    run: Callable[[Problem, Any], Output]
    why_not: Callable[[Problem], str | None] = no_reason  # a reason in the values of a problem
    why_not_so: Callable[[Problem, Any], str | None] = no_reason_so  # one that depends on the settings too
    passed_over: Callable[[Problem], str | None] = no_reason  # why "auto" leaves it, though it could
    why: str = ""  # why "auto" takes it
    settings: type | None = None  # an object of this type asks for it, with settings
    transforms: frozenset[str] = frozenset()  # of `TRANSFORMS`, those that it goes through

    def is_meant_by(self, wish: Any) -> bool:
        """Whether `implementation=wish` asks for it, by name or with its settings."""
        if isinstance(wish, str):
            return wish == self.name
        return self.settings is not None and isinstance(wish, self.settings)

    def refuses(
        self, p: Problem, features: frozenset[str] | None = None, settings: Any = None
    ) -> str | None:
        """Why it does not compute a problem; None if it does. features: those of p, where they are known."""
        if unlisted := (p.features if features is None else features) - self.accepts:
            return f"{self.title} does not take {say(unlisted)}"
        return self.why_not(p) or self.why_not_so(p, settings)


#: What a program may do with a call, by the words of the documentation.
TRANSFORMS = ("grad", "second order", "jvp", "vmap", "compile", "export")
