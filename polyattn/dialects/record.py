"""A dialect as plain data: how one library writes attention down, and what it answers."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from polyattn.arrays import Array
from polyattn.conventions.settings import Settings
from polyattn.dialects.capabilities import CARRIED, Way
from polyattn.dialects.layout import unpack
from polyattn.dialects.question import Convention, WrittenCall
from polyattn.dialects.questions import QUESTIONS, READING

__all__ = ["Claim", "ForeignParameter", "Record", "claims"]


class Claim(NamedTuple):
    """What a library answers to one question."""

    choice: str
    tested: bool = False  # the tests put the question to the library itself; otherwise it was read
    note: str = ""


def claims(
    base: Mapping[str, Claim] | None = None,
    *,
    tested: Mapping[str, str] | None = None,
    read: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Mapping[str, Claim]:
    """A claim for every question, in their order: those of another dialect, and what differs.

    tested: answers that the tests get from the library itself; read: those that were read in its source.
    """
    found = dict(base or {})
    for answers, by_test in ((tested, True), (read, False)):
        for name, choice in (answers or {}).items():
            found[name] = Claim(choice, by_test, (notes or {}).get(name, ""))
    known = {(name, choice) for name, question in QUESTIONS.items() for choice in question.choices}
    given = {(name, claim.choice) for name, claim in found.items()}
    if given - known or found.keys() != QUESTIONS.keys():
        raise ValueError(
            "polyattn.dialects.record.claims: expected one answer of its choices to each of QUESTIONS, got "
            f"{sorted(given - known)} and none to {sorted(QUESTIONS.keys() - found.keys())}; take a choice that is "
            "there, or add it to its question"
        )
    return {name: found[name] for name in QUESTIONS}


class ForeignParameter(NamedTuple):
    """One parameter of a foreign function: the part that it plays, and its default."""

    name: str
    role: str
    default: Any
    keyword: bool


@dataclass(frozen=True)
class Record:
    """The calling convention of one library.

    `signature` names each parameter and, as its annotation, the role that it plays here; `module` has those
    that are settings of the module whose call it is. Roles: "free" parameters change nothing in the result,
    "fixed" ones must stay at their default.
    """

    name: str
    what: str  # the function or class
    package: str  # that holds it
    version: str  # that was asked, or read
    signature: str
    answers: Mapping[str, Claim]
    module: str = ""
    result: str = ""  # layout of the result, where it differs from that of query
    returns: str = "out"  # the parts of what comes back: out, weights, lse, None
    with_lse: str = "out, lse"  # those of a call that asks for lse
    with_aux: str = "out, aux"  # those of a call with return_aux; empty if it counts for the lse in it alone
    caches: bool = False  # keys beyond the queries must come as past_key and past_value
    mask_axes: tuple[str, ...] = ()  # of masks that do not just broadcast to BHLS; "(BH)" is one axis of both
    notes: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> tuple[ForeignParameter, ...]:
        """Those of the function, then those of the module."""
        found = []
        for text in (self.signature, f"*, {self.module}" if self.module else ""):
            made = ast.parse(f"def f({text}): ...").body
            (args,) = (node.args for node in made if isinstance(node, ast.FunctionDef))
            required = [None] * (len(args.args) - len(args.defaults))
            given = [
                *(
                    (arg, node, False)
                    for arg, node in zip(args.args, [*required, *args.defaults], strict=True)
                ),
                *((arg, node, True) for arg, node in zip(args.kwonlyargs, args.kw_defaults, strict=True)),
            ]
            for arg, node, keyword in given:
                default = inspect.Parameter.empty if node is None else ast.literal_eval(node)
                found.append(ForeignParameter(arg.arg, ast.unparse(arg.annotation or arg), default, keyword))
        return tuple(found)

    def of(self, role: str) -> ForeignParameter | None:
        """The parameter with a role."""
        return next((p for p in self.parameters if p.role == role), None)

    def choice(self, question: str) -> Convention:
        """Its answer to a question."""
        return QUESTIONS[question].choices[self.answers[question].choice]

    def chose(self, question: str, *choices: str) -> bool:
        """Whether its answer is one of these."""
        return self.answers[question].choice in choices

    def has(self, way: Way) -> bool:
        """Whether it has one way to say something: a parameter with a role, or one of the answers to a question."""
        if way == "causal" and self.chose("causal", "word", "words"):
            return True
        return self.of(way) is not None if isinstance(way, str) else self.chose(*way)

    @cached_property
    def carries(self) -> frozenset[str]:
        """The features of a problem that it has words for."""
        return frozenset(name for name, carried in CARRIED.items() if any(map(self.has, carried.ways)))

    @property
    def aligns_last(self) -> bool:
        """Whether positions are counted so that the last query stands at the last key."""
        return self.chose("causal", "last rows", "word", "words") or self.chose(
            "window", "neighbours, last rows"
        )

    def who(self, method: str) -> str:
        """One of its methods, as the user called it."""
        return f"polyattn.dialects.DIALECTS[{self.name!r}].{method}"

    def __repr__(self) -> str:
        return f"<dialect {self.name}: {self.what}({', '.join(p.name for p in self.parameters)})>"

    # what it does

    def raises(self, name: str, call: WrittenCall, **answers: Convention) -> bool:
        """Whether the result of a call depends on the answer to a question, as this library reads the call."""
        return QUESTIONS[name].raised(call, self._of(READING, call, Settings(), answers))

    def refusals(self, call: WrittenCall) -> list[str]:
        """The questions of a call that are errors in this library."""
        return [name for name in QUESTIONS if self.choice(name).refused(call) and self.raises(name, call)]

    def settings(self, call: WrittenCall, **answers: Convention) -> Settings:
        """What the library does with a call whose arguments are passed on by name, as far as it differs from
        the contract; `answers` replace its own.

        The mask is read first: rows that see nothing are those that see nothing there."""
        reading = self._of(READING, call, Settings(), answers)
        others = [name for name in QUESTIONS if name not in ("layout", *READING)]
        return self._of(others, call, reading, answers)

    def _of(
        self, names: Iterable[str], call: WrittenCall, reading: Settings, answers: Mapping[str, Convention]
    ) -> Settings:
        """The settings that answers to some questions make of others."""
        changes: dict[str, str] = {}
        for name in names:
            if QUESTIONS[name].raised(call, reading):
                changes.update(answers.get(name, self.choice(name)).changes(call))
        return replace(reading, **changes)

    def result_of(self, out: Array, heads: int) -> Array:
        """What the foreign function returned, as (B, H, L, E)."""
        return unpack(self.result or self.answers["layout"].choice, out, heads)
