"""Masks from text, such as "causal & key_lengths([3, 5])": names, integers, lists of them, & | ~ and brackets.

Nothing is evaluated, and no text is nested deeper than it is read: operators wait on a stack.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any

from polyattn.arrays import numpy_backend
from polyattn.masks import documents, ranges, trees
from polyattn.masks.algebra import Mask
from polyattn.masks.words import WORDS

__all__ = ["NAMES", "parse_mask"]

LONGEST, DEEPEST, LARGEST = 1000, 150, 2**31  # characters; masks inside masks; numbers are below
BINDS = {"|": 1, "&": 2, "~": 3}
_SAID_OTHERWISE = {"and": "&", "or": "|", "not": "~", "&&": "&", "||": "|", "!": "~", "+": "|"}
_TOKEN = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<args>[^()]*)\))?|&&|\|\||[^\s\w]|\S", re.ASCII)


def _of_arrays(make: Callable[..., Mask]) -> Callable[..., Mask]:
    """A function on arrays, given lists or numbers."""

    @wraps(make)
    def made(*values: Any) -> Mask:
        return make(*(x if x is None else numpy_backend().xp.asarray(x, dtype="int64") for x in values))

    return made


#: What makes a mask, by name.
NAMES = {
    **WORDS,
    "segments": _of_arrays(documents.segments),
    "documents": _of_arrays(documents.segments),
    "key_ranges": _of_arrays(ranges.key_ranges),
    "shared_prefix": _of_arrays(documents.shared_prefix),
    "tree": _of_arrays(trees.tree),
}


def parse_mask(text: str) -> Mask:
    """The mask that a text describes; ValueError with the place where it does not.

    Lists are a number for each batch item, or one for each token, in brackets once more for each item.

    >>> parse_mask("causal & ~window(1, 0)")
    <mask causal() & ~window(1, 0)>
    >>> print(parse_mask("causal & documents([0, 0, 1])").show(3))
    # . .
    # # .
    . . #
    """
    if len(text) > LONGEST:
        raise ValueError(
            f"polyattn mask: expected at most {LONGEST} characters, got {len(text)}; write a shorter mask"
        )
    masks: list[tuple[Mask, int]] = []  # with how deep each is
    waiting: list[str] = []  # operators and open brackets
    complete = False  # whether a mask has just ended
    for token in _TOKEN.finditer(text):
        sign, here = token[0], f"at character {token.start() + 1}"
        if (word := token["name"] or sign) in _SAID_OTHERWISE:
            raise _wrong(text, f"{word!r} {here}; {_SAID_OTHERWISE[word]} is the sign for that")
        if complete == (sign in "~(" or token["name"] is not None):
            raise _wrong(
                text, f"{sign[:40]!r} {here}, where {'& or |' if complete else 'a mask'} should stand"
            )
        if token["name"] is not None:
            masks.append((_call(token["name"], token["args"], text), 1))
            complete = True
        elif sign in "~(":
            waiting.append(sign)
        elif sign in "&|":
            _join(masks, waiting, BINDS[sign], text)
            waiting.append(sign)
            complete = False
        elif sign == ")":
            _join(masks, waiting, 0, text)
            if not waiting:
                raise _wrong(text, f"')' {here} closes nothing")
            waiting.pop()
        else:
            raise _wrong(text, f"{sign!r} {here} means nothing")
    if not complete:
        raise _wrong(text, "it ends where a mask should stand")
    _join(masks, waiting, 0, text)
    if waiting:
        raise _wrong(text, "'(' is not closed")
    return masks[0][0]


def _join(masks: list[tuple[Mask, int]], waiting: list[str], least: int, text: str) -> None:
    """Applies what waits, up to the last open bracket, and binds at least so much."""
    while waiting and waiting[-1] != "(" and BINDS[waiting[-1]] >= least:
        sign, (right, deep) = waiting.pop(), masks.pop()
        if sign == "~":
            masks.append((~right, deep + 1))
        else:
            left, other = masks.pop()
            masks.append((left & right if sign == "&" else left | right, max(deep, other) + 1))
        if masks[-1][1] > DEEPEST:
            raise _wrong(text, f"it has more than {DEEPEST} masks inside each other")


def _call(name: str, args: str | None, text: str) -> Mask:
    if name not in NAMES:
        near = get_close_matches(name, NAMES, 1)
        raise _wrong(
            text, f"{name[:40]!r} is not the name of a mask" + (f"; did you mean {near[0]}" if near else "")
        )
    make, values = NAMES[name], _values(name, args or "", text)
    try:
        inspect.signature(make).bind(*values)
    except TypeError:
        takes = ", ".join(inspect.signature(make).parameters) or "nothing"
        raise _wrong(text, f"{name} takes {takes}, got {len(values)} values") from None
    try:
        made: Mask = make(*values)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return made


def _values(name: str, args: str, text: str) -> list[Any]:
    """The arguments of one mask: integers, None, and lists of integers."""
    said = f"{name}({args[:40]}) is given something else than integers, None and [lists]"
    if not re.fullmatch(r"(?:[\s\d,\[\]-]|None)*", args, re.ASCII):
        raise _wrong(text, said)
    try:
        values: list[Any] = json.loads(f"[{args.replace('None', 'null')}]")
    except (ValueError, RecursionError):
        raise _wrong(text, said) from None
    for value in values:
        _check(name, value, text)
    return values


def _check(name: str, value: Any, text: str) -> None:
    """An integer or None; a list of integers, or of lists of integers that are equally long."""
    if not isinstance(value, list):
        if value is not None and abs(value) >= LARGEST:
            raise _wrong(text, f"{name} is given a number of 2**31 or more")
        return
    nested = [x for x in value if isinstance(x, list)]
    if nested and (len(nested) < len(value) or len({len(x) for x in nested}) > 1):
        raise _wrong(text, f"{name} is given lists that are not equally long")
    for x in (x for inner in nested for x in inner) if nested else value:
        if not isinstance(x, int):
            raise _wrong(text, f"{name} is given a list of something else than integers")
        _check(name, x, text)


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(
        f"polyattn mask: expected {', '.join(NAMES)} with integers or lists of them, joined by & | ~ and brackets, got "
        f"{text[:80]!r}: {why}; write for example: causal & window(2, 0)"
    )
