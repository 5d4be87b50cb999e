"""The process in which a file of somebody else is run: it loads the file, and answers calls of its function.

What the file prints goes nowhere, and what it reads is empty: the pipes of this process are put out of its way first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from polyattn.parity.bench import MissingBench, load_bench
from polyattn.parity.grading.calling import Reply, accepted, call, sentence_of
from polyattn.parity.grading.frames import receive, send

__all__ = ["main"]


class NoFunction(Exception):
    """The file has no such function, in words."""


def main() -> None:
    """Answers calls until nobody asks any more."""
    there, back = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    asked = receive(there)
    try:
        bench = load_bench(asked["library"], who=asked["who"])
    except MissingBench as error:
        send(back, {"missing": str(error)})
        return
    send(back, {})
    try:
        function = _load(Path(asked["path"]), asked["function"])
    except NoFunction as error:
        send(back, {"trouble": str(error)})
        return
    send(back, {"accepted": sorted(accepted(function))})
    _answer(there, back, lambda given: call(function, bench, given))
    os._exit(0)  # whatever threads and exits the file has left


def _answer(there: BinaryIO, back: BinaryIO, ask: Callable[[dict[str, Any]], Reply]) -> None:
    while True:
        try:
            given = receive(there)
        except EOFError:
            return
        try:
            reply = ask(given)
        except BaseException as error:  # nobody pressed a key here: the function raised it
            reply = Reply(None, f"it raised {sentence_of(error)}")
        out = {} if reply.out is None else {"out": reply.out}
        send(back, {"trouble": reply.trouble, "changed": reply.changed, "dtype": reply.dtype, **out})


def _load(path: Path, name: str) -> Callable[..., Any]:
    module = ModuleType("__solution__")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))  # behind the libraries: a file torch.py beside it hides none of them
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        where = "" if error.lineno is None else f" at line {error.lineno}"
        raise NoFunction(f"a syntax error{where}, {sentence_of(error)}; try python on it first") from None
    except Exception as error:
        raise NoFunction(
            f"what Python cannot compile, {sentence_of(error)}; try python on it first"
        ) from None
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        raise NoFunction(
            f"one that ends when it is loaded, by {sentence_of(error)}; try python on it first"
        ) from None
    function = module.__dict__.get(name)
    if callable(function):
        return function
    own = [
        word
        for word, x in module.__dict__.items()
        if callable(x) and getattr(x, "__module__", None) == module.__name__
    ]
    there = f"only {', '.join(sorted(own)[:9])}" if own else "no function at all"
    what = "no such name" if function is None else "that name for something that cannot be called"
    raise NoFunction(f"{what} and {there}; name the function with --function")
