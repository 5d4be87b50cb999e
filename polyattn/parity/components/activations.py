"""Why an activation is wrong: another function, or a gated one with its halves exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from polyattn.parity.components.functions import FUNCTIONS, described
from polyattn.parity.components.trial import Candidate, Case
from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["function_of", "tiers"]


def function_of(case: Case) -> str | None:
    """The name of the function that the reference computed, as it says or as its output shows."""
    told = case.facts.numbers.get("function")
    names = [told] if isinstance(told, str) and told in FUNCTIONS else list(FUNCTIONS)
    return next((name for name in names if case.reproduces(FUNCTIONS[name](case.x))), None)


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """Other functions; halves of a gated input; then the function on something else."""
    if any(x.dtype.kind != "f" for x in case.inputs):
        return
    if len(case.inputs) == 1 and case.expected.shape == case.x.shape:
        name = function_of(case)
        if name is not None:
            yield _others(name)
            yield _altered(name)
    elif gated := _gated(case):
        yield _gates(*gated)


def _on(f: Callable[[Floats], Floats]) -> Callable[[Case], Floats]:
    return lambda case: f(case.x)


def _others(name: str) -> Iterator[Candidate]:
    for other, f in FUNCTIONS.items():
        if other != name:
            yield Candidate(f"{described(other)}, not {described(name)}", _on(f))


def _altered(name: str) -> Iterator[Candidate]:
    f = FUNCTIONS[name]
    said = described(name)
    yield Candidate(f"{said} applied twice", _on(lambda x: f(f(x))))
    yield Candidate(f"{said} of the negated input", _on(lambda x: f(-x)))
    for low in ("bfloat16", "float16"):
        yield Candidate(f"{said} of the input rounded to {low}", _on(lambda x, low=low: f(round_to(x, low))))  # type: ignore[misc]


def _gated(case: Case) -> tuple[str, str] | None:
    """Function and form of a gated activation of one doubled input or of two: f(gate) * up."""
    for form, split in _FORMS.items():
        for name, f in FUNCTIONS.items():
            if (parts := split(case)) is not None and case.reproduces(f(parts[0]) * parts[1]):
                return name, form
    return None


def _halves(case: Case) -> tuple[Floats, Floats] | None:
    x, width = case.x, case.expected.shape[-1]
    return (x[..., :width], x[..., width:]) if len(case.inputs) == 1 and x.shape[-1] == 2 * width else None


def _turns(case: Case) -> tuple[Floats, Floats] | None:
    x, width = case.x, case.expected.shape[-1]
    return (x[..., 0::2], x[..., 1::2]) if len(case.inputs) == 1 and x.shape[-1] == 2 * width else None


def _two(case: Case) -> tuple[Floats, Floats] | None:
    shape = case.expected.shape
    two = len(case.inputs) == 2 and all(x.shape == shape for x in case.inputs)
    return (case.inputs[0], case.inputs[1]) if two else None


def _back(
    split: Callable[[Case], tuple[Floats, Floats] | None],
) -> Callable[[Case], tuple[Floats, Floats] | None]:
    return lambda case: None if (parts := split(case)) is None else (parts[1], parts[0])


#: Which part of the input is the gate; each gives the gate and the rest.
_FORMS: dict[str, Callable[[Case], tuple[Floats, Floats] | None]] = {
    "the first half": _halves,
    "the second half": _back(_halves),
    "the even entries": _turns,
    "the odd entries": _back(_turns),
    "the first input": _two,
    "the second input": _back(_two),
}


def _gates(name: str, form: str) -> Iterator[Candidate]:
    def by(f: Callable[[Floats, Floats], Floats], form: str = form) -> Callable[[Case], Floats]:
        def predict(case: Case) -> Floats:
            parts = _FORMS[form](case)
            return np.zeros(0) if parts is None else f(*parts)

        return predict

    f = FUNCTIONS[name]
    for other in _FORMS:
        if other != form:
            yield Candidate(
                f"gate and up exchanged: the activation is on {other}, not on {form}",
                by(lambda gate, up: f(gate) * up, other),
            )
    for other, g in FUNCTIONS.items():
        if other != name:
            said = f"{described(other)} on the gate, not {described(name)}"
            yield Candidate(said, by(lambda gate, up, g=g: g(gate) * up))  # type: ignore[misc]
    yield Candidate(
        "activation on the product of gate and up, not on the gate", by(lambda gate, up: f(gate * up))
    )
    yield Candidate("activation on both gate and up", by(lambda gate, up: f(gate) * f(up)))
    yield Candidate("gate and up added, not multiplied", by(lambda gate, up: f(gate) + up))
    yield Candidate("the activated gate alone, without up", by(lambda gate, up: f(gate)))
