"""Functions of the caller: how many arguments they take, and what they do with arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from polyattn.calls.kinds import shown

__all__ = ["ambiguous", "check_function"]


def check_function(
    who: str, name: str, f: Callable[..., Any], parameters: str, gives: str, write: str = ""
) -> None:
    """A TypeError unless f can be called with these parameters, "b, h, q_idx, kv_idx", by position.

    write: what stands before the function where it is passed, "mask=".

    Not to be asked under a compiler, which cannot look at signatures.
    """
    count = parameters.count(",") + 1
    if isinstance(f, FunctionType) and f.__code__.co_argcount == count and not f.__code__.co_kwonlyargcount:
        return  # the usual one, in no time
    form = f"{name}({parameters}) -> {gives}"
    if isinstance(f, type):
        raise TypeError(
            f"{who}: expected a function {form}, got the class {f.__name__}; "
            f"write {write}{'mods.softcap(50.0)' if 'score' in gives else 'masks.causal()'}, or another that makes a function"
        )
    if (home := getattr(f, "__module__", None) or "").startswith(("polyattn.masks", "polyattn.mods")):
        room, called = home.split(".")[1], getattr(f, "__name__", "")
        if called and not called.startswith("_") and inspect.isfunction(f):
            raise TypeError(
                f"{who}: expected a function {form}, got {room}.{called}, which makes one and was not called; "
                f"write {write}{room}.{called}{_arguments(f)}"
            )
    if not _takes(f, count):
        called, names = getattr(f, "__name__", type(f).__name__), parameters
        raise TypeError(
            f"{who}: expected a function {form}, got {shown(f)}, which does not take {count} arguments; "
            f"write {write}lambda {names}: {'...' if called == '<lambda>' else f'{called}({_passed(f, names)})'}"
        )


def ambiguous(error: Exception) -> bool:
    """Whether an error is that of `and`, `or`, `not`, `if` or float() on a whole or a traced array."""
    text = f"{type(error).__name__}: {error}"
    return any(
        word in text
        for word in ("ruth value", "mbiguous", "TracerBool", "ConcretizationType", "0-dimensional arrays can be", "only be applied to zero-dimensional", "only length-1 arrays", "converted to Scalar")
    )  # fmt: skip


def _takes(f: Callable[..., Any], count: int) -> bool:
    inputs = getattr(f, "nin", None)  # of a NumPy ufunc, whose further arguments are outputs
    if isinstance(inputs, int):
        return inputs == count
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # written in C
        return not inspect.isbuiltin(f)
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _passed(f: Callable[..., Any], names: str) -> str:
    """The arguments that a shorter function is likely to want, "q_idx, kv_idx" of two."""
    count = getattr(f, "nin", None)
    if count is None:
        try:
            count = len(inspect.signature(f).parameters)
        except (TypeError, ValueError):
            count = 1
    every = names.split(", ")
    if every[0] != "score":
        return ", ".join(every[len(every) - count :])
    return ", ".join([every[0], *(every[1 - count :] if count > 1 else [])])


def _arguments(f: Callable[..., Any]) -> str:
    required = [p.name for p in inspect.signature(f).parameters.values() if p.default is p.empty]
    return f"({', '.join(required)})"
