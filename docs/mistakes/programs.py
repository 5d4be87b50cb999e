"""Laws that layers, programs, tests and words keep, each a function as in invariants.py."""

from __future__ import annotations

import dis
import io
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from itertools import product
from typing import Any

import numpy as np
from invariants import draw, law

# ---- layers ----


@law
def every_parameter_matters(layer: Any, params: Mapping[str, Any], *given: Any) -> str:
    """Every parameter changes the result, so that a gradient can reach it."""
    before = layer(params, *given)
    idle = [
        name
        for name, x in params.items()
        if np.array_equal(before, layer({**params, name: x + draw(*x.shape)}, *given))
    ]
    return f"other numbers in {', '.join(idle)} change no bit of the result" if idle else ""


@law
def every_argument_matters(
    function: Callable[..., Any], usual: Mapping[str, Any], other: Mapping[str, Any]
) -> str:
    """Every argument changes the result."""
    before = function(**usual)
    idle = [name for name in other if np.array_equal(before, function(**{**usual, name: other[name]}))]
    return f"another {' or another '.join(idle)} changes no bit of the result" if idle else ""


@law
def runs(function: Callable[..., Any], *given: Any, **named: Any) -> str:
    """It runs as it is called."""
    function(*given, **named)
    return ""


@law
def refuses(function: Callable[..., Any], *given: Any, numbers: Iterable[int]) -> str:
    """What cannot work is refused by a ValueError that says the numbers."""
    try:
        function(*given)
    except ValueError as error:
        missing = [n for n in numbers if str(n) not in str(error)]
        return f'"{error}" does not say {" and ".join(map(str, missing))}' if missing else ""
    return "it is not refused"


@law
def same_numbers_again(program: Callable[[], Any]) -> str:
    """A second run gives the same bits."""
    first, second = program(), program()
    return "" if np.array_equal(first, second) else f"one run gave {first:.3f}, the next {second:.3f}"


# ---- programs and tests ----


@law
def every_name_is_used(function: Any) -> str:
    """Every name that is given a value is read."""
    code = function.__code__
    read: set[str] = set()
    for step in dis.get_instructions(code):
        words = step.opname.split("_")
        if {"FAST", "DEREF", "CLOSURE"} & set(words):  # in one step there may be two: STORE_FAST_LOAD_FAST
            names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            kinds = [word for word in words if word in ("LOAD", "STORE", "DELETE")]
            read |= {name for kind, name in zip(kinds, names, strict=False) if kind == "LOAD"}
    idle = [name for name in code.co_varnames if name not in read and name != "_"]
    return f"{', '.join(idle)}: given a value and never read" if idle else ""


@law
def the_test_can_fail(test: Callable[[Any], None], right: Any, *broken: Any) -> str:
    """The test passes what is right, and fails what is broken."""
    test(right)
    for function in broken:
        try:
            test(function)
        except AssertionError:
            continue
        return f"the test passes {function.__name__} too"
    return ""


@law
def prints_what_stands_below(program: str, below: str) -> str:
    """The program prints what stands below it."""
    with redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    if printed.getvalue() == below:
        return ""
    return f"the program prints {printed.getvalue()!r}, below it stands {below!r}"


@law
def comes_back(there: Callable[[Any], Any], back: Callable[[Any], Any], thing: Any) -> str:
    """There and back again is where it began."""
    found = back(there(thing))
    return "" if found == thing else f"{thing!r} comes back as {found!r}"


@law
def leaves_the_system_alone(commands: str) -> str:
    """What is installed goes into an environment of its own."""
    own = False
    for line in commands.strip().splitlines():
        own |= " -m venv " in line
        if "--break-system-packages" in line or line.startswith("sudo "):
            return f"{line.strip()!r} writes over what the system itself needs"
        if "pip install" in line and not own:
            return f"{line.strip()!r} comes before an environment is made"
    return ""


# ---- what is said of costs ----


class Counted:
    """A number that counts how often it is multiplied."""

    multiplications = 0

    def __mul__(self, other: Any) -> Counted:
        Counted.multiplications += 1
        return self

    def __add__(self, other: Any) -> Counted:
        return self


@law
def scores_cost_what_is_said(said: Callable[[int, int], int], width: int = 3, tokens: int = 4) -> str:
    """The multiplications of all scores are as many as is said, for every number of kv heads."""
    for heads, kv_heads in product((4,), (1, 2, 4)):
        q = np.full((heads, tokens, width), Counted(), dtype=object)
        k = np.full((kv_heads, tokens, width), Counted(), dtype=object)
        Counted.multiplications = 0
        q @ np.repeat(k, heads // kv_heads, axis=0).swapaxes(-1, -2)
        claim = said(heads, kv_heads) * tokens * tokens * width
        if claim != Counted.multiplications:
            return (
                f"{kv_heads} kv heads, {heads} query heads: {claim} multiplications are said, "
                f"{Counted.multiplications} are done"
            )
    return ""
