"""What rounding does to a model and to each of its components, measured: in float64, and with every number off by a rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polyattn.parity.models.measuring import roundoff
from polyattn.parity.models.trees import (
    dtype_of,
    first,
    is_float,
    mapped,
    native,
    replace_first,
    snapshot,
    to_numpy,
)
from polyattn.parity.models.watching import Leave, Runner, Site
from polyattn.truth.spec import Floats

__all__ = [
    "DRAWS",
    "Values",
    "call_alone",
    "deviations",
    "dtypes_of",
    "one_hot",
    "perturbed_run",
    "pushed",
    "scaled_first",
    "values_of",
]

DRAWS = 2  # runs with every number off by a rounding
Values = dict[str, Floats]


def pushed(x: Any, rng: np.random.Generator, u: float) -> Any:
    """An array of floats with every element off by u, up or down; others as they are."""
    if not is_float(x):
        return x
    plain = to_numpy(x)
    if dtype_of(x) != "float64":
        u = max(u, 2 * roundoff(dtype_of(x)))  # half a unit would be rounded away
    sign = 2.0 * rng.integers(0, 2, size=plain.shape, dtype=np.int8) - 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        return native(np.asarray(plain.astype(np.float64) * (1.0 + u * sign)), x)


def values_of(runner: Runner, args: Any, kwargs: Any, change: Leave | None = None) -> Values:
    """What every component gives in one run, in NumPy, by name; `change` makes of it what goes on."""
    found: Values = {}

    def leave(site: Site) -> Any:
        x = first(site.output)
        if x is not None:
            found[site.name] = to_numpy(x)
        return site.output if change is None else change(site)

    runner.run(snapshot(args), snapshot(kwargs), leave)
    return found


def perturbed_run(
    runner: Runner, args: Any, kwargs: Any, units: Mapping[str, float], rng: np.random.Generator
) -> tuple[Values, Values]:
    """The outputs, and the first inputs, where every component's output and the batch are off by a rounding of its dtype."""
    inputs: Values = {}
    most = max(units.values(), default=roundoff("float32"))

    def change(site: Site) -> Any:
        x, given = first(site.output), first((site.args, site.kwargs))
        if given is not None:
            inputs[site.name] = to_numpy(given)
        if x is None or not is_float(x):
            return site.output
        return replace_first(site.output, pushed(x, rng, units.get(site.name, most)))

    def push(_: str, x: Any) -> Any:
        return pushed(x, rng, most)

    return values_of(runner, mapped(push, args), mapped(push, kwargs), change), inputs


def call_alone(
    site: Site, args: Any, kwargs: Any, change: Callable[[str, Any], Any], leave: Leave | None = None
) -> Floats | None:
    """What a component gives for these arguments, each array changed; None where it cannot be called so.

    leave: what becomes of the outputs of its parts, and of its own.
    """
    if site.again is None:
        return None
    made = mapped(change, (snapshot(args), snapshot(kwargs)))
    out = first(site.again(site, *made) if leave is None else site.again(site, *made, leave))
    return None if out is None else to_numpy(out)


def scaled_first(args: Any, kwargs: Any, make: Callable[[Floats], Floats]) -> tuple[Any, Any] | None:
    """The arguments with another first array; None unless that is of floats."""
    x = first((args, kwargs))
    if x is None or not is_float(x):
        return None
    made: tuple[Any, Any] = replace_first((args, kwargs), native(make(to_numpy(x)), x))
    return made


def one_hot(x: Floats) -> Floats:
    """A single 1 in every row, at places that go round."""
    made = np.zeros_like(x)
    if x.ndim and x.size:
        rows = made.reshape(-1, x.shape[-1])
        rows[np.arange(len(rows)), np.arange(len(rows)) * 7 % x.shape[-1]] = 1.0
    return made


def dtypes_of(sites: Sequence[Site]) -> dict[str, str]:
    """That of what each component gave."""
    return {site.name: dtype_of(first(site.output)) for site in sites}


def deviations(values: Iterable[Floats | None], true: Floats) -> list[Floats]:
    """What runs are off, of those that gave the same shape."""
    with np.errstate(invalid="ignore"):
        return [
            np.where(np.isfinite(x - true), x - true, 0.0)
            for x in values
            if x is not None and x.shape == true.shape
        ]
