"""The kinds of the fields of a frozen dataclass, as its annotations say them."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from polyattn.calls.kinds import number, shown, with_article

__all__ = ["check_fields"]

#: Fields about which others have more to say.
_ELSEWHERE = ("mask", "score_mod", "sinks", "implementation")


def check_fields(who: str, made: type, given: Mapping[str, Any]) -> None:
    """A TypeError unless each value is of the kind that its field is annotated with; integers are left to others."""
    for name, value in given.items():
        kinds = _kinds(made).get(name, ())
        if kinds == (int,):
            if value is None:
                raise ValueError(
                    f"{who}: expected {name} to be a positive int, got None; give a size of at least 1"
                )
            continue
        if not kinds or any(_is(kind, value) for kind in kinds):
            continue
        if float in kinds:
            number(who, name, value)
            continue
        raise TypeError(
            f"{who}: expected {name} to be {' or '.join(map(_said, kinds))}, got {shown(value)}; pass "
            f"{'one' if len(kinds) == 1 else 'one of these'}"
        )


@lru_cache(maxsize=256)
def _kinds(made: type) -> dict[str, tuple[Any, ...]]:
    """The kinds that a field may be of, none where anything may be given or others look."""
    found = {}
    for name, hint in get_type_hints(made).items():
        kinds = _alternatives(hint)
        anything = any(kind is Any or get_origin(kind) is Callable for kind in kinds)
        sizes = int in kinds and len(kinds) > 1
        found[name] = () if anything or sizes or name in _ELSEWHERE else kinds
    return found


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        parts = parts[:1] * len(value) if parts[1:] == (...,) and isinstance(value, tuple) else parts
        return (
            isinstance(value, tuple)
            and len(value) == len(parts)
            and all(
                any(_is(one, x) for one in _alternatives(part)) for part, x in zip(parts, value, strict=True)
            )
        )
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = get_origin(kind) or kind  # what a tuple holds is looked at by others
    return isinstance(kind, type) and isinstance(value, kind)


def _said(kind: Any) -> str:
    if kind is bool:
        return "True or False"
    if kind is type(None):
        return "None"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a tuple"
    name = getattr(kind, "__name__", str(kind))
    return {"float": "a Python number", "str": "a string"}.get(name, with_article(name))
