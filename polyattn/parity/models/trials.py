"""Every component of a reference called alone: with what it was given in the model, and with small, large and one-hot inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from polyattn.parity.models.free import Free, doubled
from polyattn.parity.models.measuring import unit_of
from polyattn.parity.models.noise import DRAWS, call_alone, deviations, one_hot, pushed, scaled_first
from polyattn.parity.models.records import Trial
from polyattn.parity.models.trees import first, is_float, leaves, replace_first, to_numpy
from polyattn.parity.models.watching import Leave, Runner, Site
from polyattn.truth.spec import Floats

__all__ = ["PROBES", "Trials"]

Change = Callable[[str, Any], Any]

#: What the first input of a component is replaced by. Powers of two, so that scaling rounds nothing.
PROBES = {
    "small": lambda x: x * np.asarray(2.0**-10, x.dtype),
    "large": lambda x: x * np.asarray(16.0, x.dtype),
    "one-hot": one_hot,
}


class Trials:
    """The components of a reference that can be called alone."""

    def __init__(
        self, runner: Runner, free: Free, sites: Sequence[Site], rng: np.random.Generator, probes: bool
    ) -> None:
        self.runner, self.free, self.rng = runner, free, rng
        self.notes: list[str] = []
        parents = {site.name: site.parent for site in sites}
        holds = set(parents.values())
        outer = {parents[name] for name in holds if name is not None and name in parents}
        self.probed = {name for name in parents if name not in outer} if probes else set()

    def of(self, site: Site) -> tuple[Trial, ...]:
        """As in the model, and the probes: not of what holds layers of layers, where they would say the same again."""
        made = [self._trial("", site, site.args, site.kwargs)]
        if site.name in self.probed:
            for label, make in PROBES.items():
                call = scaled_first(site.args, site.kwargs, make)
                if call is not None:
                    made.append(self._trial(label, site, *call))
        return tuple(trial for trial in made if trial is not None)

    def _trial(self, label: str, site: Site, args: Any, kwargs: Any) -> Trial | None:
        own = to_numpy(first(site.output)) if not label else self._called(site, args, kwargs)
        if own is None:
            return None
        inputs = tuple(to_numpy(x) for _, x in leaves((args, kwargs)))
        if own.dtype.kind != "f":
            return Trial(label, inputs, own, unit_of(own, [], 0.0))
        wide, other = self.free.wide, self.free.sites.get(site.name)
        u = self.free.units[site.name]
        draws = (
            3 * DRAWS if label == "large" else DRAWS
        )  # two scores that are nearly equal and large: few draws meet them

        def push(_: str, x: Any) -> Any:
            return pushed(x, self.rng, u)

        def off(inner: Site) -> Any:
            x = first(inner.output)
            if x is None or not is_float(x):
                return inner.output
            return replace_first(inner.output, pushed(x, self.rng, self.free.units.get(inner.name, u)))

        true, runs = own, list[Floats | None]()
        if wide is not None and other is not None and type(wide) is type(self.runner):
            double = partial(doubled, wide)

            def widened(_: str, x: Any) -> Any:
                return double(x)

            found = self._called(other, args, kwargs, widened)
            if found is not None and found.shape == own.shape:
                true = found
                runs = [
                    self._called(other, args, kwargs, lambda p, x: push(p, widened(p, x)), off)
                    for _ in range(draws)
                ]
        if not runs:
            runs = [self._called(site, args, kwargs, push, off) for _ in range(draws)]
        apart = [d / len(runs) ** 0.5 for d in deviations(runs, true)]
        return Trial(label, inputs, true, unit_of(true, [*deviations([own], true), *apart], u))

    def _called(
        self, site: Site, args: Any, kwargs: Any, change: Change = lambda _, x: x, leave: Leave | None = None
    ) -> Floats | None:
        try:
            return call_alone(site, args, kwargs, change, leave)
        except Exception as error:
            said = next(iter(str(error).splitlines()), "")[:160]
            self.notes.append(f"{site.name} cannot be called alone: {type(error).__name__}: {said}")
            return None
