"""A call as a foreign library has it: bound to the signature in the record, its arguments by their roles."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from polyattn.arrays import Backend, backend_of, is_array
from polyattn.dialects.record import Record

__all__ = ["ForeignCall", "bind"]


def bind(d: Record, who: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a foreign call by role; a sentence where they do not fit the signature."""
    kinds = inspect.Parameter
    signature = inspect.Signature(
        [
            kinds(p.name, kinds.KEYWORD_ONLY if p.keyword else kinds.POSITIONAL_OR_KEYWORD, default=p.default)
            for p in d.parameters
        ]
    )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{who}: expected the arguments of {d.what}, {signature}, got others ({error}); "
            "write the call as that library has it"
        ) from None
    bound.apply_defaults()
    for p in d.parameters:
        value = bound.arguments[p.name]
        if p.role == "fixed" and (is_array(value) or value != p.default):
            got = f"an array of shape {tuple(value.shape)}" if is_array(value) else repr(value)
            raise ValueError(
                f"{who}: expected {p.name} = {p.default!r}, got {got}; polyattn.attention has no such thing, "
                "leave it out"
            )
    return {p.role: bound.arguments[p.name] for p in d.parameters if p.role not in ("fixed", "free")}


class ForeignCall:
    """One foreign call: its arguments by role, and the sentences that refuse them."""

    def __init__(self, d: Record, who: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.d, self.who = d, who
        self.given = given = bind(d, who, args, kwargs)
        for role in ("query", "key", "value"):
            if not is_array(given[role]):
                raise self.no_array(role, given[role])
        self.backend: Backend = backend_of(given["query"])
        if d.chose("causal", "word") and isinstance(word := given.get("mask"), str):
            if word != "causal":
                raise self.wrong(
                    "mask", "to be an array, or the word 'causal'", repr(word), "write one of these"
                )
            given["mask"], given["causal"] = None, True

    def name(self, role: str) -> str:
        parameter = self.d.of(role)
        return role if parameter is None else parameter.name

    def wrong(self, role: str, expected: str, got: Any, advice: str) -> ValueError:
        return ValueError(f"{self.who}: expected {self.name(role)} {expected}, got {got}; {advice}")

    def no_array(self, role: str, got: Any) -> TypeError:
        kind = type(got).__name__
        return TypeError(f"{self.who}: expected {self.name(role)} to be an array, got {kind}; convert it")

    def flag(self, role: str) -> bool:
        value = self.given.get(role, False)
        if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
            return bool(value)
        raise TypeError(
            f"{self.who}: expected {self.name(role)} to be True or False, got {value!r}; pass one of these"
        )

    def has(self, role: str) -> bool:
        return self.given.get(role) is not None
