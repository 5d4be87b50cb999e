"""Why a norm is wrong: its epsilon, its mean, its weight, its axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from polyattn.parity.components.formula import Norm
from polyattn.parity.components.relation import relation
from polyattn.parity.components.trial import Candidate, Case
from polyattn.truth.spec import Floats

__all__ = ["norm_of", "tiers"]

#: The epsilons of frameworks and of models.
USUAL = (1e-5, 1e-6, 1e-12, 1e-3, 1e-8, 1e-7, 0.0)


def norm_of(facts: Any) -> Norm | None:
    """The norm that facts describe; None where they do not say enough."""
    numbers, arrays = facts.numbers, facts.arrays
    if "eps" not in numbers or "subtracts_mean" not in numbers:
        return None
    weight, bias = (
        None if (a := arrays.get(n)) is None else a.astype(np.float64) for n in ("weight", "bias")
    )
    plus_one = bool(numbers.get("weight_plus_one", False))
    return Norm(float(numbers["eps"]), bool(numbers["subtracts_mean"]), weight, bias, plus_one)


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """One change of the norm, then the weights of others, then two changes at once."""
    norm = norm_of(case.facts)
    if norm is None or case.x.shape != case.expected.shape or not _fits(norm, case.x):
        return
    if not case.reproduces(norm(case.x)):
        return
    changes = _changes(case, norm)
    yield (_candidate(norm, [change]) for change in changes)
    yield _weights(case, norm)
    pairs = [pair for pair in combinations(changes, 2) if not pair[0][1].keys() & pair[1][1].keys()]
    yield (_candidate(norm, list(pair)) for pair in pairs if all(_both(change) for change in pair))


def _fits(norm: Norm, x: Floats) -> bool:
    """Whether weight and bias are of the width of x."""
    return all(a is None or a.shape == x.shape[-1:] for a in (norm.weight, norm.bias))


Change = tuple[str, dict[str, Any]]


def _both(change: Change) -> bool:
    """Whether it is tried beside another."""
    return not {"axes", "skipped", "again", "low"} & change[1].keys()


def _candidate(norm: Norm, changes: list[Change]) -> Candidate:
    fields: dict[str, Any] = {}
    for _, change in changes:
        fields |= change
    changed = replace(norm, **fields)
    said = " and ".join(sentence for sentence, _ in changes)
    return Candidate(said, lambda case: changed(case.x), rowwise=changed.axes == (-1,))


def _changes(case: Case, norm: Norm) -> list[Change]:
    """Every change that makes another norm of it, the likelier first."""
    found: list[Change] = [
        (f"epsilon {e:.3g}, not {norm.eps:.3g}", {"eps": e}) for e in _epsilons(case, norm)
    ]
    if norm.eps:
        found.append(("epsilon added to the root, not to the variance under it", {"outside": True}))
    if norm.weight is not None:
        said = (
            "weight used as it is, not as 1 + weight" if norm.plus_one else "1 + weight used for the weight"
        )
        found += [(said, {"plus_one": not norm.plus_one}), ("weight left out", {"weight": None})]
        if not norm.plus_one:
            found.append(("1 subtracted from the weight", {"weight": norm.weight - 1.0}))
    if norm.bias is not None:
        found += [("bias missing", {"bias": None}), ("bias added twice", {"bias": 2 * norm.bias})]
        found.append(("bias subtracted", {"bias": -norm.bias}))
    said = (
        "mean not subtracted: an RMS norm for a layer norm"
        if norm.centred
        else "mean subtracted: a layer norm for an RMS norm"
    )
    found += [
        (said, {"centred": not norm.centred}),
        ("variance with n - 1, not n", {"unbiased": True}),
        ("divided by the root of the sum of squares, not of their mean", {"summed": True}),
        ("norm skipped, weight and bias alone applied", {"skipped": True}),
        ("norm skipped: the input comes out as it is", {"skipped": True, "weight": None, "bias": None}),
        ("norm applied twice", {"again": True}),
    ]
    last = case.x.ndim - 1
    for axis in range(last):
        found.append((f"over axis {axis} of {case.x.shape}, not over the last", {"axes": (axis,)}))
    if last:
        found.append((f"over the last two axes of {case.x.shape}, not over the last", {"axes": (-2, -1)}))
    for low in ("bfloat16", "float16"):
        found.append((f"input rounded to {low}", {"low": f"{low} input"}))
        found.append((f"rounded to {low} before the weight is applied", {"low": f"{low} normal"}))
        found.append((f"squares in {low}", {"low": f"{low} squares"}))
    return found


def _epsilons(case: Case, norm: Norm) -> list[float]:
    """Epsilons to try: that of the port, the usual ones, the nearer to what fits first, and that which fits."""
    fitted = _fit(case, norm)
    near = sorted(USUAL, key=lambda e: abs(np.log10(max(e, 1e-12)) - np.log10(max(fitted, 1e-12))))
    told = case.port.numbers.get("eps") if case.port is not None else None
    first = [float(told)] if isinstance(told, int | float) else []
    rest = [fitted] if fitted > 0 else []
    return [e for e in dict.fromkeys([*first, *near, *rest]) if e != norm.eps]


def _fit(case: Case, norm: Norm) -> float:
    """The epsilon with which the rows come out as they did, those of little variance first of all."""
    x = case.x - case.x.mean(-1, keepdims=True) if norm.centred else case.x
    direction = replace(norm, bias=None).affine(x)
    target = case.seen if norm.bias is None else case.seen - norm.bias
    with np.errstate(all="ignore"):
        scale = (target * direction).sum(-1) / (direction * direction).sum(-1)
        variance = (x * x).mean(-1)
        each = 1.0 / scale**2 - variance
        weight = 1.0 / (variance + norm.eps + np.abs(each)) ** 2
    good = np.isfinite(each) & np.isfinite(weight) & (scale > 0)
    return float(np.sum(each[good] * weight[good]) / np.sum(weight[good])) if good.any() else 0.0


def _weights(case: Case, norm: Norm) -> Iterator[Candidate]:
    """The norm with the arrays of the port, or of another component."""

    def with_(**arrays: Any) -> Any:
        changed = replace(norm, **arrays)
        return lambda case: changed(case.x)

    for name, other in case.facts.children("other").items():
        if norm.weight is not None and other.shape == norm.weight.shape:
            yield Candidate(f"has the weight of {name}", with_(weight=other.astype(np.float64)))
    theirs = None if case.port is None else norm_of(case.port)
    if theirs is None:
        return
    for name, ours, its in (("weight", norm.weight, theirs.weight), ("bias", norm.bias, theirs.bias)):
        if ours is not None and its is not None and (said := relation(ours, its)) is not None:
            yield Candidate(f"{name} of the port {said}", with_(**{name: its}))
    yield Candidate("weight and bias of the port are others", with_(weight=theirs.weight, bias=theirs.bias))
