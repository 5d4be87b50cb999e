"""One output is made, diagnosed and judged; which ones there are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyattn.parity import ACCEPTANCE, Diagnosis, diagnose

from .defect import Defect, compatible
from .known import DEFECTS
from .naming import Named, names
from .problems import Problem, draw
from .right import COMPILES, IMPLEMENTATIONS
from .stages import Oracle, attend, stored
from .unknown import UNKNOWN

JOIN = " & "  # of the names of a pair
KINDS = ("singles", "pairs", "right", "unknown")

#: In units of what rounding explains, an effect that no output can hide: right code errs by up to 2.5 of them.
SHOWS = ACCEPTANCE + 2.5

#: What right outputs are asked for.
ASKED = (
    "", "causal", "mask", "padding", "left", "gqa", "bias", "softcap", "causal end", "causal first", "window",
    "window causal", "sinks", "alibi", "scale", "wide", "empty", "rotary", "gqa causal bias", "softcap causal gqa",
)  # fmt: skip

#: A right program may round inside; it does not keep its keys in other numbers.
ROUNDING = r"^(?!.*cache).*(float16|TF32)"


class Task(NamedTuple):
    """An output to be made: of a defect, of two, of an implementation or of an unknown error."""

    kind: str
    name: str
    dtype: str
    seed: int


@dataclass(frozen=True)
class Trial:
    """One output that was diagnosed.

    verdict: of defects first, alike (named, but not first), wrong, none, passed (as right); of others also agrees,
    rounding (a right program that rounds inside) and true (of an unknown error: what it says is so).
    """

    task: Task
    verdict: str
    seconds: float
    said: str
    moved: float  # by how many units of rounding the output is off
    group: str = ""


@cache
def _defects() -> dict[str, Defect]:
    return {defect.name: defect for defect in DEFECTS}


def tasks(kind: str, dtypes: list[str], seeds: int, first: int = 0) -> Iterator[Task]:
    """What is tried, in order. Of pairs there are as many as there are, in random order: take those that show."""
    for dtype in dtypes:
        if kind == "pairs":
            yield from drawn_pairs(dtype, first)
            continue
        for seed in range(first, first + seeds):
            if kind == "singles":
                yield from (Task(kind, defect.name, dtype, seed) for defect in DEFECTS)
            elif kind == "unknown":
                yield from (Task(kind, unknown.name, dtype, seed) for unknown in UNKNOWN)
            else:
                yield from (
                    Task(kind, f"{name} on {asked or 'nothing else'}", dtype, seed)
                    for asked in ASKED
                    for name in IMPLEMENTATIONS
                )


@cache
def _possible() -> tuple[tuple[Defect, Defect], ...]:
    return tuple(pair for pair in combinations(DEFECTS, 2) if compatible(*pair))


def drawn_pairs(dtype: str, first: int) -> Iterator[Task]:
    possible = _possible()
    order = np.random.default_rng(first).permutation(len(possible))
    for seed, i in enumerate(order, first):
        yield Task("pairs", JOIN.join(defect.name for defect in possible[i]), dtype, seed)


def run(task: Task) -> Trial | None:
    """None where there is nothing to judge: the defect does not show there, the library has no word for the problem."""
    torch.set_num_threads(1)
    return {"singles": _planted, "pairs": _planted, "right": _right, "unknown": _unknown}[task.kind](task)


def planted(task: Task) -> tuple[Problem, tuple[Defect, ...], Tensor, float] | None:
    """The problem, the defects in it, the output, and the least that one of them moves; None where that hides."""
    found = tuple(_defects()[name] for name in task.name.split(JOIN))
    p = draw(" ".join(d.needs for d in found), " ".join(d.without for d in found), task.seed, task.dtype)
    changes = [defect.changes(p) for defect in found]
    if len(set().union(*changes)) < sum(map(len, changes)):
        return None
    together = {name: stage for change in changes for name, stage in change.items()}
    oracle = Oracle(p)
    alone: list[dict[str, Any]] = [{}] if len(found) == 1 else [{}, *changes]
    moved = min(oracle.moved(together, beside) for beside in alone)
    if moved <= SHOWS:
        return None
    return p, found, stored(attend(p, together), task.dtype), moved


def _planted(task: Task) -> Trial | None:
    if (made := planted(task)) is None:
        return None
    p, found, out, moved = made
    kinds = sorted("fitted" if defect.fitted else "listed" for defect in found)
    group = found[0].group.split()[0] if len(found) == 1 else " + ".join(kinds)
    return _tried(task, p, out, [defect.named for defect in found], moved, group)


def _right(task: Task) -> Trial | None:
    name, _, asked = task.name.partition(" on ")
    needs = "" if asked == "nothing else" else asked
    p = draw(needs, "" if task.dtype == "float32" else "rotary", task.seed, task.dtype, name in COMPILES)
    out = IMPLEMENTATIONS[name](p)
    if out is None:
        return None
    plain = out if isinstance(out, Tensor) else torch.from_numpy(np.array(out).astype(np.float64))
    return _tried(task, p, out, None, Oracle(p).eta(plain), name)


def _unknown(task: Task) -> Trial | None:
    unknown = next(u for u in UNKNOWN if u.name == task.name)
    p = draw(unknown.needs, unknown.without, task.seed, task.dtype)
    out = stored(unknown.run(p, p.rng(unknown.name)), task.dtype)
    moved = Oracle(p).eta(out)
    return _tried(task, p, out, [unknown.true], moved, "") if moved > SHOWS else None


def _tried(task: Task, p: Problem, out: Any, named: list[Named] | None, moved: float, group: str) -> Trial:
    """diagnose, and whether it said what is so. named: None for right outputs."""
    q, k, v = p.arrays()
    began = time.perf_counter()
    d = diagnose(out, q, k, v, dtype=task.dtype, **p.context())
    seconds = time.perf_counter() - began
    word = _of_right(d) if named is None else verdict(d, named, p)
    if task.kind == "unknown":
        word = {"first": "true", "alike": "true"}.get(word, word)
    return Trial(task, word, seconds, str(d), moved, group)


def verdict(d: Diagnosis, planted: list[Named], p: Problem) -> str:
    if d.agrees:
        return "passed"
    if not d.findings:
        return "none"
    right = [names(finding.sentences, planted, p) for finding in (d.findings[0], *d.alike)]
    return "first" if right[0] else "alike" if any(right) else "wrong"


def _of_right(d: Diagnosis) -> str:
    if d.agrees:
        return "agrees"
    if not d.findings:
        return "none"
    inside = all(re.search(ROUNDING, said) for said in d.findings[0].sentences)
    return "rounding" if inside else "wrong"
