"""`grade`: a right solution keeps every rule on every library, and each mistake breaks the rule that it is about."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
import pytest
from shared.libraries import jax
from shared.running import bench_of

from polyattn.parity import grade, round_to
from polyattn.parity.grading.grader import RULES
from polyattn.parity.grading.rules import CHECKS
from polyattn.parity.grading.verdicts import BROKEN, KEPT, NOT

DEMANDING = [check.name for check in CHECKS if check.demanding]
USUAL = [name for name in RULES if name not in DEMANDING]


def solution(wrong: str = "") -> Callable[..., Any]:
    """What a student writes, right or with a mistake of that name."""

    def attention(q: Any, k: Any, v: Any, mask: Any = None, is_causal: bool = False, scale: Any = None) -> Any:  # fmt: skip
        xp = array_api_compat.array_namespace(q)
        groups = q.shape[-3] // k.shape[-3] if q.ndim > 2 else 1
        if groups > 1:
            which = np.arange(q.shape[-3]) % k.shape[-3] if wrong == "tiled" else np.arange(q.shape[-3]) // groups  # fmt: skip
            k, v = (xp.stack([x[..., int(i), :, :] for i in which], axis=-3) for x in (k, v))
        if wrong == "bfloat16":
            q, k, v = (round_to(x, "bfloat16") for x in (q, k, v))
        if wrong == "in place":
            q *= 0.5
            q = q * 2
        divisor = {"no scale": 1.0, "keys": math.sqrt(k.shape[-2])}.get(wrong, math.sqrt(q.shape[-1]))
        factor = 1 / divisor if scale is None or wrong == "scale ignored" else scale
        turned = k if wrong == "square" and k.shape[-1] == k.shape[-2] else xp.matrix_transpose(k)
        s = xp.matmul(q, turned) * factor
        if wrong == "float16":
            s = xp.astype(xp.astype(s, xp.float16), xp.float32)
        allowed = xp.ones(s.shape[-2:], dtype=xp.bool)
        if mask is not None and not (wrong == "one of both" and is_causal):
            allowed = ~mask if wrong == "inverted" else mask
        if is_causal:
            shift = {"sees the next": 1, "not itself": -1}.get(wrong, 0)
            allowed = allowed & xp.tril(xp.ones(s.shape[-2:], dtype=xp.bool), k=shift)
        fill = {"1e-10": 1e-10, "leak": -5.0, "-1e9": -1e9, "after": None}.get(wrong, -math.inf)
        s = s if fill is None else xp.where(allowed, s, xp.full_like(s, fill))
        axis = {"queries": -2, "axis 1": 1}.get(wrong, -1)
        top = xp.max(s, axis=axis, keepdims=True)
        top = xp.zeros_like(top) if wrong == "overflow" else top
        e = xp.exp(s - (top if wrong == "NaN" else xp.where(top == -math.inf, xp.zeros_like(top), top)))
        total = xp.sum(e, axis=axis, keepdims=True)
        w = e / (total if wrong == "NaN" else xp.where(total == 0, xp.ones_like(total), total))
        if wrong == "after":
            w = xp.where(allowed, w, xp.zeros_like(w))
        if wrong == "bfloat16":
            w = round_to(w, "bfloat16")
        if wrong == "dropout":
            w = w * np.random.default_rng().integers(0, 2, w.shape) * 2
        if wrong == "weights":
            return w
        if wrong in ("hidden", "wide"):
            v = xp.where(xp.isfinite(v), v, xp.zeros_like(v))
        out = xp.matmul(w, v)
        return out * np.float64(1) if wrong == "wide" else out

    return attention


@pytest.mark.parametrize("library", ["numpy", "jax", "torch"])
def test_a_right_solution_keeps_every_rule(library: str) -> None:
    bench_of(library)
    attention = solution()
    if library == "jax":  # one program for a shape is sooner compiled than one for every operation
        attention = jax.jit(attention, static_argnames=("is_causal", "scale"))
    found = grade(attention, library=library)
    assert [(v.name, v.state) for v in found.verdicts] == [(name, KEPT) for name in USUAL], str(found)
    assert found.passed
    assert found.verdict == f"attention on {library}: 0 broken, {len(USUAL)} kept, 0 not attempted"


@pytest.mark.parametrize(
    ("wrong", "broken", "mistake"),
    [
        ("no scale", ["scale"], "scale = 1 (scores not divided)"),
        ("keys", ["scale"], "scale = 1/sqrt(6) (number of keys, not head width)"),
        ("scale ignored", ["scale="], "scale = 1/sqrt(4) (the default, not the scale that was asked for)"),
        ("queries", ["convex"], "softmax over the queries instead of the keys"),
        ("axis 1", ["leading"], "softmax over the queries instead of the keys"),
        ("square", ["keys"], "a score is not that of its own key: key is reshaped or not transposed"),
        ("after", ["causal", "mask"], "mask applied after the softmax, rows not renormalised"),
        ("1e-10", ["causal", "mask"], "hidden scores filled with about 0 instead of -inf"),
        ("leak", ["causal", "mask"], ""),
        ("sees the next", ["causal"], "causal mask off by one: a token sees the next one"),
        ("not itself", ["causal"], "causal mask hides the diagonal: a token does not see itself"),
        ("inverted", ["mask"], "mask polarity inverted: True was taken as 'ignore'"),
        ("one of both", ["both"], "mask ignored"),
        ("tiled", ["heads"], "kv heads tiled: query head h reads kv head h % Hkv, not h // G"),
        ("-1e9", ["empty"], "rows that see nothing get the mean of all values (finite mask constant)"),
        ("NaN", ["empty"], "rows that see nothing are NaN"),
        ("overflow", ["large"], "subtract the largest score of a row before exp"),
        ("float16", ["accuracy"], "scores rounded to float16"),
        ("bfloat16", ["accuracy"], "bfloat16"),
        ("in place", ["inputs"], "an operation in place"),
        ("dropout", ["repeat"], "dropout"),
        ("weights", ["shapes"], ""),
    ],
)
def test_a_mistake_breaks_its_rule_and_is_named(wrong: str, broken: list[str], mistake: str) -> None:
    found = grade(solution(wrong))
    assert [verdict.name for verdict in found.broken] == broken, str(found)
    assert all(mistake in (verdict.mistake or verdict.usual) for verdict in found.broken), str(found)
    assert not found.passed
    assert {v.state for v in found.verdicts} <= {KEPT, BROKEN, NOT}
    for verdict in found.broken:
        assert verdict.example is not None
        assert f"docs/contract.md#{verdict.rule}" in str(verdict)


def test_demanding_rules_are_graded_when_they_are_asked_for() -> None:
    assert grade(solution("hidden"), rules=["all"]).passed
    both = [grade(solution(wrong), rules=DEMANDING) for wrong in ("", "wide")]
    assert [[v.name for v in found.broken] for found in both] == [["hidden"], ["dtype"]]
    assert both[1].broken[0].why == "query, key and value are float32, and it returned float64"


def _plain(q: Any, k: Any, v: Any) -> Any:
    return solution()(q, k, v) if q.ndim == 2 else np.zeros(3)


def test_what_a_function_does_not_take_is_not_attempted_unless_asked_for() -> None:
    found = grade(_plain)
    assert found.passed
    why = {v.name: v.why for v in found.verdicts if v.state == NOT}
    assert why == {
        "scale=": "it does not take scale=",
        "causal": "it does not take is_causal=",
        "mask": "it does not take mask=",
        "both": "it does not take mask= and is_causal=",
        "leading": "it does not take query (2, 3, 4) beside key (2, 5, 4)",
        "heads": "it does not take query (4, 3, 4) beside key (2, 5, 4)",
        "empty": "it does not take mask=",
    }
    asked = grade(_plain, rules=["causal", "leading"])
    assert [v.why for v in asked.broken] == [
        "it raised TypeError: _plain() got an unexpected keyword argument 'is_causal'",
        "it does not take query (2, 3, 4) beside key (2, 5, 4): it returned shape (3,), not (2, 3, 2)",
    ]


def test_what_an_earlier_rule_would_show_again_waits_for_it() -> None:
    found = grade(solution("queries"))
    assert {v.why for v in found.verdicts if v.state == NOT} == {"first repair convex"}
    alone = grade(solution("queries"), rules=["scale"])
    assert [v.state for v in alone.verdicts] == [BROKEN]


class Text(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class Kind(type):
    def __getattribute__(cls, name: str) -> object:
        if name == "__qualname__":
            raise ZeroDivisionError
        return super().__getattribute__(name)


class Nameless(metaclass=Kind):
    @property
    def dtype(self) -> object:
        raise SystemExit


def _raising(error: BaseException) -> Callable[..., Any]:
    def attention(q: Any, k: Any, v: Any) -> Any:
        raise error

    return attention


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (_raising(ValueError("\x1b[31mred\nline" + "x" * 999)), "it raised ValueError: ?[31mred line"),
        (_raising(Text()), "it raised an exception whose text cannot be made"),
        (_raising(SystemExit(0)), "it ended the program, by sys.exit or the like; return the output instead"),
        (_raising(GeneratorExit()), "it raised GeneratorExit"),
        (lambda q, k, v: None, "it returned None; is there a return at its end?"),
        (lambda q, k, v: (q, k), "it returned a tuple of 2; return the output alone"),
        (lambda q, k, v: [[1.0, 2.0], [3.0, 4.0]], "it returned a list; return an array of numpy"),
        (lambda q, k, v: q * 1j, "it returned an array of complex64; return real floats"),
        (lambda q, k, v: q.astype(object), "it returned an array of object; return real floats"),
        (lambda q, k, v: q.astype(int), "it returned an array of int64; return real floats"),
        (lambda q, k, v: q.sum(), "it returned shape (), not (2, 2)"),
        (lambda q, k, v: np.zeros((1025, 1024)), "it returned 1049600 numbers, more than are looked at"),
        (lambda q, k, v: np.ma.masked_array(q), "it returned a numpy.ma.MaskedArray, which cannot be read"),
        (
            lambda q, k, v: Nameless(),
            "it returned something without a name, which cannot be read as an array",
        ),
        (lambda q: q, "it raised TypeError: <lambda>() takes 1 positional argument but 3 were given"),
        (solution("weights"), "it returned shape (1, 2), not (1, 1)"),
        (lambda q, k, v: q @ k @ v, "it raised ValueError: matmul: "),
    ],
)
def test_what_is_no_answer_is_told_in_a_sentence(function: Callable[..., Any], why: str) -> None:
    found = grade(function)
    assert [v.name for v in found.broken] == ["shapes"]
    assert found.broken[0].why.startswith(why)
    assert len(found.broken[0].why) < 240
    assert str(found).replace("\n", "").isprintable()
    assert {v.state for v in found.verdicts[1:]} == {NOT}


def test_a_key_press_ends_the_grading_and_not_a_rule() -> None:
    with pytest.raises(KeyboardInterrupt):
        grade(_raising(KeyboardInterrupt()))


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"function": 3}, TypeError, "polyattn.parity.grade: expected a function, got int; polyattn.parity."),
        (
            {"library": "mxnet"},
            ValueError,
            "expected a library among numpy, jax, torch, got 'mxnet'; choose one",
        ),
        ({"rules": "scale"}, TypeError, "expected a list of rules, got 'scale'; write ['scale']"),
        ({"rules": []}, ValueError, "or all, got none; name some of them"),
        ({"rules": ["scale", "sclae"]}, ValueError, "or all, got 'sclae'; name some of them"),
    ],
)
def test_what_cannot_be_graded_is_refused(given: dict[str, Any], error: type[Exception], sentence: str) -> None:  # fmt: skip
    with pytest.raises(error) as raised:
        grade(**{"function": _plain} | given)
    assert sentence in str(raised.value)


def test_an_example_is_checked_by_hand_and_every_form_tells_it() -> None:
    found = grade(solution("1e-10"), rules=["mask"])
    assert str(found) == (
        "attention on numpy: 1 broken, 0 kept, 0 not attempted\n"
        "  BROKEN         mask  a row sees the keys at which the mask is True, and no others\n"
        "\n"
        "mask: a row sees the keys at which the mask is True, and no others (docs/contract.md#rule-3)\n"
        "  query [[0]]  key [[0] [0]]  value [[1] [3]]  mask [[True False]]\n"
        "  expected [[1]]\n"
        "  got      [[2]]\n"
        "  mistake: hidden scores filled with about 0 instead of -inf"
    )
    (rule,) = json.loads(json.dumps(found.to_json(), allow_nan=False))["rules"]
    assert rule["example"]["given"] == {
        "query": [[0.0]], "key": [[0.0], [0.0]], "value": [[1.0], [3.0]], "mask": [[True, False]],
    }  # fmt: skip
    assert (rule["example"]["expected"], rule["example"]["got"]) == ([[1.0]], [[2.0]])
    assert (rule["state"], rule["link"], rule["why"]) == ("broken", "docs/contract.md#rule-3", None)
    html = found._repr_html_()
    assert "query [[0]]" in html
    assert "hidden scores filled" in html
    overflow = json.dumps(grade(solution("overflow")).to_json(), allow_nan=False)
    assert '"got": [["nan"]]' in overflow


def test_rules_are_anchors_of_the_contract_and_wait_for_earlier_ones() -> None:
    for place, check in enumerate(CHECKS):
        assert set(check.after) <= set(RULES[:place])
        assert check.rule.startswith("rule-")
