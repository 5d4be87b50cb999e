"""Why a block is wrong around its parts: what it sums, and what it gives to them, where they give what they should.

The block is called with every part answering as that of the reference does. What it then gives is a sum of its input and
those answers, and so is what each part is given; where a sum is another than in the reference, it is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polyattn.parity.components.explaining import explain
from polyattn.parity.components.facts.record import Facts
from polyattn.parity.components.sums import Sums
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Part", "explain_wiring"]

MOST = 3  # terms of a sum that a part is given


@dataclass(frozen=True)
class Part:
    """A part of a block, in the order of the calls."""

    name: str
    norm: bool
    gave: Floats  # in the reference
    given: Floats | None  # in the reference
    misfed: Floats | None  # in the port, where that is another
    unit: Floats | float = 0.0  # of what it is given


def explain_wiring(
    kind: str,
    inputs: Mapping[str, Floats],
    parts: Sequence[Part],
    expected: Floats,
    seen: Floats | None,
    *,
    unit: Floats | float,
) -> str | None:
    """What a block sums otherwise than the reference, in a sentence; None where it is no sum that is known.

    kind: of the block. inputs: of the block in the reference, by name, the main one first. parts: what they gave and were given there, and what the port gives them.
    seen: the output of the port's block where its parts give what those of the reference do, None where it is not known.
    expected, unit: as in
    `explain`. A sum is said only where it is what was seen, within 4 units.
    """
    terms = _terms(inputs, parts)
    if not terms:
        return None
    said = list(_given_parts(parts, terms, kind == "attention"))
    arrays = {f"child:{part.name}": part.gave for part in parts}
    last = None
    if seen is not None:
        last = explain(Facts("other", arrays), None, tuple(inputs.values()), expected, seen, unit=unit)
    if last is not None:
        said.append(f"at the end {last}" if said else last)
    return "; ".join(said) or None


def _terms(inputs: Mapping[str, Floats], parts: Sequence[Part]) -> dict[str, Floats]:
    """The inputs and what the parts gave, without those that are another again."""
    found = {f"the input {name}" if i else "the input": x for i, (name, x) in enumerate(inputs.items())}
    found |= {f"the output of {part.name}": part.gave for part in parts}
    kept = dict[str, Floats]()
    for name, x in found.items():
        if x.dtype.kind == "f" and np.isfinite(x).all() and x.any():
            wide = x.astype(np.float64)
            if not any(np.array_equal(wide, other) for other in kept.values()):
                kept[name] = wide
    return kept


def _given_parts(parts: Sequence[Part], terms: Mapping[str, Floats], crossed: bool) -> Iterator[str]:
    """Each part that is given another sum, with what that comes to."""
    changes = dict[str, tuple[dict[str, float], dict[str, float]]]()
    for part in parts:
        if part.misfed is not None and part.given is not None:
            own, was = (_sum_of(x, terms, part) for x in (part.misfed, part.given))
            if own is not None and was is not None and own != was:
                changes[part.name] = own, was
    normed = {f"the output of {part.name}" for part in parts if part.norm}
    # A norm that is given the same as ever has not moved.
    norms_too = any(part.norm and part.name in changes for part in parts)
    moved = [_moved(own, was, normed) for own, was in changes.values()] if norms_too else []
    for name, (own, was) in changes.items():
        why = "" if any(moved) else _why(own, was, normed, crossed)
        yield f"{name} is given {_words(own)}, not {_words(was)}{why}"
    if any(moved):
        yield next(said for said in moved if said)


def _sum_of(x: Floats, terms: Mapping[str, Floats], part: Part) -> dict[str, float] | None:
    """An array as a sum of few terms, each with a factor, the fewest first."""
    same = {name: term for name, term in terms.items() if term.shape == x.shape}
    if not same or not np.isfinite(x).all():
        return None
    wide = x.astype(np.float64)
    sums = Sums(same)
    for count in range(1, min(MOST, len(same)) + 1):
        for factors in sums.of(wide, count):
            off = np.asarray(sum(a * same[name] for name, a in factors.items())) - wide
            rms = np.sqrt(np.mean(off * off, -1, keepdims=True))
            grown = max(1.0, *(abs(a) for a in factors.values()))
            noise = np.asarray(
                part.unit if part.given is not None and x.shape == part.given.shape else np.max(part.unit)
            )
            if (rms <= ACCEPTANCE * grown * noise).all():
                return {name: factors[name] for name in terms if name in factors}
    return None


def _words(factors: Mapping[str, float]) -> str:
    return " + ".join(name if a == 1 else f"{a:.6g} x {name}" for name, a in factors.items())


def _moved(own: Mapping[str, float], was: Mapping[str, float], normed: set[str]) -> str | None:
    """That a part is given what a norm gave, where it was given the sum, or the reverse."""
    one, two = (len(x) == 1 and x.keys() <= normed for x in (own, was))
    if one == two:
        return None
    return (
        "the norms stand before the parts, not behind the sums"
        if one
        else "the norms stand behind the sums, not before the parts"
    )


def _why(own: Mapping[str, float], was: Mapping[str, float], normed: set[str], crossed: bool) -> str:
    """What a changed sum comes to: the residual left out, taken from elsewhere, scaled; or parts side by side."""
    lost, gained = [n for n in was if n not in own], [n for n in own if n not in was]
    *residual, branch = was  # what was there before, and what the last part added
    if not residual:
        inputs = all(name.startswith("the input") for name in (*own, *was))
        return ": self-attention for cross-attention, or the reverse" if inputs and crossed else ""
    if gained:
        where = "after the norm, not before it" if normed >= set(gained) else "from another place"
        return f": residual taken {where}" if branch in own and lost else ""
    if lost == residual:
        return f": residual ({_words({n: was[n] for n in lost})}) missing"
    if lost == [branch]:
        return f": in parallel, for {branch} is not in it yet"
    if not lost and own[branch] == was[branch]:
        changed = [n for n in residual if own[n] != was[n]]
        return f": residual multiplied by {own[changed[0]] / was[changed[0]]:.6g}" if changed else ""
    return (
        f": residual ({_words({n: was[n] for n in lost})}) missing"
        if set(lost) <= set(residual) and lost
        else ""
    )
