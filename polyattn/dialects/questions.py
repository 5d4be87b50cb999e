"""The questions that libraries of attention answer differently, and the answers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.conventions.visible import allowed_keys


@dataclass(frozen=True)
class Case:
    """A call as it is meant, and how it is written down."""

    call: Call
    layout: str = "BHLD"  # of query, key and value
    dtype: str = "float32"
    numbers: bool = False  # the mask came as 0.0 and 1.0
    lse: bool = False


Changes = Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """One answer: in words, and as `conventions.Settings` (those that differ from the contract)."""

    says: str
    settings: Changes | Callable[[Case], Changes] = field(default_factory=dict)
    refuses: bool = False  # a call that raises the question is an error

    def changes(self, case: Case) -> Changes:
        return self.settings(case) if callable(self.settings) else self.settings


@dataclass(frozen=True)
class Question:
    """`asks` is a row of the table; `raised` tells whether a call depends on the answer."""

    asks: str
    choices: Mapping[str, Choice]
    raised: Callable[[Case], bool]


def _width(call: Call) -> tuple[int, int]:
    return call.q.shape[3], call.v.shape[3]


def _grouped(call: Call) -> bool:
    return bool(call.q.shape[1] != call.k.shape[1])


def _empty(call: Call) -> bool:
    """Whether masks leave some row with nothing, without -inf in the bias, however causality is aligned."""
    bare, rows = replace(call, bias=None), np.arange(call.q.shape[2])
    return any(
        bool((~allowed_keys(bare, Settings(causal=causal), rows).any(-1)).any())
        for causal in ("as stated", "top-left", "bottom-right")
    )


def _poison(call: Call) -> bool:
    return not (np.isfinite(call.k).all() and np.isfinite(call.v).all())


def _laid_out(layout: str) -> Callable[[Case], Changes]:
    return lambda case: {} if case.layout == layout else {"layout": "attends over heads"}


def _first_rows(case: Case) -> Changes:
    return {"causal": "top-left"}


def _first_rows_unless_alone(case: Case) -> Changes:
    return {"causal": "dropped" if case.call.q.shape[2] == 1 else "top-left"}


NONE = Choice("none", refuses=True)
UNKNOWN = Choice("not known")

#: In the order of the table. The contract's own answers are `Settings()`.
QUESTIONS: Mapping[str, Question] = {
    "layout": Question(
        "axes of query, key and value",
        {
            "BHLD": Choice("(B, H, L, D)", _laid_out("BHLD")),
            "BLHD": Choice("(B, L, H, D)", _laid_out("BLHD")),
            "LB(HD)": Choice("(L, B, H D), heads side by side", refuses=True),
            "B(L HD)": Choice("(L, H D) of one item, heads side by side", refuses=True),
        },
        lambda case: True,
    ),
    "bool mask": Question(
        "True in a bool mask",
        {
            "attend": Choice("may attend"),
            "ignore": Choice("is ignored", {"polarity": "ignore"}),
            "refused": Choice("error: no bool mask", refuses=True),
        },
        lambda case: case.call.mask is not None and not case.numbers,
    ),
    "float mask": Question(
        "0.0 and 1.0 in the mask's place",
        {
            "added": Choice("added to the scores", {"mask": "added as 0/1"}),
            "as bool": Choice("cast to bool"),
            "refused": Choice("error", refuses=True),
        },
        lambda case: case.call.mask is not None and case.numbers,
    ),
    "empty row": Question(
        "a row that a mask leaves with no key",
        {
            "0": Choice("0"),
            "mean": Choice("mean of all values", {"empty_rows": "mean of all values"}),
            "NaN": Choice("NaN", {"empty_rows": "NaN"}),
            "0, causal mean": Choice("0; mean of all values where causality does it"),
            "unknown": UNKNOWN,
        },
        lambda case: _empty(case.call),
    ),
    "empty bias row": Question(
        "a row that -inf in the bias leaves with no key",
        {
            "0": Choice("0", {"bias_rows": "zero"}),
            "NaN": Choice("NaN", {"bias_rows": "NaN"}),
            "mean": Choice("mean of all values", {"bias_rows": "mean of all values"}),
            "no bias": Choice("no bias"),
            "unknown": UNKNOWN,
        },
        lambda case: case.call.bias is not None and bool((case.call.bias == -np.inf).all(-1).any()),
    ),
    "bias": Question(
        "values added to the scores",
        {
            "bias": Choice("argument of their own"),
            "mask": Choice("in the mask's place"),
            "score_mod": Choice("by a score_mod"),
            "none": NONE,
        },
        lambda case: case.call.bias is not None or case.call.shift is not None,
    ),
    "causal": Question(
        "causal with L != S",
        {
            "first rows": Choice("first query with first key", _first_rows),
            "last rows": Choice("last query with last key", {"causal": "bottom-right"}),
            "first rows unless alone": Choice(
                "first query with first key; a single query sees all", _first_rows_unless_alone
            ),
            "first rows, last with a cache": Choice(
                "first query with first key; after the cached keys if there are any", _first_rows
            ),
            "hint": Choice("a hint: error without a mask that says it", refuses=True),
            "in the mask": Choice("no flag: as the mask says"),
        },
        lambda case: case.call.is_causal,
    ),
    "mask and causal": Question(
        "a mask and the causal flag together",
        {
            "both": Choice("both hold"),
            "kernel": Choice("both hold, or an error: as the kernel decides"),
            "mask": Choice("the mask alone", {"causal": "dropped"}),
            "no flag": Choice("no flag"),
            "no mask": Choice("no mask"),
        },
        lambda case: case.call.is_causal and case.call.mask is not None,
    ),
    "window": Question(
        "a window of W",
        {
            "neighbours": Choice(
                "W neighbours, itself not counted; from the first row", {"window": "from the first row"}
            ),
            "neighbours, last rows": Choice(
                "W neighbours, itself not counted; from the last row", {"window": "from the last row"}
            ),
            "with itself": Choice("W keys, itself counted", {"window": "one key less"}),
            "in the mask": Choice("no argument: as the mask says"),
            "ignored": Choice("argument taken and ignored: must be in the mask", {"window": "dropped"}),
        },
        lambda case: case.call.window is not None,
    ),
    "scale": Question(
        "scale",
        {
            "given": Choice("argument, 1/sqrt(D) by default"),
            "fixed": Choice("1/sqrt(D), no argument", {"scale": "1/sqrt(D)"}),
        },
        lambda case: case.call.scale != 1.0 / max(case.call.q.shape[3], 1) ** 0.5,
    ),
    "grouped heads": Question(
        "query head h of G per kv head reads kv head",
        {
            "h // G": Choice("h // G"),
            "h // G, flag": Choice("h // G, with enable_gqa=True; one kv head always"),
            "h // G, module": Choice("h // G, if the module has num_key_value_groups"),
            "h % Hkv": Choice("h % Hkv", {"heads": "tiled"}),
            "none": Choice("error: as many kv heads as query heads", refuses=True),
        },
        lambda case: _grouped(case.call),
    ),
    "value width": Question(
        "values of another width than the keys",
        {
            "any": Choice("any"),
            "same": Choice("error", refuses=True),
            "some": Choice("some pairs of widths"),
        },
        lambda case: _width(case.call)[0] != _width(case.call)[1],
    ),
    "softcap": Question(
        "soft cap",
        {
            "before the bias": Choice("cap tanh(s / cap), before bias and mask"),
            "after the bias": Choice("cap tanh(s / cap), after the bias", {"softcap": "after the bias"}),
            "score_mod": Choice("by a score_mod, before the mask"),
            "none": NONE,
        },
        lambda case: case.call.softcap is not None,
    ),
    "sinks": Question(
        "sinks in the denominator",
        {
            "given": Choice("argument, a logit per head"),
            "zero": Choice("one of logit 0, with add_zero_...", refuses=True),
            "ignored": Choice("argument taken and ignored", {"sinks": "dropped"}),
            "none": NONE,
        },
        lambda case: case.call.sinks is not None,
    ),
    "lse": Question(
        "log of the sum of exp(score)",
        {
            "natural": Choice("natural log, float32, differentiable"),
            "natural, no gradient": Choice("natural log, float32, no gradient"),
            "natural, low": Choice("natural log, dtype of query, gradient 0"),
            "none": Choice("not given", refuses=True),
        },
        lambda case: case.lse,
    ),
    "poison": Question(
        "NaN or Inf in a key and its value that nobody sees",
        {
            "cannot leak": Choice("cannot leak"),
            "values leak": Choice("the value leaks (0 NaN)", {"poison": "leaks from values"}),
            "leaks": Choice("both leak", {"poison": "leaks"}),
            "unknown": UNKNOWN,
        },
        lambda case: _poison(case.call),
    ),
    "float64": Question(
        "float64 input",
        {
            "float64": Choice("float64 throughout"),
            "float32": Choice("softmax in float32", {"precision": "float32 weights"}),
            "refused": Choice("error: 16 bit only", refuses=True),
            "unknown": UNKNOWN,
        },
        lambda case: case.dtype == "float64",
    ),
    "no keys": Question(
        "S = 0",
        {
            "0": Choice("0"),
            "refused": Choice("error", refuses=True),
            "unknown": UNKNOWN,
        },
        lambda case: case.call.k.shape[2] == 0,
    ),
}
