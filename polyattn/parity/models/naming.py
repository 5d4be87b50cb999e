"""Which tap of a port is which of the reference: by what its author says, by equal names, by order and shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from typing import Any

import numpy as np

from polyattn.parity.models.measuring import aligned, row_rms
from polyattn.parity.models.watching import OUTPUT
from polyattn.truth.spec import Floats

__all__ = ["Named", "Names", "Pairs", "check_names", "paired", "renamed"]

Names = Mapping[str, str] | Callable[[str], str | None] | None


@dataclass(frozen=True)
class Named:
    """A tap as far as matching goes."""

    name: str
    kind: str
    value: Floats
    given: Floats | None = None  # its first input


@dataclass(frozen=True)
class Pairs:
    """Taps of the reference -> taps of the port, and what there is to say of it."""

    names: Mapping[str, str]
    notes: tuple[str, ...] = ()
    guessed: frozenset[str] = frozenset()  # taps of the reference whose counterpart nobody named


def check_names(who: str, names: Any) -> None:
    """TypeError for what are no names."""
    if names is None or callable(names):
        return
    if isinstance(names, Mapping) and all(isinstance(x, str) for pair in names.items() for x in pair):
        return
    raise TypeError(
        f"{who}: expected names to be a dict from taps of the reference to those of the port, a function of a name, or None, "
        f"got {type(names).__name__}; write {{'model.layers.*.mlp': 'layers.*.mlp'}}"
    )


def renamed(glob: str, target: str, name: str) -> str | None:
    """What a name becomes by a pair of globs, each "*" filled with what stands there; None if it does not fit.

    >>> renamed("model.layers.*.self_attn", "blocks.*.attention", "model.layers.3.self_attn")
    'blocks.3.attention'
    """
    pattern = re.escape(glob).replace(r"\*", "([^.]*)")
    found = re.fullmatch(pattern, name)
    if found is None:
        return None
    filling = iter(found.groups())
    return re.sub(r"\*", lambda star: next(filling, star.group()), target)


def paired(names: Names, reference: Sequence[Named], port: Sequence[Named]) -> Pairs:
    """The taps that are compared, in the order of the reference; the whole model is always among them."""
    there, here = {t.name: t for t in port}, {t.name: t for t in reference}
    notes: list[str] = []
    matched: dict[str, str] = {}
    if names is None:
        found = {name: name for name in here if name in there}
        matched = _in_order(
            [t for t in reference if t.name not in found], [t for t in port if t.name not in found]
        )
        if matched:
            shown = ", ".join(f"{a} = {b}" for a, b in list(matched.items())[:4])
            more = f" and {len(matched) - 4} more" if len(matched) > 4 else ""
            notes.append(f"matched by order and shape: {shown}{more}; give names= where this is wrong")
        found |= matched
    else:
        found, notes = _told(names, here, there)
    if OUTPUT in here and OUTPUT in there:
        found.setdefault(OUTPUT, OUTPUT)
    alone = [name for name in here if name not in found]
    if alone and names is None:
        notes.append(f"no counterpart in the port: {_some(alone)}")
    pairs = {name: found[name] for name in here if name in found}
    return Pairs(pairs, tuple(notes), frozenset(matched))


def _told(
    names: Mapping[str, str] | Callable[[str], str | None],
    here: Mapping[str, Named],
    there: Mapping[str, Named],
) -> tuple[dict[str, str], list[str]]:
    """By what the author of the port says."""
    found: dict[str, str] = {}
    notes: list[str] = []
    rules = names.items() if isinstance(names, Mapping) else [("", "")]
    for glob, target in rules:
        made = {
            name: renamed(glob, target, name) if isinstance(names, Mapping) else names(name) for name in here
        }
        wanted = {name: new for name, new in made.items() if new is not None}
        if not wanted:
            notes.append(f"names: {glob!r} is no tap of the reference{_near(glob, here)}")
        lost = [new for new in wanted.values() if new not in there]
        if lost:
            notes.append(f"names: {_some(lost)} is no tap of the port{_near(lost[0], there)}")
        found |= {name: new for name, new in wanted.items() if new in there}
    twice = sorted({new for new in found.values() if list(found.values()).count(new) > 1})
    if twice:
        notes.append(f"names: {_some(twice)} of the port stands for several taps of the reference")
    return found, notes


def _near(name: str, there: Iterable[str]) -> str:
    near = get_close_matches(name, list(there), 3, 0.4)
    return f"; there is {', '.join(near)}" if near else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _in_order(reference: Sequence[Named], port: Sequence[Named]) -> dict[str, str]:
    """The best alignment of two sequences of taps: shapes must fit; values, kinds and names that are alike count for more."""
    n, m = len(reference), len(port)
    best = np.zeros((n + 1, m + 1))
    scores = np.array([[_alike(a, b) for b in port] for a in reference]).reshape(n, m)
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            take = best[i + 1, j + 1] + scores[i, j] if scores[i, j] > 0 else 0.0
            best[i, j] = max(best[i + 1, j], best[i, j + 1], take)
    found: dict[str, str] = {}
    i = j = 0
    while i < n and j < m:
        if scores[i, j] > 0 and best[i, j] == best[i + 1, j + 1] + scores[i, j]:
            found[reference[i].name] = port[j].name
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return found


def _alike(a: Named, b: Named) -> float:
    """0 where they cannot be the same."""
    seen = aligned(b.value, a.value)
    if seen is None or (a.name == OUTPUT) != (b.name == OUTPUT):
        return 0.0
    score = 1.0 + _words(a.name, b.name)
    if a.kind == b.kind:
        score += 1.0
    score += 2.0 if _near_by(seen, a.value) else 0.0
    if a.given is not None and b.given is not None:  # the last part of a component gives what the whole gives
        given = aligned(b.given, a.given)
        score += 1.0 if given is not None and _near_by(given, a.given) else 0.0
    return score


def _near_by(x: Floats, y: Floats) -> bool:
    """Alike to a tenth: no two different arrays of a model are, and a port that was wrong earlier still is."""
    with np.errstate(all="ignore"):
        apart = float(np.mean(row_rms(np.asarray(x, np.float64) - y)))
    return apart <= 0.1 * float(np.mean(row_rms(y)))


@cache
def _words(a: str, b: str) -> float:
    """How alike the last words of two names are, and their numbers."""
    same = re.findall(r"\d+", a) == re.findall(r"\d+", b)
    return SequenceMatcher(None, a[-24:], b[-24:]).ratio() + 0.5 * same
