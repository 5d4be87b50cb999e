"""The teacher-forced run: every component of a port with the reference's own inputs, so that each answers for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from polyattn.parity.models.feeding import fed
from polyattn.parity.models.measuring import aligned, eta_of, roundoff
from polyattn.parity.models.noise import Values
from polyattn.parity.models.records import Record, Tap, Trial
from polyattn.parity.models.trees import dtype_of, first, native, replace_first, snapshot, to_numpy
from polyattn.parity.models.watching import OUTPUT, Runner, Site
from polyattn.truth.spec import Floats

__all__ = ["Forced", "Own", "coarser"]

Again = Callable[..., Any]  # a component alone: `Site.again`


@dataclass
class Own:
    """What a component of the port does with the reference's inputs."""

    etas: dict[str, float] = field(default_factory=dict)  # by the label of the trial
    seen: dict[str, Floats] = field(default_factory=dict)
    wiring: float | None = None  # eta where its parts give what those of the reference do
    misfed: dict[str, float] = field(default_factory=dict)  # parts that it gives another input -> eta
    wired: Floats | None = None  # what it gives then
    given: dict[str, Floats] = field(default_factory=dict)  # what it gives those parts
    kept: tuple[str, ...] = ()  # inputs of the port without a counterpart
    error: str | None = None
    between: bool = False  # judged from the taps before it, not called alone

    @property
    def eta(self) -> float | None:
        """The worst."""
        return max(self.etas.values(), default=None)


def coarser(tap: Tap, site: Site) -> float:
    """By how much a port that computes in a coarser dtype is allowed more."""
    return max(1.0, roundoff(dtype_of(first(site.output))) / roundoff(tap.dtype))


class Forced:
    """The components of a port, one by one. pairs: taps of the reference -> of the port."""

    def __init__(
        self,
        record: Record,
        runner: Any,
        call: tuple[Any, Any],
        sites: Mapping[str, Site],
        pairs: Mapping[str, str],
    ) -> None:
        self.record, self.runner, self.call, self.sites, self.pairs = record, runner, call, sites, pairs
        self.back = {port: name for name, port in pairs.items()}
        self.parents = {name: self._holder(name) for name in pairs}

    def _holder(self, name: str) -> str | None:
        """The nearest component that is compared and in whose call, on the port's side, this one is called."""
        site: Site | None = self.sites[self.pairs[name]]
        while site is not None and site.parent is not None:
            if site.parent in self.back:
                return self.back[site.parent]
            site = self.sites.get(site.parent)
        return None

    def inside(self, name: str) -> list[str]:
        """The compared components below one, at any depth."""
        below = [child for child, parent in self.parents.items() if parent == name]
        return below + [deeper for child in below for deeper in self.inside(child)]

    def of(self, name: str) -> Own:
        """One component."""
        tap, site = self.record.taps[name], self.sites[self.pairs[name]]
        again = site.again
        if not tap.alone or again is None:
            return self._between(tap, site)
        own = Own()
        for trial in tap.trials:
            if trial.label and not own.etas:
                break  # its inputs are of another shape
            self._try(own, tap, site, again, trial)
        if not own.etas and own.error is None:
            return self._between(tap, site)
        if own.etas and self.inside(name):
            self._wire(own, tap, site, again)
        return own

    def _try(self, own: Own, tap: Tap, site: Site, again: Again, trial: Trial) -> None:
        call = fed(site.args, site.kwargs, trial.inputs, tap.paths)
        if call is None:
            return
        own.kept = call[2]
        try:
            out = first(again(site, *call[:2]))
        except (Exception, SystemExit) as error:
            own.error = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
            return
        if out is None:
            return
        seen = to_numpy(out)
        found = aligned(seen, trial.expected)
        own.seen[trial.label] = seen if found is None else found
        unit = trial.unit * coarser(tap, site)
        own.etas[trial.label] = math.inf if found is None else eta_of(found, trial.expected, unit)

    def _wire(self, own: Own, tap: Tap, site: Site, again: Again) -> None:
        """The same component, where each of its parts gives what the reference's part gives."""
        trial, below = tap.trials[0], set(self.inside(tap.name))
        call = fed(site.args, site.kwargs, trial.inputs, tap.paths)
        if call is None:
            return
        other_shape = []

        def leave(inner: Site) -> Any:
            name = self.back.get(inner.name)
            if name not in below or name is None:
                return inner.output
            part = self.record.taps[name]
            if self.parents[name] == tap.name and self.held(name) == tap.name:
                self._check_fed(own, part, inner)
            value = part.trials[0].expected if part.trials else part.value
            made = _replaced(inner, value)
            other_shape.extend([name] if made is inner.output else [])
            return made

        try:
            out = first(again(site, *call[:2], leave))
        except (Exception, SystemExit):  # what comes after a part that gave another shape
            return
        if other_shape:  # what it does with the right one cannot be seen
            return
        found = None if out is None else aligned(to_numpy(out), trial.expected)
        unit = trial.unit * coarser(tap, site)
        own.wired = found
        own.wiring = math.inf if found is None else eta_of(found, trial.expected, unit)

    def held(self, name: str) -> str | None:
        """The nearest compared component in whose call, on the reference's side, this one is called."""
        parent = self.record.taps[name].parent
        while parent is not None and parent not in self.pairs:
            tap = self.record.taps.get(parent)
            parent = None if tap is None else tap.parent
        return parent

    @staticmethod
    def _check_fed(own: Own, part: Tap, inner: Site) -> None:
        given = first((inner.args, inner.kwargs))
        if given is None or not part.inputs or part.input_unit is None:
            return
        found = aligned(to_numpy(given), part.inputs[0])
        if found is not None:
            eta = eta_of(found, part.inputs[0], part.input_unit * coarser(part, inner))
            own.misfed[part.name], own.given[part.name] = eta, found
        elif given.shape[1:] and to_numpy(given).dtype.kind == part.inputs[0].dtype.kind == "f":
            own.misfed[part.name], own.given[part.name] = math.inf, to_numpy(given)

    def _between(self, tap: Tap, site: Site) -> Own:
        """From a run of the whole port in which every compared tap goes on as the reference's."""
        own = Own(between=True)
        seen = self._run_between.get(site.name)
        if seen is None:
            own.error = self._stopped
            return own
        whole = self.record.library == "function" and len(self.pairs) == len(self.record)
        unit = tap.trials[0].unit if whole and tap.trials else tap.unit
        found = aligned(seen, tap.value)
        own.seen[""] = seen if found is None else found
        own.etas[""] = math.inf if found is None else eta_of(found, tap.value, unit * coarser(tap, site))
        return own

    _stopped: str | None = None

    @cached_property
    def _run_between(self) -> Values:
        seen: Values = {}

        def leave(site: Site) -> Any:
            x, name = first(site.output), self.back.get(site.name)
            if x is not None:
                seen[site.name] = to_numpy(x)
            if name is None or site.name == OUTPUT:
                return site.output
            return _replaced(site, self.record.taps[name].value)

        runner: Runner = self.runner
        try:
            args, kwargs = snapshot(self.call)
            runner.run(args, kwargs, leave)
        except (Exception, SystemExit) as error:
            self._stopped = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        return seen


def _replaced(site: Site, value: Floats) -> Any:
    """The output of a component with the reference's array as its first, where that has its shape."""
    x = first(site.output)
    if x is None or aligned(value, to_numpy(x)) is None:
        return site.output
    return replace_first(site.output, native(value.reshape(tuple(x.shape)), x))
