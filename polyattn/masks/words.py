"""The masks that have a word on the command line, `polyattn mask`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: What makes a mask of integers, by name.
WORDS: dict[str, Callable[..., Any]] = {}


def word(f: F) -> F:
    """Registers a function (integers) -> Mask under its name."""
    WORDS[f.__name__] = f
    return f
