"""A port beside the record of its reference: what each tap gives in the whole run, and what each component does by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from polyattn.parity.environment import environment
from polyattn.parity.models.blaming import blamed, unlike
from polyattn.parity.models.fingerprints import differences
from polyattn.parity.models.forcing import Forced, Own, coarser
from polyattn.parity.models.measuring import aligned, axes_of, eta_of, relative
from polyattn.parity.models.naming import Named, Names, Pairs, check_names, paired, renamed
from polyattn.parity.models.noise import Values, dtypes_of, values_of
from polyattn.parity.models.reading import load
from polyattn.parity.models.recording import batch_of, differs_again, observe, record
from polyattn.parity.models.records import Record, Tap
from polyattn.parity.models.result import ModelComparison, TapResult
from polyattn.parity.models.runners import runner_of
from polyattn.parity.models.trees import first, to_numpy
from polyattn.parity.models.watching import Runner, Site, converted
from polyattn.truth.measure import ACCEPTANCE
from polyattn.truth.spec import Floats

__all__ = ["assert_model", "check_model", "compare_models"]


UNLIKE = "another part than the reference's: what holds it agrees"


def compare_models(
    reference: Any,
    port: Any,
    batch: Any,
    *,
    names: Names = None,
    weights: bool = True,
    probes: bool = True,
    exact: Any = None,
    port_batch: Any = None,
    seed: int = 0,
) -> ModelComparison:
    """Whether a port of a model computes what the model does; if not, which components are wrong, each by itself, and why.

    reference, port, batch, exact, probes, seed: as in `record`; the two may be of different frameworks. port_batch: what the
    port is called with, where that is not `batch`. names: the taps of the port by those of the reference, as a dict, where "*"
    stands for the same on both sides, {"model.layers.*.self_attn": "layers.*.attention"}, or a function; None: equal names,
    then what fits by order and shape. weights: the parameters are compared too.

    Every compared component of the port is called with what the reference's was given there (what lies between two taps of a
    function: with the reference's taps), so one mistake hides no other. A container is named where its parts do not
    explain it. Errors are in units of the measured noise of the reference (`eta`; 4 is accepted). A port that raises is reported,
    with what came before. ValueError where no tap has a counterpart; TypeError for what is no model, batch or names.

    >>> import numpy as np
    >>> from polyattn.parity import tap
    >>> def model(x, c=2.0):
    ...     h = tap("double", c * x)
    ...     return tap("sum", h + x)
    >>> def port(x):
    ...     return model(x, 2.1)
    >>> print(compare_models(model, port, np.ones((2, 3))).verdict)
    DISAGREE: 1 of 3 components is wrong by itself: double
    """
    who = "polyattn.parity.compare_models"
    check_names(who, names)
    runner = runner_of(who, port)
    call = converted(runner, batch_of(who, batch if port_batch is None else port_batch))
    found = record(reference, batch, probes=probes, exact=exact, seed=seed)
    return _checked(who, found, runner, call, names, weights)


def check_model(
    port: Any, golden: Any, *, names: Names = None, weights: bool = True, port_batch: Any = None
) -> ModelComparison:
    """`compare_models` with a reference that need not be here: golden is the file that `Record.save` wrote, or a Record.

    A port that is a function is given arrays of NumPy, unless port_batch has others. ValueError for a file that is cut short,
    of another version, or says what is not so.

    >>> import numpy as np
    >>> from polyattn.parity import record, tap
    >>> golden = record(lambda x: tap("double", 2 * x) + 1, np.ones((2, 3)))
    >>> check_model(lambda x: tap("double", x + x) + 1, golden).agrees
    True
    """
    who = "polyattn.parity.check_model"
    check_names(who, names)
    runner = runner_of(who, port)
    found = golden if isinstance(golden, Record) else load(who, golden)
    call = converted(runner, found.batch if port_batch is None else batch_of(who, port_batch))
    return _checked(who, found, runner, call, names, weights)


def assert_model(
    port: Any, golden: Any, *, names: Names = None, weights: bool = True, port_batch: Any = None
) -> None:
    """For tests: AssertionError, with all that `check_model` prints, unless the port agrees.

    >>> import numpy as np
    >>> from polyattn.parity import record
    >>> assert_model(lambda x: x + x, record(lambda x: 2 * x, np.ones((2, 3))))
    """
    found = check_model(port, golden, names=names, weights=weights, port_batch=port_batch)
    if not found.agrees:
        raise AssertionError(str(found))


def _checked(
    who: str, reference: Record, runner: Runner, call: tuple[Any, Any], names: Names, weights: bool
) -> ModelComparison:
    """Everything about one port."""
    differing = _weights(reference, runner, names) if weights else []
    sites: list[Site] = []
    error = None
    try:
        observe(runner, *call, into=sites)
    except (Exception, SystemExit) as raised:  # what a port does is its own affair
        error = f"{type(raised).__name__}: {next(iter(str(raised).splitlines()), '')[:300]}"
    here = {site.name: site for site in sites if first(site.output) is not None}
    own = {name: to_numpy(first(site.output)) for name, site in here.items()}
    pairs = _pairs(who, reference, here, own, names, error)
    restless = _restless(runner, call, own, here) if error is None else None
    forced = Forced(reference, runner, call, here, pairs.names)
    owns = {name: forced.of(name) for name in pairs.names}
    free = {name: _free(reference.taps[name], here[port], own[port]) for name, port in pairs.names.items()}
    excused = unlike(forced, owns, {name: eta for name, (eta, _) in free.items()}, pairs.guessed)
    moving = _moving(forced, owns) if restless else set[str]()
    wrong = blamed(forced, owns, moving, pairs.guessed, excused)
    causes = {w.name: w.cause for w in wrong} | dict.fromkeys(excused, UNLIKE)
    rows = []
    for name, port in pairs.names.items():
        tap, (eta, why) = reference.taps[name], free[name]
        noise = relative(tap.unit * coarser(tap, here[port]), tap.value)
        said = causes.get(name) or why
        alone = owns[name]
        rows.append(
            TapResult(name, port, tap.kind, noise, eta, alone.eta, said, alone.between, name in excused)
        )
    notes = [*reference.notes, *pairs.notes, *_said(runner, restless, owns)]
    return ModelComparison(
        tuple(rows),
        tuple(wrong),
        tuple(differing),
        reference.measured,
        reference.deterministic and restless is None,
        error,
        len(sites),
        tuple(dict.fromkeys(notes)),
        environment(),
    )


def _pairs(
    who: str, reference: Record, here: Mapping[str, Site], own: Values, names: Names, error: str | None
) -> Pairs:
    theirs = [
        Named(tap.name, tap.kind, tap.value, next(iter(tap.inputs), None)) for tap in reference.taps.values()
    ]
    ours = [Named(name, site.kind, own[name], _given(site)) for name, site in here.items()]
    pairs = paired(names, theirs, ours)
    if not pairs.names and error is None:
        raise ValueError(
            f"{who}: expected a tap of the port for some of the reference ({', '.join(list(reference)[:6])}), got none among "
            f"{', '.join(list(here)[:6]) or 'nothing that is called'}; {'; '.join(pairs.notes) or 'give names='}"
        )
    return pairs


def _given(site: Site) -> Floats | None:
    x = first((site.args, site.kwargs))
    return None if x is None else to_numpy(x)


def _restless(runner: Runner, call: Any, own: Values, here: Mapping[str, Site]) -> str | None:
    """The first tap of the port at which two runs differ."""
    return differs_again(own, values_of(runner, *call), dtypes_of(list(here.values())))


def _moving(forced: Forced, owns: Mapping[str, Own]) -> set[str]:
    """The components that give something else when they are called once more with the same inputs."""
    found = set()
    for name, own in owns.items():
        tap = forced.record.taps[name]
        again = forced.of(name).seen.get("") if tap.alone else None
        if again is not None and "" in own.seen:
            unit = tap.trials[0].unit * coarser(tap, forced.sites[forced.pairs[name]])
            found |= {name} if eta_of(again, own.seen[""], unit) > ACCEPTANCE else set()
    return found


def _free(tap: Tap, site: Site, own: Floats) -> tuple[float, str]:
    """eta of a tap in the whole run, and why it is no number."""
    seen = aligned(own, tap.value)
    if seen is not None:
        return eta_of(seen, tap.value, tap.unit * coarser(tap, site)), ""
    axes = axes_of(own, tap.value, tap.unit)
    order = "" if axes is None else f"; its axes would be in the order {axes}"
    return math.inf, f"shape {own.shape}, where the reference has {tap.value.shape}{order}"


def _said(runner: Runner, restless: str | None, owns: Mapping[str, Own]) -> list[str]:
    """What there is to say of the port."""
    said = []
    if restless:
        said.append(
            f"the port is not deterministic: two runs differ first at {restless}"
            + (", and it is in training mode: call eval() first" if runner.training else "; is dropout on?")
        )
    elif runner.training:
        said.append("the port is in training mode, and was left in it")
    failed = [f"{name}: {own.error}" for name, own in owns.items() if own.error]
    said += [f"not called alone with the reference's inputs: {line}" for line in failed[:5]]
    return said


def _weights(reference: Record, runner: Runner, names: Names) -> Sequence[Any]:
    """The parameters that differ, by name."""
    here = runner.weights()
    there = reference.weights or reference.fingerprints
    if not here or not there:
        return []
    told = {name: new for name in there if (new := _weight_name(names, name)) in here and new is not None}
    if not reference.weights:
        return differences(reference.fingerprints, here, told)
    compare = import_module("polyattn.parity.components").compare_weights
    found: Sequence[Any] = compare(reference.weights, here, told or None)
    return found


def _weight_name(names: Names, name: str) -> str | None:
    """What a parameter is called in the port if the components are called so: the longest part of its name that is one."""
    if names is None:
        return name
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        start, rest = ".".join(parts[:n]), parts[n:]
        if isinstance(names, Mapping):
            made = next((new for a, b in names.items() if (new := renamed(a, b, start)) is not None), None)
        else:
            made = names(start)
        if made is not None:
            return ".".join([made, *rest])
    return None
