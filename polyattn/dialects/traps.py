"""Which traps bite when one call moves from one library to another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyattn import masks, mods
from polyattn._attention import AuxRequest
from polyattn.arrays import backend_of, is_array
from polyattn.conventions.answers import Answer, answer
from polyattn.conventions.call import call_of
from polyattn.conventions.settings import Settings
from polyattn.dialects.question import Convention, WrittenCall
from polyattn.dialects.questions import QUESTIONS
from polyattn.dialects.record import Record
from polyattn.dialects.table import dialect
from polyattn.parity.auto import parse_plan
from polyattn.truth.measure import ACCEPTANCE, UNIT_ROUNDOFF, round_to
from polyattn.truth.spec import Floats

__all__ = ["Explanation", "Trap", "explain", "explain_words"]


@dataclass(frozen=True)
class Trap:
    """A question that two dialects answer differently, and what that does to one call."""

    question: str
    answers: tuple[str, str]  # in words
    eta: float = 0.0  # the difference over what rounding explains; inf where one is NaN or an error
    where: tuple[int, ...] | None = None  # the first element that differs, in (B, H, L, E)
    values: tuple[float, float] | None = None  # there
    meant: float | None = None  # there
    refuses: tuple[bool, bool] = (False, False)

    @property
    def bites(self) -> bool:
        """Whether the call comes out otherwise."""
        return any(self.refuses) or self.eta > ACCEPTANCE


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` found; str() of it is the report."""

    names: tuple[str, str]
    traps: tuple[Trap, ...]
    shared: tuple[Trap, ...]  # where both give the same, and not what is meant
    returns: tuple[Floats | str, Floats | str]  # each one's result, (B, H, L, E); or why there is none
    meant: Floats  # the contract's

    @property
    def bites(self) -> tuple[Trap, ...]:
        return tuple(trap for trap in self.traps if trap.bites)

    @property
    def lurks(self) -> tuple[Trap, ...]:
        shared = {trap.question for trap in self.shared}
        return tuple(trap for trap in self.traps if not trap.bites and trap.question not in shared)

    def __str__(self) -> str:
        a, b = self.names
        lines = [
            f"{a} -> {b}, the same arguments by name: {_count(len(self.bites), 'bites', 'bite')}, "
            f"{_count(len(self.lurks), 'lurks', 'lurk')}"
        ]
        for trap in self.bites:
            lines.append(f"BITES  {QUESTIONS[trap.question].asks}")
            said = zip(self.names, trap.answers, trap.refuses, trap.values or (None, None), strict=True)
            for name, says, refuses, value in said:
                gives = (
                    " -> raises" if refuses else "" if value is None else f" -> {value:.6g} at {trap.where}"
                )
                lines.append(f"         {name}: {says}{gives}")
            if trap.values is not None:
                lines.append(f"         as meant: {trap.meant:.6g}; eta {trap.eta:.2g}")
        for trap in self.lurks:
            lines.append(
                f"lurks  {QUESTIONS[trap.question].asks}: {a} {trap.answers[0]!r}, {b} {trap.answers[1]!r}"
            )
        for trap in self.shared:
            lines.append(f"BOTH   {QUESTIONS[trap.question].asks}: {trap.answers[1]}")
            if trap.values is not None:
                both = f"{trap.values[1]:.6g} at {trap.where}"
                lines.append(f"         {both}, as meant: {trap.meant:.6g}; eta {trap.eta:.2g}")
        return "\n".join([*lines, *self.results()])

    def results(self) -> list[str]:
        """A line on what each one returns."""
        apart = ", in a layout of its own" if "layout" in [trap.question for trap in self.bites] else ""
        return [
            f"{name} returns {_shown(result, self.meant)}{apart}"
            for name, result in zip(self.names, self.returns, strict=True)
        ]

    __repr__ = __str__


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {'trap' if n == 1 else 'traps'} {one if n == 1 else many}"


def _shown(result: Floats | str, meant: Floats) -> str:
    if isinstance(result, str):
        return f"an error: {result}"
    if np.isnan(result).any():
        return f"{int(np.isnan(result).sum())} NaN of {result.size} numbers"
    if not result.size:
        return "an empty array"
    off = float(np.abs(result - meant).max())
    return "what is meant" if off == 0.0 else f"something else than what is meant, by up to {off:.2g}"


def explain(a: str, b: str, query: Any, key: Any, value: Any, **case: Any) -> Explanation:
    """Which traps bite when this very call is carried from one dialect to another, argument by argument.

    a, b: names in `DIALECTS`. query, key, value and case: the call as it is meant, arguments of
    `polyattn.attention` in arrays of any library; mask= may also be an array of 0.0 and 1.0, as people pass it.
    return_aux asks for lse; dtype is that of the call, if query does not have it. For every question that the two
    answer differently it tells whether the result of this call depends on the answer, by how much (eta: over what
    rounding explains), and where first. Layouts apart, the arguments are passed on under the names of each library,
    nothing is translated. ValueError, TypeError: an unknown name, or a call that has no conventions.

    >>> import numpy as np
    >>> from polyattn import dialects
    >>> q = k = v = np.ones((1, 1, 2, 4), np.float32)
    >>> found = dialects.explain("torch.sdpa", "transformers", q, k, v, is_causal=True)
    >>> [trap.question for trap in found.bites]
    []
    """
    one, other = (dialect(name, "polyattn.dialects.explain") for name in (a, b))
    posed = _case(query, key, value, case)
    with np.errstate(all="ignore"):
        meant = answer(posed.call)
        traps = tuple(
            _trap(posed, name, one, other, meant)
            for name in QUESTIONS
            if one.choice(name) != other.choice(name)
        )
        bitten = {trap.question for trap in traps if trap.bites} | {"layout"}
        alike = [
            _against_contract(posed, name, one, other, meant) for name in QUESTIONS if name not in bitten
        ]
        shared = tuple(trap for trap in alike if trap.bites)
        returns = (_returned(posed, one), _returned(posed, other))
    return Explanation((a, b), traps, shared, returns, meant.out)


def explain_words(a: str, b: str, words: str, seed: int = 0) -> Explanation:
    """`explain` of a call in words, as `polyattn info --plan` takes them, on random numbers.

    >>> print(explain_words("jax.nn", "flax.nnx", "L=2,H=2,D=4,causal=1").results()[0])
    jax.nn returns what is meant
    """
    n, dtype = parse_plan(words)
    shapes = [
        (n["B"], n["H"], n["L"], n["D"]),
        (n["B"], n["Hkv"], n["S"], n["D"]),
        (n["B"], n["Hkv"], n["S"], n["E"]),
    ]
    if (most := max(*map(math.prod, shapes), n["B"] * n["H"] * n["L"] * n["S"])) > 2**22:
        raise ValueError(
            f"polyattn.dialects.explain: expected at most 2**22 scores and numbers, got {most}; explain a smaller call"
        )
    rng = np.random.default_rng(seed)
    q, k, v = (round_to(rng.normal(size=shape), dtype) for shape in shapes)
    options: dict[str, Any] = {"is_causal": bool(n["causal"])}
    if n["L"] != n["S"]:
        options["query_offset"] = "end"
    if n["window"]:
        options["mask"] = masks.sliding_window(n["window"])
    if n["softcap"]:
        options["score_mod"] = mods.softcap(n["softcap"])
    if n["sinks"]:
        options["sinks"] = round_to(rng.normal(size=n["H"]), dtype)
    return explain(a, b, q, k, v, **options, return_aux=AuxRequest(lse=bool(n["lse"])), dtype=dtype)


def _case(query: Any, key: Any, value: Any, given: dict[str, Any]) -> WrittenCall:
    given = dict(given)
    aux, dtype = given.pop("return_aux", None), given.pop("dtype", None)
    mask, numbers = given.get("mask"), False
    if is_array(mask):
        plain = np.asarray(backend_of(mask).to_numpy(mask))
        if plain.dtype.kind in "fiu":
            if not np.isin(plain, (0, 1)).all():
                raise TypeError(
                    "polyattn.dialects.explain: expected mask to be bools, or the numbers 0 and 1 that stand for them, "
                    f"got {plain[~np.isin(plain, (0, 1))].flat[0]}; what is added to the scores is bias="
                )
            given["mask"], numbers = plain != 0, True
    call = call_of(query, key, value, given, who="polyattn.dialects.explain")
    if dtype is None:
        dtype = (backend_of(query).to_numpy(query) if is_array(query) else np.asarray(query)).dtype.name
    return WrittenCall(call, given.get("layout", "BHLD"), dtype, numbers, bool(getattr(aux, "lse", False)))


def _said(case: WrittenCall, name: str, a: Record, b: Record) -> tuple[Trap, Convention, Convention, bool]:
    """What two dialects say to a question, and whether that is all: it is not raised, or one refuses."""
    one, other = a.choice(name), b.choice(name)
    raised = [d.raises(name, case) for d in (a, b)]
    refuses = (raised[0] and one.refused(case), raised[1] and other.refused(case))
    trap = Trap(name, (one.says, other.says), refuses=refuses)
    return trap, one, other, not any(raised) or any(refuses)


def _trap(case: WrittenCall, name: str, a: Record, b: Record, meant: Answer) -> Trap:
    trap, one, other, known = _said(case, name, a, b)
    if known:
        return trap
    if name == "layout":
        pairs = [(Settings(**one.changes(case)), Settings(**other.changes(case)))]
    else:  # either library with the other's answer to this one question
        pairs = [
            (b.settings(case, **{name: one}), b.settings(case)),
            (a.settings(case), a.settings(case, **{name: other})),
        ]
    for pair in pairs:
        outs = []
        for settings in pair:
            try:
                outs.append(answer(case.call, settings).out)
            except (ValueError, IndexError):  # shapes that do not go together any more
                return replace(trap, refuses=tuple(s == settings for s in pair))  # type: ignore[arg-type]
        trap = _measured(trap, outs[0], outs[1], case, meant)
        if trap.bites:
            break
    return trap


def _against_contract(case: WrittenCall, name: str, a: Record, b: Record, meant: Answer) -> Trap:
    """What both do alike, compared with the contract."""
    trap, _, other, known = _said(case, name, a, b)
    if known:
        return trap
    try:
        outs = [answer(case.call, b.settings(case, **{name: x})).out for x in (Convention("as meant"), other)]
    except (ValueError, IndexError):
        return trap
    found = _measured(trap, outs[0], outs[1], case, meant)
    return found if found.values is None else replace(found, values=(found.values[1],) * 2)


def _measured(trap: Trap, one: Floats, other: Floats, case: WrittenCall, meant: Answer) -> Trap:
    if one.shape != other.shape:
        return replace(trap, eta=math.inf)
    unit = UNIT_ROUNDOFF.get(case.dtype, UNIT_ROUNDOFF["float32"])
    ratio = np.abs(one - other) / (unit * meant.condition)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    ratio = np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    if not ratio.size or ratio.max() <= ACCEPTANCE:
        return trap
    where = tuple(int(i) for i in np.argwhere(ratio > ACCEPTANCE)[0])
    values = float(one[where]), float(other[where])
    return replace(trap, eta=float(ratio.max()), where=where, values=values, meant=float(meant.out[where]))


def _returned(case: WrittenCall, d: Record) -> Floats | str:
    """What a library gives if only the layout is right."""
    refusals = [name for name in d.refusals(case) if name != "layout"]
    if refusals:
        return "; ".join(f"{QUESTIONS[name].asks}: {d.choice(name).says}" for name in refusals)
    try:
        return answer(case.call, d.settings(case)).out
    except (ValueError, IndexError) as error:
        return str(error)
