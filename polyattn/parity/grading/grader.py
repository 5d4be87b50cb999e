"""Which rules of attention a function breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

from polyattn.parity.bench import load_bench
from polyattn.parity.diagnosis import diagnose
from polyattn.parity.grading.calling import Reply, accepted, call, short
from polyattn.parity.grading.rules import CHECKS, Check
from polyattn.parity.grading.trial import Broken, NotTaken, Trial
from polyattn.parity.grading.verdicts import BROKEN, KEPT, NOT, Grade, Verdict

__all__ = ["LIBRARIES", "RULES", "Grade", "Verdict", "grade", "grade_file"]

LIBRARIES = ("numpy", "jax", "torch")
#: The names of the rules, in the order in which they are taught.
RULES = tuple(check.name for check in CHECKS)


def grade(
    function: Callable[..., Any], *, rules: Sequence[str] | None = None, library: str = "numpy"
) -> Grade:
    """Which rules of attention a function breaks: attention(query, key, value), maybe with mask, is_causal and scale
    by keyword, on arrays of "numpy", "jax" or "torch" in float32.

    query (L, D), key (S, D) and value (S, E) give (L, E); leading axes where the function takes them. A broken rule
    has the smallest example that shows it and what `diagnose` says of it. What the function does not take is not
    attempted, and neither is what an earlier broken rule would show again. rules: names of those to grade, each then
    asked of the function whether it takes it or not; "all" are all, with the demanding ones, "hidden" and "dtype",
    which nobody is graded by unasked.

    The function runs here, with no time limit; `polyattn.parity.grade_file` runs that of a file in a process of its
    own. ValueError for an unknown rule or library, `polyattn.testing.MissingBench` for a library that is not there.

    >>> import numpy as np
    >>> def attention(q, k, v):
    ...     e = np.exp(q @ k.T)
    ...     return e / e.sum(-1, keepdims=True) @ v
    >>> found = grade(attention)
    >>> [verdict.name for verdict in found.broken]
    ['scale', 'large']
    >>> print(found.broken[0])
    scale: scores are divided by the square root of the width of a query (docs/contract.md#rule-1)
      query [[1 1 1 1]]  key [[0 0 0 0] [1 1 0 0]]  value [[0] [1]]
      expected [[0.7311]]
      got      [[0.8808]]
      mistake: scale = 1 (scores not divided)
    """
    who = "polyattn.parity.grade"
    if not callable(function):
        raise TypeError(
            f"{who}: expected a function, got {type(function).__name__}; polyattn.parity.grade_file takes a file"
        )
    checks = _checks(who, rules)
    bench = load_bench(_known(who, library), who=who)
    name = short(str(getattr(function, "__name__", "attention")))
    return _graded(partial(call, function, bench), accepted(function), name, library, checks, rules)


def grade_file(
    path: str | PathLike[str],
    function: str = "attention",
    *,
    rules: Sequence[str] | None = None,
    library: str = "numpy",
    seconds: float = 10.0,
    who: str = "polyattn.parity.grade_file",
) -> Grade:
    """`polyattn.parity.grade` of a function in a Python file, which runs in a process of its own: what prints, raises,
    never ends or kills its process breaks a rule, and the grading goes on.

    seconds: the limit for each call, and for loading the file. The process has the rights of whoever runs this: it is
    no sandbox. who: the function or command that the user called, which errors name.

    FileNotFoundError or ValueError, one sentence, for a path that is no file, a file that cannot be loaded, and a
    file without that function; otherwise as `grade`.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "solution.py")
    ...     _ = file.write_text("def attention(q, k, v): raise SystemExit")
    ...     print(grade_file(file, rules=["shapes"]).broken[0].why)
    it ended the program, by sys.exit or the like; return the output instead
    """
    from polyattn.parity.grading.apart import Apart  # subprocess and threads are for this alone
    from polyattn.weights.untrusted import path_of, to_read

    checks = _checks(who, rules)
    _known(who, library)
    if not 0 < seconds < 1e6:
        raise ValueError(f"{who}: expected seconds above 0 and below a million, got {seconds}; ten is usual")
    file = path_of(who, path)
    to_read(who, file)
    with Apart(who, file, function, library, seconds) as ask:
        return _graded(ask, ask.accepted, short(f"{function} of {file.name}"), library, checks, rules)


def _known(who: str, library: str) -> str:
    if library not in LIBRARIES:
        raise ValueError(
            f"{who}: expected a library among {', '.join(LIBRARIES)}, got {str(library)[:40]!r}; choose one"
        )
    return library


def _checks(who: str, rules: Sequence[str] | None) -> list[Check]:
    if rules is None:
        return [check for check in CHECKS if not check.demanding]
    if isinstance(rules, str):
        raise TypeError(f"{who}: expected a list of rules, got {rules[:40]!r}; write [{rules[:40]!r}]")
    unknown = [str(name) for name in rules if name not in (*RULES, "all")]
    if unknown or not rules:
        got = repr(unknown[0][:40]) if unknown else "none"
        raise ValueError(
            f"{who}: expected rules among {', '.join(RULES)}, or all, got {got}; name some of them"
        )
    return [check for check in CHECKS if check.name in rules or "all" in rules]


def _graded(
    ask: Callable[[Mapping[str, Any]], Reply],
    takes: frozenset[str],
    name: str,
    library: str,
    checks: Sequence[Check],
    rules: Sequence[str] | None,
) -> Grade:
    verdicts: list[Verdict] = []
    failed: dict[str, str] = {}  # a rule -> the broken one that it waits for
    for check in checks:
        lacking = [word for word in check.needs if word not in takes]
        earlier = next((failed[name] for name in check.after if name in failed), None)
        head = (check.name, check.says, check.rule)
        if lacking and rules is None:
            why = f"it does not take {' and '.join(f'{word}=' for word in lacking)}"
            verdicts.append(Verdict(*head, NOT, why))
        elif earlier is not None:
            failed[check.name] = earlier
            verdicts.append(Verdict(*head, NOT, f"first repair {earlier}"))
        else:
            verdicts.append(_one(ask, check, rules is not None))
            if verdicts[-1].state == BROKEN:
                failed[check.name] = check.name
    return Grade(name, library, tuple(verdicts))


def _one(ask: Callable[[Mapping[str, Any]], Reply], check: Check, asked_for: bool) -> Verdict:
    head = (check.name, check.says, check.rule)
    try:
        check.run(Trial(ask))
    except NotTaken as why:
        if asked_for:
            return Verdict(*head, BROKEN, f"{why}: {why.trouble}")
        return Verdict(*head, NOT, str(why))
    except Broken as broken:
        mistake = "" if broken.trouble else _named(ask, check)
        applies = not mistake and (not broken.trouble or check.probe is None)
        usual = check.usual if applies else ""
        return Verdict(*head, BROKEN, broken.trouble, broken.example, mistake, usual)
    return Verdict(*head, KEPT)


def _named(ask: Callable[[Mapping[str, Any]], Reply], check: Check) -> str:
    """What `diagnose` calls the mistake, "" if it knows none."""
    if check.probe is None or (out := ask(check.probe).out) is None:
        return ""
    try:
        found = diagnose(out, **check.probe, dtype="float32")
    except (ValueError, TypeError):  # the answer has another shape
        return ""
    # What no call answers, as NaN everywhere, is seen and no mistake that could be mended.
    if not found.findings or found.findings[0].call is None:
        return ""
    alike = "".join(f", or {' and '.join(other.sentences)}" for other in found.alike[:3])
    return " and ".join(found.findings[0].sentences) + alike
