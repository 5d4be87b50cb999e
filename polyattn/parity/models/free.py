"""The whole run of a reference: its values in float64 where there is such a model, and the unit of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from polyattn.parity.models.measuring import eta_of, roundoff, unit_of
from polyattn.parity.models.noise import (
    DRAWS,
    Values,
    deviations,
    dtypes_of,
    perturbed_run,
    pushed,
    values_of,
)
from polyattn.parity.models.records import Trial
from polyattn.parity.models.trees import first, is_float, mapped, native, replace_first, snapshot, to_numpy
from polyattn.parity.models.watching import Runner, Site
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["Free", "doubled"]


class Free:
    """A whole run.

    `wide` is the model in float64, or None; must: it was given, so an error in it is its caller's.
    """

    def __init__(
        self,
        runner: Runner,
        wide: Runner | None,
        call: tuple[Any, Any],
        sites: Sequence[Site],
        rng: np.random.Generator,
        *,
        must: bool,
    ) -> None:
        self.rng, self.own, self.notes = rng, sites, list[str]()
        self.dtypes = dtypes_of(sites)
        self.units = {name: roundoff(dtype) for name, dtype in self.dtypes.items()}
        self.wide, self.runner, self.call = wide, runner, call
        self.plain = runner, call
        self.sites = {site.name: site for site in sites}
        if wide is not None:
            try:
                self._widen(wide)
            except Exception as error:
                if must:
                    raise
                said = next(iter(str(error).splitlines()), "")[:160]
                self.notes.append(f"the reference does not run in float64: {type(error).__name__}: {said}")
                self.wide, self.runner, self.call = None, runner, call
        args, kwargs = self.call
        runs = [perturbed_run(self.runner, args, kwargs, self.units, rng) for _ in range(DRAWS)]
        self.runs, self.inputs = [outs for outs, _ in runs], [ins for _, ins in runs]
        if self.wide is not None and (far := self._far()) is not None:
            said = f"the float64 version differs from the reference by {far[1]:.2g} roundings at {far[0]}"
            if must:  # its noise would hide every mistake
                raise ValueError(
                    f"polyattn.parity.record: expected exact to be the reference in float64, got another model: {said}; give the "
                    "same weights and settings, or leave exact out"
                )
            self.notes.append(f"{said}: mistakes smaller than that are not seen")

    def _widen(self, wide: Runner) -> None:
        found: dict[str, Site] = {}

        def leave(site: Site) -> Any:
            found[site.name] = replace(site, output=snapshot(site.output))  # it may be written into
            return site.output

        call = mapped(lambda _, x: doubled(wide, x), self.call)
        args, kwargs = snapshot(call)
        wide.run(args, kwargs, leave)
        self.runner, self.call, self.sites = wide, call, found

    def _far(self) -> tuple[str, float] | None:
        """The first tap at which float64 is off by more than roundings of each component explain, and by how many."""
        for site in self.own:
            own, true = to_numpy(first(site.output)), self._true(site, first(site.output), "output")
            if own.dtype.kind != "f":
                continue
            apart = [d / DRAWS**0.5 for d in deviations([run.get(site.name) for run in self.runs], true)]
            eta = eta_of(own, true, unit_of(true, apart, self.units[site.name]))
            if eta > ACCEPTANCE**2:  # a component may sum many numbers one by one, and be 4 units off
                return site.name, eta
        return None

    @property
    def measured(self) -> str:
        """How, in words."""
        what = "in the reference's own precision" if self.wide is None else "against the reference in float64"
        return f"noise was measured {what}, and with every output off by one rounding"

    def of(self, site: Site) -> tuple[Floats, Floats, Floats | None]:
        """The value of a tap, its unit, and the unit of its first input."""
        runs = [run.get(site.name) for run in self.runs]
        value, unit = self._judged(site, first(site.output), "output", runs)
        x = first((site.args, site.kwargs))
        if x is None or not is_float(x):
            return value, unit, None
        runs = [run.get(site.name) for run in self.inputs]
        return value, unit, self._judged(site, x, "inputs", runs)[1]

    def _judged(self, site: Site, x: Any, what: str, runs: Sequence[Floats | None]) -> tuple[Floats, Floats]:
        own = to_numpy(x)
        if own.dtype.kind != "f":
            return own, unit_of(own, [], 0.0)
        true = self._true(site, x, what)
        apart = [d / len(runs) ** 0.5 for d in deviations(runs, true)]
        return true, unit_of(true, [*deviations([own], true), *apart], self.units[site.name])

    def _true(self, site: Site, x: Any, what: str) -> Floats:
        """An array of a call as float64 has it, where that has one of its shape."""
        other = self.sites.get(site.name)
        if other is not None:
            found = first(other.output if what == "output" else (other.args, other.kwargs))
            if found is not None and tuple(found.shape) == tuple(x.shape):
                return to_numpy(found)
        return to_numpy(x)

    def between(self, site: Site) -> tuple[Trial, ...]:
        """A tap of a function, given the taps before it."""
        value, _, _ = self.of(site)
        apart = deviations([run.get(site.name) for run in self._replaced], value)
        apart = [d / len(apart) ** 0.5 for d in apart] if value.dtype.kind == "f" else []
        return (Trial("", (), value, unit_of(value, apart, self.units[site.name])),)

    @cached_property
    def _replaced(self) -> list[Values]:
        """Runs in which every tap goes on as what it was, off by a rounding; with float64, one of the reference as it is."""
        values = {site.name: self.of(site)[0] for site in self.own}

        def kept(site: Site, off: bool) -> Any:
            x = first(site.output)
            if x is None or site.name not in values or not is_float(x):
                return site.output
            value = native(values[site.name], x)
            return replace_first(
                site.output, pushed(value, self.rng, self.units[site.name]) if off else value
            )

        runs = [values_of(self.runner, *self.call, lambda site: kept(site, True)) for _ in range(DRAWS)]
        if self.wide is not None:
            runner, call = self.plain
            runs.append(values_of(runner, *call, lambda site: kept(site, False)))
        return runs


def doubled(wide: Runner, x: Any) -> Any:
    """An array for the model in float64."""
    plain = to_numpy(x)
    return wide.given(plain.astype(np.float64) if plain.dtype.kind == "f" else plain)
