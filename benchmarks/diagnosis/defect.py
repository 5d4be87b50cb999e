"""A defect: what it changes, where that shows, and what must be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .naming import Named, Said
from .problems import Problem, conflict
from .stages import Stages

MASKED = "causal mask padding left window sliding empty"


@dataclass(frozen=True)
class Defect:
    """Stages that are changed (or a function of the problem that gives them), and what names that.

    group: what it is about; two of one group are no pair, as one of them may say both. fitted: it has a number.
    """

    name: str
    group: str
    named: Named
    needs: str
    stages: Any
    without: str = ""

    @property
    def fitted(self) -> bool:
        return any(said.one or said.each for said in self.named)

    def changes(self, p: Problem) -> Stages:
        found: Stages = self.stages(p) if callable(self.stages) else self.stages
        return found


def defect(
    name: str, group: str, named: str | Said | Named, needs: str = "", without: str = "", **stages: Any
) -> Defect:
    """As keywords: the stages."""
    said = (Said(named),) if isinstance(named, str) else (named,) if isinstance(named, Said) else named
    return Defect(name, group, said, needs, stages, without)


def computed(
    name: str, group: str, named: str | Said | Named, stages: Any, needs: str = "", without: str = ""
) -> Defect:
    """Where the stages depend on the problem."""
    said = (Said(named),) if isinstance(named, str) else (named,) if isinstance(named, Said) else named
    return Defect(name, group, said, needs, stages, without)


def compatible(a: Defect, b: Defect) -> bool:
    """Whether both can be in one program, on one problem, and two things are to be said of it."""
    needs = set(a.needs.split()) | set(b.needs.split())
    changed = [set(x.stages) if isinstance(x.stages, dict) else {"?"} for x in (a, b)]
    return not (
        changed[0] & changed[1]
        or set(a.group.split()) & set(b.group.split())
        or needs & set(f"{a.without} {b.without}".split())
        or conflict(needs)
    )
