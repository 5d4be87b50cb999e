"""What is kept of a model that ran: its taps, what its components were given, and how far rounding moves each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyattn.parity.models.measuring import relative
from polyattn.truth.spec import Floats

__all__ = ["Record", "Tap", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One call of a component alone: what it was given, what it should give, and the unit of every row of that."""

    label: str  # "" as in the model; "small", "large", "one-hot": probes
    inputs: tuple[Floats, ...]  # of a function none: it is judged between its taps
    expected: Floats
    unit: Floats


@dataclass(frozen=True)
class Tap:
    """A component, or a named array of a function, in the whole run."""

    name: str
    kind: str
    parent: str | None
    dtype: str  # of what it gave
    value: Floats  # in float64 where the model could be run so, else as it came
    unit: Floats
    input_unit: Floats | None = None  # of the first input
    paths: tuple[str, ...] = ()  # where each input stands in the call: "0", "mask"
    trials: tuple[Trial, ...] = ()
    facts: Any = None
    alone: bool = False  # it was called alone with its inputs, rather than judged between the taps before it

    @property
    def inputs(self) -> tuple[Floats, ...]:
        """What it was given."""
        return self.trials[0].inputs if self.trials else ()

    @property
    def noise(self) -> float:
        """The unit over the size of the values."""
        return relative(self.unit, self.value)


@dataclass(frozen=True, repr=False)
class Record(Mapping[str, Floats]):
    """The taps of a model by name, in the order in which they came: record["layers.0"] is an array in NumPy.

    `taps` has all that is known of each, `inputs(name)` what a component was given, `notes` how noise was measured and
    what else was noticed, `deterministic` whether two runs gave the same. `save(path)` writes a file that
    `polyattn.parity.check_model` reads.
    """

    taps: Mapping[str, Tap]
    batch: tuple[tuple[Any, ...], Mapping[str, Any]]  # args and kwargs, arrays in NumPy
    weights: Mapping[str, Floats]
    library: str
    measured: str  # how the noise was measured
    deterministic: bool = True
    notes: tuple[str, ...] = ()
    fingerprints: Mapping[str, Any] = field(default_factory=dict)  # of the weights, where a file has them

    def __getitem__(self, name: str) -> Floats:
        if name not in self.taps:
            raise KeyError(
                f"polyattn.parity.Record: expected a tap among {', '.join(list(self.taps)[:12])}, got {name!r}; see list(record)"
            )
        return self.taps[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.taps)

    def __len__(self) -> int:
        return len(self.taps)

    def inputs(self, name: str) -> tuple[Floats, ...]:
        """The arrays that a component was given, in the order of its call; none for a tap of a function."""
        self[name]
        return self.taps[name].inputs

    def save(self, path: Any) -> None:
        """Writes the file that `check_model` reads; FileExistsError where it is there."""
        from polyattn.parity.models.golden import save

        save(self, path)

    def __repr__(self) -> str:
        lines = [f"Record of {len(self)} taps ({self.library}); {self.measured}"]
        width = max((len(name) for name in self.taps), default=0)
        lines += [
            f"  {name.ljust(width)}  {tap.kind}  {np.shape(tap.value)}  noise {tap.noise:.1e}"
            for name, tap in self.taps.items()
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
