"""A model recorded: once as it is, once in float64, and with every number off by a rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import numpy as np

from polyattn.parity.models.free import Free
from polyattn.parity.models.measuring import eta_of, roundoff, unit_of
from polyattn.parity.models.noise import Values, dtypes_of, values_of
from polyattn.parity.models.records import Record, Tap
from polyattn.parity.models.runners import runner_of
from polyattn.parity.models.trees import dtype_of, first, is_array, leaves, mapped, snapshot, to_numpy
from polyattn.parity.models.trials import Trials
from polyattn.parity.models.watching import OUTPUT, Runner, Site, converted
from polyattn.truth.measure import ACCEPTANCE

__all__ = ["batch_of", "facts_of", "observe", "record"]

WHO = "polyattn.parity.record"


def record(
    model: Any,
    batch: Any,
    *,
    names: Sequence[str] | None = None,
    exact: Any = None,
    probes: bool = True,
    seed: int = 0,
) -> Record:
    """What every component of a model was given and gave on a batch, and how far rounding moves each: a `Record`.

    model: a module of PyTorch, nnx or Keras; (Linen module, variables); (polyattn layer, params); an ONNX model or the
    path of one; or a function that calls `tap(name, x)`. batch: a tuple of positional arguments, a mapping of keywords, or one
    array. names: globs, such as "layers.*", of the taps to keep; the whole model is always there as "output". Of a
    component that returns several arrays, in tuples, mappings or dataclasses, the first counts.

    Noise is measured, not typed: against the same model in float64, made here where it can be or given as `exact`, and
    in runs with every component's output off by one rounding, up or down at random (Parker 1997). Each component is
    then called alone with what it was given, and those without layers of layers with small, large and one-hot inputs (probes=False:
    not). Nothing of the model is changed, and training mode neither. ValueError and TypeError for what is no
    model or no batch.

    >>> from polyattn.parity import tap
    >>> def model(x):
    ...     h = tap("double", 2 * x)
    ...     return tap("sum", h + x)
    >>> record(model, np.ones((2, 3)))["sum"]
    array([[3., 3., 3.],
           [3., 3., 3.]])
    """
    runner = runner_of(WHO, model)
    args, kwargs = converted(runner, batch_of(WHO, batch))
    wanted = _wanted(names)
    sites = [
        site for site in observe(runner, args, kwargs) if wanted(site.name) and first(site.output) is not None
    ]
    own = {site.name: to_numpy(first(site.output)) for site in sites}
    notes: list[str] = []
    repeated = differs_again(own, values_of(runner, args, kwargs), dtypes_of(sites))
    if repeated:
        notes.append(
            f"the reference is not deterministic: two runs differ first at {repeated}"
            + (
                ", and it is in training mode: call model.eval() first"
                if runner.training
                else "; is dropout on?"
            )
        )
    elif runner.training:
        notes.append("the reference is in training mode, and was left in it")
    wide = _wide(exact, runner)
    free = Free(runner, wide, (args, kwargs), sites, np.random.default_rng(seed), must=exact is not None)
    trials = Trials(runner, free, sites, np.random.default_rng(seed + 1), probes)
    taps = {site.name: _tap(site, free, trials) for site in sites}
    notes += [*free.notes, *trials.notes]
    return Record(
        taps,
        mapped(lambda _, x: to_numpy(x), (args, kwargs)),
        runner.weights(),
        runner.library,
        free.measured,
        not repeated,
        tuple(notes),
    )


def _tap(site: Site, free: Free, trials: Trials) -> Tap:
    value, unit, input_unit = free.of(site)
    facts = facts_of(site)
    kind = facts.kind if facts is not None and facts.kind != "other" else site.kind
    paths = tuple(path for path, _ in leaves((site.args, site.kwargs)))
    paths = tuple(path.partition(".")[2] for path in paths)
    made = free.between(site) if site.again is None else trials.of(site)
    dtype = dtype_of(first(site.output))
    alone = site.again is not None and bool(made)
    return Tap(site.name, kind, site.parent, dtype, value, unit, input_unit, paths, made, facts, alone)


def facts_of(site: Site) -> Any:
    """What is known of a component, where it is an object."""
    module = site.module.bound() if hasattr(site.module, "bound") else site.module
    if module is None or hasattr(module, "place"):  # a node of a graph
        return None
    if isinstance(module, tuple):
        module = module[:2]  # layer and params
    return import_module("polyattn.parity.components").facts_of(module)


def batch_of(who: str, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call; TypeError for what is no batch."""
    if is_array(batch):
        return (batch,), {}
    if isinstance(batch, Mapping):
        if not all(isinstance(name, str) for name in batch):
            raise TypeError(
                f"{who}: expected a batch with names of arguments, got {list(batch)[:3]}; name them"
            )
        return (), dict(batch)
    if isinstance(batch, tuple) and batch:
        return batch, {}
    what = "an empty tuple" if batch == () else type(batch).__name__
    raise TypeError(
        f"{who}: expected a batch to be an array, a tuple of arguments or a mapping of keywords, got {what}; write (x,) for "
        "one argument"
    )


def observe(runner: Runner, args: Any, kwargs: Any, into: list[Site] | None = None) -> list[Site]:
    """Every finished call of one run, its output as it was then; `into` keeps those before an error."""
    sites: list[Site] = [] if into is None else into

    def leave(site: Site) -> Any:
        sites.append(replace(site, output=snapshot(site.output)))
        return site.output

    runner.run(snapshot(args), snapshot(kwargs), leave)
    return sites


def differs_again(one: Values, two: Values, dtypes: Mapping[str, str]) -> str | None:
    """The first tap at which a second run differs by more than sums in another order would."""
    for name, value in one.items():
        other = two.get(name)
        if other is None or other.shape != value.shape:
            return name
        if value.dtype.kind == "f":
            width = value.shape[-1] if value.ndim else 1
            unit = unit_of(value, [], roundoff(dtypes[name]) * max(width, 1) ** 0.5)
            if eta_of(other, value, unit) > ACCEPTANCE:
                return name
    return None


def _wanted(names: Sequence[str] | None) -> Any:
    if names is None:
        return lambda name: True
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{WHO}: expected names to be a list of globs, got {names!r}; write ['layers.*']")
    return lambda name: name == OUTPUT or any(fnmatchcase(name, glob) for glob in names)


def _wide(exact: Any, runner: Runner) -> Runner | None:
    if exact is None:
        return runner.doubled()
    made: Any = runner_of(WHO, exact)
    if hasattr(made, "wide"):
        made.wide = True
    return made
