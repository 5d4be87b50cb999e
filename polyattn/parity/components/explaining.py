"""Why one component that is wrong by itself is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from polyattn.parity.components import (
    activations,
    anything,
    attending,
    behind,
    embeddings,
    linears,
    mlps,
    norms,
    patches,
    wiring,
)
from polyattn.parity.components.facts.record import Facts, floats
from polyattn.parity.components.trial import Candidate, Case, best_of, holds, roundoff_of
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.truth.spec import Floats

__all__ = ["explain"]

_WHO = "polyattn.parity.components.explain"

Tiers = Callable[[Case], Iterator[Iterator[Candidate]]]

_THEMES: dict[str, tuple[Tiers, ...]] = {
    "norm": (norms.tiers,),
    "activation": (activations.tiers,),
    "linear": (linears.tiers,),
    "embedding": (embeddings.tiers,),
    "attention": (attending.tiers,),
    "other": (mlps.tiers, activations.tiers, patches.tiers, wiring.tiers, behind.tiers),
}


def explain(
    facts: Facts,
    port: Facts | None,
    inputs: tuple[Floats, ...],
    expected: Floats,
    seen: Floats,
    *,
    unit: Floats | float,
) -> str | None:
    """Why a component of a port gave `seen` where that of the reference gave `expected`: a sentence, or None.

    facts: of the reference's component, as `facts_of` reads them; port: of the port's, None where it is a plain
    function. inputs: what both were given, the main one first. unit: the noise of the reference, a number or one for
    each element of expected; what differs by up to 4 of them agrees, and nothing is explained then.

    A cause is said only if the component, computed in NumPy with that cause, gives what was seen within 4 units, and
    leaves it at most a third as wrong as it stands; and only if, without it, it gives what was expected. The known
    causes are tried first, then numbers that fit (an epsilon, a factor, a part of low rank). ValueError where expected
    is empty or unit does not broadcast to it; TypeError where facts are no `Facts`.

    >>> x = np.random.default_rng(0).normal(size=(4, 8))
    >>> root = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    >>> facts = Facts("norm", {"weight": np.full(8, 0.5)}, {"eps": 1e-6, "subtracts_mean": False})
    >>> explain(facts, None, (x,), 0.5 * x / root, 1.5 * x / root, unit=1e-15)
    '1 + weight used for the weight'
    """
    with np.errstate(all="ignore"):  # what overflows fits nothing
        return _explained(_case(facts, port, inputs, expected, seen, unit))


def _explained(case: Case) -> str | None:
    if case.seen.shape != case.expected.shape:
        return anything.another_shape(case.expected, case.seen, float(np.max(case.unit)))
    error = np.abs(case.seen - case.expected)
    same = (case.seen == case.expected) | (np.isnan(case.seen) & np.isnan(case.expected))
    if (same | (error <= ACCEPTANCE * case.unit)).all():
        return None
    if case.facts.kind == "embedding":
        case = embeddings.ids_first(case)
    if (said := _cause(case)) is not None:
        return said
    for low in ("bfloat16", "float16"):
        if not holds(case.seen, low) or holds(case.expected, low):
            continue
        unit = np.maximum(case.unit, UNIT_ROUNDOFF[low] * np.abs(case.expected))
        coarse = replace(case, unit=unit, roundoff=UNIT_ROUNDOFF[low])
        if coarse.ratio(coarse.expected) <= ACCEPTANCE:
            return f"output rounded to {low}"
        if (said := _cause(coarse)) is not None:
            return f"{said}; and the output holds {low} numbers"
    return None


def _cause(case: Case) -> str | None:
    """The cause in the words of its theme, or one that needs none."""
    own = best_of(case, (tier for theme in _THEMES[case.facts.kind] for tier in theme(case)))
    if own is None and case.facts.kind == "attention":
        own = attending.found_in_heads(case)
    return own or best_of(case, anything.tiers(case))


def _case(facts: Any, port: Any, inputs: Any, expected: Any, seen: Any, unit: Any) -> Case:
    for name, given in (("facts", facts), ("port", port)):
        if not isinstance(given, Facts) and not (given is None and name == "port"):
            raise TypeError(
                f"{_WHO}: expected {name} to be Facts, got {type(given).__name__}; facts_of(module) gives them"
            )
    if not isinstance(inputs, tuple | list) or not inputs:
        raise TypeError(
            f"{_WHO}: expected inputs to be a tuple of arrays, got {inputs!r:.60}; pass what the component got"
        )
    expected, seen = (np.asarray(floats(x), np.float64) for x in (expected, seen))
    if not expected.size or not expected.ndim:
        raise ValueError(
            f"{_WHO}: expected an array that is not empty, got shape {expected.shape}; pass a whole output"
        )
    unit = np.asarray(unit, np.float64)
    try:
        wide = np.broadcast_to(unit, expected.shape)
    except ValueError:
        raise ValueError(
            f"{_WHO}: expected unit to be a number or of shape {expected.shape}, got {unit.shape}; measure it on that output"
        ) from None
    if not (wide >= 0).all():
        raise ValueError(
            f"{_WHO}: expected unit to be 0 or more everywhere, got {np.min(wide)}; a noise is a size"
        )
    given = tuple(_wide(floats(x)) for x in inputs)
    cuttable = facts.kind in ("norm", "linear", "activation", "embedding") or "up.weight" in facts.arrays
    cuttable = cuttable and given[0].shape[: expected.ndim - 1] == expected.shape[:-1]
    return Case(facts, port, given, expected, seen, wide, roundoff_of(seen), cuttable)


def _wide(x: Floats) -> Floats:
    return x.astype(np.float64) if x.dtype.kind == "f" else x
