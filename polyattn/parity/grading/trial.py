"""What a check of a rule asks of a function, and how an answer that breaks the rule is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from polyattn.conventions.call import call_of
from polyattn.conventions.visible import spec_of
from polyattn.parity.grading.calling import Reply
from polyattn.truth.definition import Judged, truth
from polyattn.truth.measure import ACCEPTANCE, eta
from polyattn.truth.spec import Floats

__all__ = ["COARSE", "Broken", "Example", "NotTaken", "Trial", "judged_of", "numbers"]

#: The dtype by whose rounding most rules are judged: low precision inside breaks the rule of accuracy alone.
COARSE = "bfloat16"


class Example(NamedTuple):
    """A call, what it should give and what it gives. note: where the expected numbers come from, if not from the
    definition."""

    given: Mapping[str, Any]
    expected: Floats | None = None
    got: Floats | None = None
    note: str = ""


class Broken(Exception):
    """An answer that breaks the rule. trouble: what the function did instead of answering."""

    def __init__(self, example: Example, trouble: str = "") -> None:
        super().__init__(trouble)
        self.example, self.trouble = example, trouble


class NotTaken(Exception):
    """The function does not take what the rule is about. trouble: what it did when it was asked."""

    def __init__(self, what: str, trouble: str) -> None:
        super().__init__(what)
        self.trouble = trouble


class Trial:
    """A function on trial for one rule: it is called, and judged by eta."""

    def __init__(self, ask: Callable[[Mapping[str, Any]], Reply]) -> None:
        self.ask = ask

    def reply(self, given: Mapping[str, Any]) -> Reply:
        """One answer, of the right shape, or the end of the check."""
        found = self.ask(given)
        if found.out is None:
            raise Broken(Example(given), found.trouble)
        if found.out.shape != (shape := _shape(given)):
            raise Broken(Example(given), f"it returned shape {found.out.shape}, not {shape}")
        return found

    def out(self, query: Any, key: Any, value: Any, **options: Any) -> Floats:
        found = self.reply(_given(query, key, value, options)).out
        return np.zeros(0) if found is None else found

    def is_right(self, query: Any, key: Any, value: Any, *, dtype: str = COARSE, **options: Any) -> None:
        """The answer must be that of the definition, up to rounding in `dtype`."""
        given = _given(query, key, value, options)
        out, judged = self.out(**given), judged_of(given)
        if (error := eta(out, judged, dtype)) > ACCEPTANCE:
            note = f"eta {error:.2g}" if np.isfinite(error) and dtype != COARSE else ""
            raise Broken(Example(given, judged.value.astype(np.float64), out, note))

    def is_same(self, before: Floats, note: str, query: Any, key: Any, value: Any, rows: int | None = None, **options: Any) -> None:  # fmt: skip
        """The answer, or its first rows, must be another answer of the function, up to the rounding of both."""
        given = _given(query, key, value, options)
        out, condition = self.out(**given)[..., :rows, :], judged_of(given).condition[..., :rows, :]
        before = before[..., :rows, :]
        if eta(out, Judged(before.astype(np.longdouble), condition), COARSE) > 2 * ACCEPTANCE:
            raise Broken(Example(given, before, out, note))


def numbers(seed: int, *shape: int, size: float = 1.0) -> Floats:
    """Random numbers in quarters, which every float holds."""
    return np.round(np.random.default_rng(seed).normal(size=shape) * size * 4) / 4


def judged_of(given: Mapping[str, Any]) -> Judged:
    """What the definition gives, in the shape of the answer."""
    rest = {name: x for name, x in given.items() if name not in ("query", "key", "value")}
    # What is not finite was planted where nobody may see it, and by the contract reaches nobody.
    key, value = (np.where(np.isfinite(given[name]), given[name], 0.0) for name in ("key", "value"))
    call = call_of(given["query"], key, value, rest, who="polyattn.parity.grade")
    judged, shape = truth(spec_of(call))["out"], _shape(given)
    floor = np.broadcast_to(judged.floor, judged.value.shape)
    return Judged(judged.value.reshape(shape), judged.condition.reshape(shape), floor.reshape(shape))


def _given(query: Any, key: Any, value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    rest = {name: np.asarray(x, bool) if name == "mask" else x for name, x in options.items()}
    return {"query": q, "key": k, "value": v, **rest}


def _shape(given: Mapping[str, Any]) -> tuple[int, ...]:
    return (*given["query"].shape[:-1], given["value"].shape[-1])
