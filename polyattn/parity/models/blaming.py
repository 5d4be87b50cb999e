"""Which components are wrong by themselves, and why: containers are not named beside the parts that explain them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from polyattn.parity.models.forcing import Forced, Own, coarser
from polyattn.parity.models.measuring import aligned, axes_of, elementwise, eta_of
from polyattn.parity.models.recording import facts_of
from polyattn.parity.models.records import Tap
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["WrongComponent", "blamed", "unlike"]


@dataclass(frozen=True)
class WrongComponent:
    """A component of the port that is wrong by itself, on the reference's own inputs."""

    name: str  # of the reference
    port_name: str
    kind: str
    eta: float  # on the inputs of the model, or on the probe that shows it
    probe: str  # "" as in the model, or "small", "large", "one-hot"
    cause: str | None

    def __str__(self) -> str:
        where = f" on {self.probe} inputs" if self.probe else ""
        same = "" if self.name == self.port_name else f" ({self.port_name})"
        return f"{self.name}{same}: {self.cause or 'no known cause'}; eta {self.eta:.2g}{where}"


def blamed(
    forced: Forced,
    owns: Mapping[str, Own],
    restless: AbstractSet[str],
    guessed: AbstractSet[str],
    excused: AbstractSet[str],
) -> list[WrongComponent]:
    """The wrong ones, parts before what holds them.

    restless: components whose output is another each time. guessed: those that nobody named. excused: see `unlike`.
    """
    wrong: dict[str, WrongComponent] = {}
    for name, own in owns.items():
        if name in excused:
            continue
        below = [part for part in forced.inside(name) if part in wrong]
        probe = next((label for label, eta in own.etas.items() if eta > ACCEPTANCE), None)
        if probe is None or not _accused(own, probe, bool(below)):
            continue
        tap = forced.record.taps[name]
        cause = "gives something else each time; is dropout on?" if name in restless else None
        cause = cause or _cause(forced, tap, own, probe)
        if name in guessed:
            cause = f"{cause or 'no known cause'} (matched by order and shape: is it the same part?)"
        eta = max(own.wiring or 0.0, *own.misfed.values()) if below and own.misfed else own.etas[probe]
        wrong[name] = WrongComponent(name, forced.pairs[name], tap.kind, eta, probe, cause)
    return list(wrong.values())


def unlike(
    forced: Forced, owns: Mapping[str, Own], free: Mapping[str, float], guessed: AbstractSet[str]
) -> frozenset[str]:
    """Pairs that nobody named and that give different things, inside something that is right: they are different parts.

    One library's norm has the gate in it, another's has not; what holds it agrees all the same.
    """
    found: set[str] = set()
    for name in reversed(list(owns)):  # what holds others comes after them
        holder = forced.parents[name]
        if name not in guessed or holder is None or holder in found:
            continue
        off = max(free[name], owns[name].etas.get("", 0.0))
        right = max(free[holder], owns[holder].etas.get("", 0.0)) <= ACCEPTANCE
        if off > ACCEPTANCE and right:
            found |= {name, *forced.inside(name)} & guessed
    return frozenset(found)


def _accused(own: Own, probe: str, explained: bool) -> bool:
    """A part that is wrong explains what holds it, unless this is wrong with right parts too, or feeds them wrongly."""
    if not explained or own.between:  # between taps nothing of the parts is left in it
        return True
    if probe:
        return False
    return (own.wiring or 0.0) > ACCEPTANCE or any(eta > ACCEPTANCE for eta in own.misfed.values())


def _cause(forced: Forced, tap: Tap, own: Own, probe: str) -> str | None:
    """Why, in a sentence."""
    site = forced.sites[forced.pairs[tap.name]]
    trial = next((t for t in tap.trials if t.label == probe), None)
    expected = tap.value if trial is None or own.between else trial.expected
    unit = (tap.unit if trial is None or own.between else trial.unit) * coarser(tap, site)
    seen = own.seen[probe]
    if seen.shape != expected.shape:
        axes = axes_of(seen, expected, unit)
        order = "" if axes is None else f"; its axes would be in the order {axes}"
        return f"has shape {seen.shape}, where the reference has {expected.shape}{order}"
    said = [_explained(forced, tap, site, own, (trial.inputs if trial else ()), expected, seen, unit)]
    if said == [None] and not own.between and not probe:
        said = [_wired(forced, tap, site, own) or _in_front(forced, tap, site, own)]
    if said != [None]:
        pass
    elif bad := [part for part, eta in own.misfed.items() if eta > ACCEPTANCE]:
        said.append(f"gives {', '.join(bad)} another input than the reference does")
    elif forced.inside(tap.name) and said == [None]:
        said.append(
            "wrong around its parts, with those of the reference in it too: residual, order of norms, what is added or scaled"
        )
    if own.kept:
        said.append(f"it kept inputs of its own without a counterpart: {', '.join(own.kept)}")
    if probe and said == [None]:
        said.append(f"wrong on {probe} inputs alone; is a small number in it another?")
    return "; ".join(x for x in said if x) or None


def _wired(forced: Forced, tap: Tap, site: Any, own: Own) -> str | None:
    """What it sums otherwise, and gives its parts, where these give what those of the reference do."""
    if not (own.wired is not None or own.given) or not tap.inputs:
        return None
    rewired = import_module("polyattn.parity.components.rewired")
    parts = []
    for name, parent in forced.parents.items():
        part = forced.record.taps[name]
        if parent != tap.name or not part.trials or forced.held(name) != tap.name:
            continue
        wrong = own.misfed.get(name, 0.0) > ACCEPTANCE
        unit = 0.0 if part.input_unit is None else part.input_unit
        parts.append(
            rewired.Part(
                name.removeprefix(f"{tap.name}."),
                part.kind == "norm",
                part.trials[0].expected,
                part.inputs[0] if part.inputs else None,
                own.given[name] if wrong else None,
                unit * coarser(tap, site),
            )
        )
    expected, unit = tap.trials[0].expected, tap.trials[0].unit * coarser(tap, site)
    said: str | None = rewired.explain_wiring(
        tap.kind,
        dict(zip(tap.paths, tap.inputs, strict=False)),
        parts,
        expected,
        own.wired,
        unit=elementwise(unit, expected),
    )
    return said


def _in_front(forced: Forced, tap: Tap, site: Any, own: Own) -> str | None:
    """Why something is wrong that is no part of the port, from what is given to the one behind it."""
    taps = forced.record.taps.values()
    inner = [t for t in taps if t.trials and _within(forced, t, {tap.name})]
    for part, seen in own.given.items():
        behind = forced.record.taps[part]
        if own.misfed[part] <= ACCEPTANCE or seen.shape != behind.inputs[0].shape:
            continue
        word = part.removeprefix(f"{tap.name}.")
        for other in inner:
            said = _unmatched(forced, other, behind, site, seen)
            if said is not None:
                return f"{other.name.removeprefix(f'{tap.name}.')}: {said}"
        explain = import_module("polyattn.parity.components.products").explain_products
        before = inner[: next((i for i, t in enumerate(inner) if t.name == part), 0)]
        outputs = {
            f"the output of {t.name.removeprefix(f'{tap.name}.')}": t.trials[0].expected for t in before
        }
        noise = None if behind.input_unit is None else behind.input_unit * coarser(behind, site)
        if noise is not None and seen.ndim > 1 and seen.dtype.kind == "f":
            said = explain(outputs, behind.inputs[0], seen, unit=noise)
            if said is not None:
                return f"{said} in front of {word}"
    return None


def _unmatched(forced: Forced, other: Tap, behind: Tap, site: Any, seen: Any) -> str | None:
    """Why a part of the reference that the port has not as a part is wrong: what it gives is what one behind it is given."""
    if other.name in forced.pairs or other.facts is None or other.facts.kind == "other":
        return None
    trial = other.trials[0]
    given, found = (aligned(x, trial.expected) for x in (behind.inputs[0], seen))
    if given is None or found is None or eta_of(given, trial.expected, trial.unit) > ACCEPTANCE:
        return None
    unit = elementwise(trial.unit * coarser(behind, site), trial.expected)
    explain = import_module("polyattn.parity.components").explain
    said: str | None = explain(other.facts, None, trial.inputs, trial.expected, found, unit=unit)
    return said


def _within(forced: Forced, tap: Tap, holders: set[str]) -> bool:
    """Whether it is called inside one of these, in the reference."""
    parent = tap.parent
    while parent is not None and parent not in holders:
        parent = forced.record.taps[parent].parent if parent in forced.record.taps else None
    return parent is not None


def _explained(
    forced: Forced, tap: Tap, site: Any, own: Own, inputs: Any, expected: Any, seen: Any, unit: Any
) -> str | None:
    if tap.facts is None or own.between or not inputs:
        return None
    parts = {t.name: t for t in forced.record.taps.values() if t.parent == tap.name and t.trials}
    more = {}
    for name, part in parts.items():
        word = name.removeprefix(f"{tap.name}.")
        more[f"child:{word}"] = part.trials[0].expected
        if part.inputs:
            more[f"input:{word}"] = part.inputs[0]
    facts = replace(tap.facts, arrays={**tap.facts.arrays, **more}) if more else tap.facts
    explain = import_module("polyattn.parity.components").explain
    said: str | None = explain(
        facts, facts_of(site), inputs, expected, seen, unit=elementwise(unit, expected)
    )
    return said
