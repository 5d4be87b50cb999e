"""The questions that libraries of attention answer differently, and the answers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from polyattn.conventions.call import Call
from polyattn.conventions.settings import Settings
from polyattn.conventions.visible import allowed_keys
from polyattn.dialects.question import Changes, Convention, Question, WrittenCall

__all__ = ["QUESTIONS", "READING", "USUAL"]


def _width(call: Call) -> tuple[int, int]:
    return call.q.shape[3], call.v.shape[3]


def _grouped(call: Call) -> bool:
    return bool(call.q.shape[1] != call.k.shape[1])


def _empty(by_bias: bool) -> Callable[[WrittenCall, Settings], bool]:
    """Whether some row sees nothing, as the library reads its mask: by -inf in the bias alone, or otherwise."""

    def raised(case: WrittenCall, reading: Settings) -> bool:
        call, rows = case.call, np.arange(case.call.q.shape[2])
        if not call.k.shape[2]:
            return False
        empty = ~allowed_keys(call, reading, rows).any(-1)
        hidden = ~allowed_keys(replace(call, bias=None), reading, rows).all(-1)
        return bool((empty & (hidden != by_bias)).any())

    return raised


def _poison(call: Call) -> bool:
    return not (np.isfinite(call.k).all() and np.isfinite(call.v).all())


def _laid_out(layout: str) -> Callable[[WrittenCall], Changes]:
    return lambda case: {} if case.layout == layout else {"layout": "attends over heads"}


def _nan_unless_causal(field: str) -> Callable[[WrittenCall], Changes]:
    """Of a library whose kernels differ."""

    def changes(case: WrittenCall) -> Changes:
        return {field: "zero" if case.call.is_causal and case.call.softcap is None else "NaN"}

    return changes


def _first_rows_unless_alone(case: WrittenCall) -> Changes:
    return {"causal": "dropped" if case.call.q.shape[2] == 1 else "top-left"}


NONE = Convention("none", refuses=True)
UNKNOWN = Convention("not known")

#: In the order of the table. The contract's own answers are `Settings()`.
QUESTIONS: Mapping[str, Question] = {
    "layout": Question(
        "axes of query, key and value",
        {
            "BHLD": Convention("(B, H, L, D)", _laid_out("BHLD")),
            "BLHD": Convention("(B, L, H, D)", _laid_out("BLHD")),
            "LB(HD)": Convention("(L, B, H D), heads side by side", refuses=True),
            "B(L HD)": Convention("(L, H D) of one item, heads side by side", refuses=True),
            "BL(HD)": Convention("(B, L, H D), heads side by side", refuses=True),
            "LBHD": Convention("(L, B, H, D)", refuses=True),
            "LHD": Convention("(L, H, D) of one item", refuses=True),
            "THD": Convention("(T, H, D), sequences one behind the other", refuses=True),
        },
        lambda case, reading: True,
    ),
    "bool mask": Question(
        "True in a bool mask",
        {
            "attend": Convention("may attend"),
            "ignore": Convention("is ignored", {"polarity": "ignore"}),
            "refused": Convention("error: no bool mask", refuses=True),
        },
        lambda case, reading: case.call.mask is not None and not case.numbers,
    ),
    "float mask": Question(
        "0.0 and 1.0 in the mask's place",
        {
            "added": Convention("added to the scores", {"mask": "added as 0/1"}),
            "as bool": Convention("cast to bool"),
            "refused": Convention("error", refuses=True),
        },
        lambda case, reading: case.call.mask is not None and case.numbers,
    ),
    "empty row": Question(
        "a row that a mask leaves with no key",
        {
            "0": Convention("0"),
            "mean": Convention("mean of all values", {"empty_rows": "mean of all values"}),
            "NaN": Convention("NaN", {"empty_rows": "NaN"}),
            "0, causal mean": Convention("0; mean of all values where causality does it"),
            "0 if causal": Convention(
                "0 if causal and not capped, else NaN", _nan_unless_causal("empty_rows")
            ),
            "unknown": UNKNOWN,
        },
        _empty(by_bias=False),
    ),
    "empty bias row": Question(
        "a row that -inf in the bias leaves with no key",
        {
            "0": Convention("0", {"bias_rows": "zero"}),
            "NaN": Convention("NaN", {"bias_rows": "NaN"}),
            "mean": Convention("mean of all values", {"bias_rows": "mean of all values"}),
            "0 if causal": Convention(
                "0 if causal and not capped, else NaN", _nan_unless_causal("bias_rows")
            ),
            "no bias": Convention("no bias"),
            "unknown": UNKNOWN,
        },
        _empty(by_bias=True),
    ),
    "bias": Question(
        "values added to the scores",
        {
            "mask": Convention("in the mask's place"),
            "bias": Convention("argument of their own"),
            "score_mod": Convention("by a score_mod"),
            "none": NONE,
        },
        lambda case, reading: case.call.bias is not None or case.call.shift is not None,
    ),
    "causal": Question(
        "causal with L != S",
        {
            "first rows": Convention("first query with first key", {"causal": "top-left"}),
            "last rows": Convention("last query with last key", {"causal": "bottom-right"}),
            "first rows unless alone": Convention(
                "first query with first key; a single query sees all", _first_rows_unless_alone
            ),
            "first rows, last with a cache": Convention(
                "first query with first key; after the cached keys if there are any", {"causal": "top-left"}
            ),
            "in the window": Convention(
                "no flag: a window of (-1, 0); last query with last key", {"causal": "bottom-right"}
            ),
            "word": Convention(
                "the word 'causal' in the mask's place; last query with last key", {"causal": "bottom-right"}
            ),
            "words": Convention(
                "'causal': first query with first key; 'causal_bottom_right': last with last",
                {"causal": "top-left"},
            ),
            "hint": Convention("a hint: error without a mask that says it", refuses=True, unmasked=True),
            "in the mask": Convention("no flag: as the mask says"),
        },
        lambda case, reading: case.call.is_causal,
    ),
    "mask and causal": Question(
        "a mask and the causal flag together",
        {
            "both": Convention("both hold"),
            "kernel": Convention("both hold, or an error: as the kernel decides"),
            "mask": Convention("the mask alone", {"causal": "dropped"}),
            "no flag": Convention("no flag"),
            "no mask": Convention("no mask"),
            "flag": Convention("the flag alone", {"mask": "dropped"}),
            "one place": Convention("error: one place for both", refuses=True),
        },
        lambda case, reading: case.call.is_causal and case.call.mask is not None,
    ),
    "window": Question(
        "a window of W",
        {
            "in the mask": Convention("no argument: as the mask says"),
            "neighbours": Convention(
                "W neighbours, itself not counted; from the first row", {"window": "from the first row"}
            ),
            "neighbours, last rows": Convention(
                "W neighbours, itself not counted; from the last row", {"window": "from the last row"}
            ),
            "with itself": Convention("W keys, itself counted", {"window": "one key less"}),
            "ignored": Convention("argument taken and ignored: must be in the mask", {"window": "dropped"}),
        },
        lambda case, reading: case.call.window is not None,
    ),
    "scale": Question(
        "scale",
        {
            "given": Convention("argument, 1/sqrt(D) by default"),
            "required": Convention("argument, no default"),
            "fixed": Convention("1/sqrt(D), no argument", {"scale": "1/sqrt(D)"}),
        },
        lambda case, reading: case.call.scale != 1.0 / max(case.call.q.shape[3], 1) ** 0.5,
    ),
    "grouped heads": Question(
        "query head h of G per kv head reads kv head",
        {
            "h // G": Convention("h // G"),
            "h // G, flag": Convention("h // G, with enable_gqa=True; one kv head always"),
            "h // G, module": Convention("h // G, if the module has num_key_value_groups"),
            "h % Hkv": Convention("h % Hkv", {"heads": "tiled"}),
            "none": Convention("error: as many kv heads as query heads", refuses=True),
        },
        lambda case, reading: _grouped(case.call),
    ),
    "value width": Question(
        "values of another width than the keys",
        {
            "any": Convention("any"),
            "same": Convention("error", refuses=True),
            "some": Convention("some pairs of widths"),
        },
        lambda case, reading: _width(case.call)[0] != _width(case.call)[1],
    ),
    "softcap": Question(
        "soft cap",
        {
            "none": NONE,
            "before the bias": Convention("cap tanh(s / cap), before bias and mask"),
            "after the bias": Convention("cap tanh(s / cap), after the bias", {"softcap": "after the bias"}),
            "score_mod": Convention("by a score_mod, before the mask"),
        },
        lambda case, reading: case.call.softcap is not None,
    ),
    "sinks": Question(
        "sinks in the denominator",
        {
            "none": NONE,
            "given": Convention("argument, a logit per head"),
            "zero": Convention("one of logit 0, with add_zero_...", refuses=True),
            "apart": Convention("a logit per head, not an argument of the call", refuses=True),
            "ignored": Convention("argument taken and ignored", {"sinks": "dropped"}),
        },
        lambda case, reading: case.call.sinks is not None,
    ),
    "lse": Question(
        "log of the sum of exp(score)",
        {
            "none": Convention("not given", refuses=True),
            "natural": Convention("natural log, float32, differentiable"),
            "natural, no gradient": Convention("natural log, float32, no gradient"),
            "natural, low": Convention("natural log, dtype of query, gradient 0"),
            "base 2": Convention("base-2 log, float32, no gradient"),
        },
        lambda case, reading: case.lse,
    ),
    "poison": Question(
        "NaN or Inf in a key and its value that nobody sees",
        {
            "leaks": Convention("both leak", {"poison": "leaks"}),
            "cannot leak": Convention("cannot leak"),
            "values leak": Convention("the value leaks (0 NaN)", {"poison": "leaks from values"}),
            "unknown": UNKNOWN,
        },
        lambda case, reading: _poison(case.call),
    ),
    "float64": Question(
        "float64 input",
        {
            "float64": Convention("float64 throughout"),
            "float32": Convention("softmax in float32", {"precision": "float32 weights"}),
            "refused": Convention("error: 16 bit only", refuses=True),
            "no float64": Convention("error", refuses=True),
            "unknown": UNKNOWN,
        },
        lambda case, reading: case.dtype == "float64",
    ),
    "no keys": Question(
        "S = 0",
        {
            "0": Convention("0"),
            "refused": Convention("error", refuses=True),
            "unknown": UNKNOWN,
        },
        lambda case, reading: case.call.k.shape[2] == 0,
    ),
}

#: The answers to these decide how a library reads a call: which keys a row sees there.
READING = ("bool mask", "float mask", "causal", "mask and causal", "window")

#: The choices that most libraries make.
USUAL: dict[str, str] = {name: next(iter(question.choices)) for name, question in QUESTIONS.items()}
