"""Tokens as they can be drawn: whatever they hold, in one line, not too long, in signs that the font has."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from polyattn.calls import shown

__all__ = ["LONGEST", "inches", "label_axis", "spoken", "tokens_of"]

LONGEST = 20  # signs of a token that are shown
#: Unicode's kinds of characters that show nothing, or turn the line around.
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def tokens_of(who: str, name: str, value: Any, count: int | None = None, what: str = "") -> list[str] | None:
    """The tokens, or None if there are none; what: the axis that they label, of that many."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(
            f"{who}: expected {name} to be a sequence of texts, got {shown(value)}; write {name}=list(text) for its "
            "letters, or text.split()"
        )
    if wrong := [token for token in value if not isinstance(token, str)]:
        raise TypeError(
            f"{who}: expected {name} to be a sequence of texts, got {shown(wrong[0])} in it; write list(map(str, {name}))"
        )
    if count is not None and len(value) != count:
        raise ValueError(
            f"{who}: expected {name} to have a text for each of the {count} {what}, got {len(value)}; leave out none, not "
            "even those of padding"
        )
    return list(value)


def spoken(token: str, longest: int = LONGEST) -> str:
    """A token in one line: what cannot be seen or drawn by its escape, spaces at its ends as ␣, cut to `longest` signs.

    >>> spoken(" the"), spoken("a\\nb"), spoken("")
    ('␣the', 'a\\\\nb', "''")
    """
    if not token:
        return "''"
    core = token.strip(" ")
    ahead = len(token) - len(token.lstrip(" "))
    seen = "␣" * ahead + core + "␣" * (len(token) - ahead - len(core)) if core else "␣" * len(token)
    signs: list[str] = []
    there = _signs(_families())
    marks = 0
    for sign in seen[: longest + 1]:
        kind = unicodedata.category(sign)
        marks = (
            marks + 1 if kind in ("Mn", "Me") else 0
        )  # a tower of accents would reach into the lines above
        plain = kind not in _UNSEEN and marks < 3 and ord(sign) in there and sign != "\\"
        signs.append(sign if plain else sign.encode("unicode_escape").decode())
    if sum(map(len, signs)) <= longest:
        return "".join(signs)
    while len(signs) > 1 and sum(map(len, signs)) >= longest:
        signs.pop()
    return "".join(signs) + "…"


def _families() -> tuple[str, ...]:
    from matplotlib import rcParams

    return tuple(rcParams["font.family"])


@lru_cache(maxsize=8)
def _signs(families: tuple[str, ...]) -> frozenset[int]:
    """The code points that the fonts of these families have: those that matplotlib draws in without a warning."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    found: set[int] = set()
    for family in families:
        found.update(get_font(findfont(FontProperties(family=[family]))).get_charmap())
    return frozenset(found)


def label_axis(axis: Any, tokens: Sequence[str] | None, count: int, *, most: int = 80) -> None:
    """A token at every place of an axis, every second or third where there are more than `most`; numbers without tokens."""
    if tokens is None:
        if count <= 6:
            axis.set_ticks(range(count))
        else:
            axis.get_major_locator().set_params(integer=True, nbins=8)  # there is no key 2.5
        return
    step = -(-count // most)
    words = [spoken(token) for token in tokens[::step]]
    small = 9 if count <= 24 else 7 if count <= 48 else 6
    style: dict[str, Any] = {"fontsize": small, "parse_math": False}
    if axis.axis_name == "x" and max(map(len, words)) > (2 if count <= 24 else 1):
        style |= {"rotation": 90}
    axis.set_ticks(range(0, count, step), words, **style)
    axis.set_tick_params(length=0)


def inches(tokens: Sequence[str] | None) -> float:
    """The room that they need beside an axis, in the largest letters that `label_axis` takes."""
    return 0.3 if tokens is None else 0.2 + 0.085 * max(len(spoken(token)) for token in tokens)
