"""What the chapters share: source lines of the library, the same call on every array library, and exercises.

    source(thing)                the very lines that run, as a cell shows them
    everywhere(f, *arrays)       f on NumPy, JAX and PyTorch in float32, each with its eta
    check("scores.1", mine)      the answer to an exercise: which law it breaks, or that it keeps them all

The laws of the cards of mistakes are here too: `from classroom import laws`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
from IPython.display import Markdown

from polyattn.draw import html_table
from polyattn.parity.cases.scores import SIX_TOKENS
from polyattn.testing import load_bench
from polyattn.truth import UNIT_ROUNDOFF, Judged, eta
from polyattn.truth.rounding import Rounded, noise

HERE = Path(__file__).parent
sys.path[:0] = [folder for folder in (str(HERE), str(HERE.parent / "mistakes")) if folder not in sys.path]
laws = import_module("invariants")
law, Verdict, apart, draw = laws.law, laws.Verdict, laws.apart, laws.draw

LIBRARIES = ("numpy", "jax", "torch")
#: The six tokens of every chapter, small enough to be computed by hand.
WORDS = ("Your", "journey", "starts", "with", "one", "step")
SIX = np.array(SIX_TOKENS)
DRAWS = 8


def source(*things: Any) -> Markdown:
    """The lines of functions and classes of the library, and where they are."""
    return Markdown("\n\n".join(map(_lines, things)))


def _lines(thing: Any) -> str:
    thing = inspect.unwrap(thing)
    lines, first = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(thing) or "")
    top = thing.__module__.partition(".")[0]
    where = "/".join(file.parts[len(file.parts) - file.parts[::-1].index(top) - 1 :])
    return f"`{where}`, line {first}\n\n```python\n{dedent(''.join(lines)).rstrip()}\n```"


@dataclass(frozen=True)
class Everywhere:
    """What a function gave on each library: its result, and the error in units of rounding."""

    results: dict[str, Any]
    etas: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest eta."""
        return max(self.etas.values())

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Library, shape, the first numbers, eta."""
        return [
            (
                name,
                str(tuple(x.shape)),
                " ".join(f"{n:.6g}" for n in np.ravel(x)[:4]) + (" ..." if x.size > 4 else ""),
                f"{self.etas[name]:.2f}",
            )
            for name, x in self.results.items()
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:6} {shape:14} {first:44} eta {e}" for name, shape, first, e in self.rows())

    def _repr_html_(self) -> str:
        return html_table(("library", "shape", "result", "eta"), self.rows())


def everywhere(f: Callable[..., Any], *arrays: Any, judged: Judged | None = None) -> Everywhere:
    """f of the same arrays on NumPy, JAX and PyTorch, in float32; f returns one array.

    eta is the error in units of what rounding explains. The truth is f in float64 on NumPy. Rounding explains as much as that
    moves if what goes in, every operation, and what comes out err by one rounding, up or down at random; or both are as
    `judged` has them.
    """
    given = [np.asarray(x) for x in arrays]
    real = [np.issubdtype(x.dtype, np.floating) for x in given]
    given = [x.astype(np.float32) if is_real else x for x, is_real in zip(given, real, strict=True)]

    def computed(number: Callable[[Any], Any], whole: Callable[[Any], Any] = np.asarray) -> Any:
        return f(*(number(x) if is_real else whole(x) for x, is_real in zip(given, real, strict=True)))

    judged = judged or _judged(computed)
    results, etas = {}, {}
    for name in LIBRARIES:
        bench = load_bench(name)
        results[name] = bench.numpy(computed(lambda x, bench=bench: bench.array(x, "float32"), bench.array))
        etas[name] = eta(results[name], judged, "float32")
    return Everywhere(results, etas)


def _judged(computed: Callable[..., Any]) -> Judged:
    rng = Rounded.rng = np.random.default_rng(0)
    value, unit = np.asarray(computed(np.float64)), UNIT_ROUNDOFF["float32"]

    def near(x: Any) -> Any:
        return x * (1 + unit * rng.choice([-1.0, 1.0], x.shape))

    moved = np.max([np.abs(np.asarray(computed(near)) - value) for _ in range(DRAWS)], axis=0)
    condition = np.abs(value) + (moved + noise(computed, DRAWS)) / unit
    return Judged(value.astype(np.longdouble), condition.astype(np.longdouble))


# ---- exercises ----


@dataclass(frozen=True)
class Exercise:
    """Laws that an answer keeps, in the order in which they are asked, and for each a wrong answer that breaks it."""

    laws: tuple[Callable[[Any], Any], ...]
    wrong: dict[str, Callable[..., Any]]  # name of a law -> an answer that breaks it, and none before it


@dataclass(frozen=True, repr=False)
class Answer:
    """What `check` says."""

    passed: bool
    law: str  # the first that is broken; "" where there is none, "unwritten" where nothing was written yet
    sentence: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'right' if self.passed else self.law.replace('_', ' ')}: {self.sentence}"


def check(name: str, mine: Callable[..., Any]) -> Answer:
    """The answer to exercise `chapter.number`, by laws that need not be read to be kept."""
    exercise, called = exercise_named(name), getattr(mine, "__name__", "it")
    if not callable(mine) or _is_unwritten(mine):
        return Answer(False, "unwritten", f"write {called}, and run this cell again")
    given: list[Any] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        given.append(mine(*arguments, **options))
        return given[-1]

    for asked in exercise.laws:
        verdict = asked(watched)
        if given and given[-1] is None:
            return Answer(False, asked.__name__, f"{called} gave None; is a return missing?")
        if not verdict:
            return Answer(False, asked.__name__, verdict.sentence)
    count = len(exercise.laws)
    return Answer(True, "", f"it keeps {'the law' if count == 1 else f'all {count} laws'} of exercise {name}")


def exercise_named(name: str) -> Exercise:
    """Exercise 1, 2 or 3 of a chapter, as in "scores.1"."""
    chapter, _, number = name.partition(".")
    found = exercises().get(chapter, {})
    if number not in found:
        raise ValueError(
            f"classroom.check: expected an exercise, as scores.1, got {name!r}; there are "
            f"{', '.join(f'{chapter}.{n}' for chapter, them in exercises().items() for n in them)}"
        )
    return found[number]


def exercises() -> dict[str, dict[str, Exercise]]:
    """chapter -> number -> exercise, in the order of the chapters."""
    names = [path.stem for path in sorted(HERE.glob("[0-9][0-9]-*.md"))]
    return {
        name[3:]: {
            str(i): found
            for i, found in enumerate(import_module(f"exercises.{name[3:].replace('-', '_')}").EXERCISES, 1)
        }
        for name in names
    }


def _is_unwritten(mine: Any) -> bool:
    """Whether the body is still the dots that were to be replaced."""
    code = getattr(mine, "__code__", None)
    return code is not None and (code.co_code, code.co_consts) == (
        _dots.__code__.co_code,
        _dots.__code__.co_consts,
    )


def _dots() -> None: ...
