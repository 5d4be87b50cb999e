"""A dialect: how one library writes attention down, and what it answers."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from polyattn.arrays import Array
from polyattn.conventions.settings import Settings
from polyattn.dialects.questions import QUESTIONS, Case, Choice


class Claim(NamedTuple):
    """What a library answers to one question."""

    choice: str
    tested: bool = False  # the tests put the question to the library itself; otherwise it was read
    note: str = ""


class Parameter(NamedTuple):
    """One parameter of a foreign function: the part that it plays, and its default."""

    name: str
    role: str
    default: Any = inspect.Parameter.empty
    keyword: bool = False


@dataclass(frozen=True)
class Dialect:
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
    returns: str = "out"  # or "(out, None)", "(out, weights)"
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of the function, then those of the module."""
        found = []
        for text in (self.signature, f"*, {self.module}" if self.module else ""):
            made = ast.parse(f"def f({text}): ...").body[0]
            assert isinstance(made, ast.FunctionDef)
            args = made.args
            empty = inspect.Parameter.empty
            defaults = [empty] * (len(args.args) - len(args.defaults)) + [
                ast.literal_eval(d) for d in args.defaults
            ]
            for arg, default in zip(args.args, defaults, strict=True):
                found.append(Parameter(arg.arg, ast.unparse(arg.annotation or arg), default))
            for arg, node in zip(args.kwonlyargs, args.kw_defaults, strict=True):
                value = empty if node is None else ast.literal_eval(node)
                found.append(Parameter(arg.arg, ast.unparse(arg.annotation or arg), value, keyword=True))
        return tuple(found)

    def of(self, role: str) -> Parameter | None:
        """The parameter with a role."""
        return next((p for p in self.parameters if p.role == role), None)

    def choice(self, question: str) -> Choice:
        """Its answer to a question."""
        return QUESTIONS[question].choices[self.answers[question].choice]

    def chose(self, question: str, *choices: str) -> bool:
        """Whether its answer is one of these."""
        return self.answers[question].choice in choices

    def __repr__(self) -> str:
        return f"<dialect {self.name}: {self.what}({', '.join(p.name for p in self.parameters)})>"

    # what it does

    def refusals(self, case: Case) -> list[str]:
        """The questions of a call that are errors in this library."""
        return [name for name, q in QUESTIONS.items() if q.raised(case) and self.choice(name).refuses]

    def settings(self, case: Case, **answers: Choice) -> Settings:
        """What the library does with a call whose arguments are passed on by name, as far as it differs from
        the contract; `answers` replace its own."""
        changes: dict[str, str] = {}
        for name, question in QUESTIONS.items():
            if name != "layout" and question.raised(case):
                changes.update(answers.get(name, self.choice(name)).changes(case))
        return Settings(**changes)

    # translation

    def to_polyattn(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of `polyattn.attention` that mean what a call in this dialect says.

        query, key and value come in layout BHLD. ValueError, TypeError: what attention does not have, or what
        the library itself would refuse or documents as an error.
        """
        from polyattn.dialects.to_polyattn import hear

        return hear(self, args, kwargs).arguments

    def from_polyattn(
        self, query: Array, key: Array, value: Array, *, repair: bool = True, **options: Any
    ) -> dict[str, Any]:
        """The keyword arguments of this dialect that mean what arguments of `polyattn.attention` say.

        What has no parameter is expressed by others: causality of another alignment by a mask, a scale by the
        query, sinks by one more key. repair: where the library would still return something else for these
        very arrays (rows that see nothing, NaN in hidden keys), they are changed so that it does not, or the
        call is refused; False says the call plainly, whatever the library makes of it. Values are looked at
        only where they are concrete.
        """
        from polyattn.dialects.from_polyattn import say

        return say(self, query, key, value, repair, options)

    def attention(self, *args: Any, **kwargs: Any) -> Any:
        """This dialect's function, computed by `polyattn.attention` on arrays of any library.

        The result has the foreign layout and form; its numbers are those of the contract.
        """
        from polyattn.dialects.to_polyattn import hear

        return hear(self, args, kwargs).run()

    def result_of(self, out: Array, heads: int) -> Array:
        """What the foreign function returned, as (B, H, L, E)."""
        from polyattn.dialects.layout import unpack

        return unpack(self.result or self.answers["layout"].choice, out, heads)
