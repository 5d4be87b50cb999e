"""What may be the matter with an implementation: every known convention and mistake, and how to say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from polyattn.conventions.call import Call
from polyattn.conventions.settings import CONTRACT, Settings

__all__ = ["CAUSES", "LOW", "NAMES", "ROUNDINGS", "Cause", "settings_of", "without_merge"]


class Cause(NamedTuple):
    """One change of the settings, and how to say it."""

    field: str
    choice: str
    sentence: Callable[[Call], str]
    applies: Callable[[Call], bool]


def _causes() -> tuple[Cause, ...]:
    def always(call: Call) -> bool:
        return True

    def has(name: str) -> Callable[[Call], bool]:
        return lambda call: getattr(call, name) is not None

    def grouped(call: Call) -> bool:
        return bool(1 < call.k.shape[1] < call.q.shape[1])

    def square(call: Call) -> bool:
        return bool(call.q.shape[2] == call.k.shape[2])

    def masked(call: Call) -> bool:
        return call.mask is not None or call.is_causal or call.window is not None

    def causal(call: Call) -> bool:
        return call.is_causal

    def by_position(call: Call) -> bool:
        return call.is_causal or call.window is not None

    def whole(alone: str, beside: str) -> Callable[[Call], str]:
        return lambda call: alone if call.mask is None else beside

    def several_heads(call: Call) -> bool:
        return bool(call.q.shape[1] > 1)

    def same_heads(call: Call) -> bool:
        return several_heads(call) and call.q.shape[1] == call.k.shape[1]

    def say(text: str) -> Callable[[Call], str]:
        return lambda call: text

    def scale(choice: str, text: str) -> Cause:
        return Cause(
            "scale",
            choice,
            lambda c: text.format(
                D=c.q.shape[3],
                E=c.embed_dim,
                S=c.k.shape[2],
                KV=c.k.shape[1] * c.q.shape[3],
                s=f"{c.scale:.4g}",
            ),
            always,
        )

    return (
        scale("1", "scale = 1 (scores not divided)"),
        scale("1/sqrt(embed_dim)", "scale = 1/sqrt({E}) (model width, not head width)"),
        scale("1/sqrt(D)", "scale = 1/sqrt({D}) (the default, not the scale that was asked for)"),
        scale("twice", "scale {s} applied twice"),
        scale("1/D", "scale = 1/{D} (no square root)"),
        scale("sqrt(D)", "scale = sqrt({D}) (multiplied, not divided)"),
        scale("1/sqrt(S)", "scale = 1/sqrt({S}) (number of keys, not head width)"),
        scale("1/sqrt(kv_heads D)", "scale = 1/sqrt({KV}) (width of all kv heads, not of one)"),
        Cause("polarity", "ignore", say("mask polarity inverted: True was taken as 'ignore'"), has("mask")),
        Cause("polarity", "all ignored", whole("mask polarity inverted: True was taken as 'ignore'", "polarity of the whole mask inverted, causality and window too: True was taken as 'ignore'"), by_position),
        Cause("mask", "dropped", say("mask ignored"), has("mask")),
        Cause("mask", "added as 0/1", say("mask added to the scores as 0 and 1, as a float mask is"), has("mask")),
        Cause("mask", "all added as 0/1", whole("mask added to the scores as 0 and 1, as a float mask is", "whole mask, causality and window too, added to the scores as 0 and 1, as a float mask is"), by_position),
        Cause("mask", "after the softmax", say("mask applied after the softmax, rows not renormalised"), masked),
        Cause("mask", "hides queries", say("padding mask on the query axis instead of the key axis"), lambda c: c.mask is not None and square(c)),
        Cause("hidden", "0", say("hidden scores filled with about 0 instead of -inf"), masked),
        Cause("causal", "dropped", say("causal mask ignored"), causal),
        Cause("causal", "top-left", say("causal mask aligned top-left (first query with first key)"), causal),
        Cause("causal", "bottom-right", say("causal mask aligned bottom-right (last query with last key)"), causal),
        Cause("causal", "diagonal hidden", say("causal mask hides the diagonal: a token does not see itself"), causal),
        Cause("causal", "one ahead", say("causal mask off by one: a token sees the next one"), causal),
        Cause("causal", "transposed", say("causal mask transposed: a token sees the later ones"), causal),
        Cause("window", "dropped", say("window ignored"), has("window")),
        Cause("window", "one key more", say("window off by one: one neighbour more on a side (size counted without the token itself)"), has("window")),
        Cause("window", "one key less", say("window off by one: one neighbour less on a side (size counted with the token itself)"), has("window")),
        Cause("window", "symmetric", say("window applied on both sides"), has("window")),
        Cause("window", "from the first row", say("window positioned from the first row, without the query offset"), lambda c: c.window is not None and c.offset != 0),
        Cause("softcap", "dropped", say("soft cap ignored"), has("softcap")),
        Cause("softcap", "after the mask", say("soft cap applied after the mask: hidden keys leak at -cap"), lambda c: c.softcap is not None and masked(c)),
        Cause("softcap", "rational", say("soft cap as x / (1 + |x| / cap), not cap tanh(x / cap)"), has("softcap")),
        Cause("softcap", "before the scale", say("soft cap applied before the scale"), has("softcap")),
        Cause("softcap", "after the bias", say("soft cap applied after the bias"), lambda c: c.softcap is not None and (c.bias is not None or c.shift is not None)),
        Cause("softcap", "tanh alone", say("soft cap without its factor: tanh(x / cap)"), has("softcap")),
        Cause("bias", "dropped", say("bias ignored"), has("bias")),
        Cause("bias", "before the scale", say("bias added before the scale: (q k + bias) scale"), has("bias")),
        Cause("bias", "subtracted", say("bias subtracted"), has("bias")),
        Cause("sinks", "dropped", say("sinks left out of the softmax"), has("sinks")),
        Cause("heads", "tiled", say("kv heads tiled: query head h reads kv head h % Hkv, not h // G"), grouped),
        Cause("heads", "first only", say("every query head reads the first kv head"), lambda c: c.k.shape[1] > 1),
        Cause("heads", "reversed", say("kv heads in reverse order"), lambda c: c.k.shape[1] > 1),
        Cause("layout", "split without transpose", say("heads split wrongly: (B, L, H D) viewed as (B, H, L, D) without a transpose"), several_heads),
        Cause("layout", "heads interleaved", say("heads split wrongly: (H D) read as (D H), heads interleaved"), several_heads),
        Cause("layout", "attends over heads", say("layout swapped: attention over the heads of a token instead of over tokens"), lambda c: same_heads(c) and square(c) and not masked(c) and c.bias is None and c.shift is None and c.sinks is None),
        Cause("merge", "merged without transpose", say("heads merged wrongly: (B, H, L, D) viewed as (B, L, H D) without a transpose"), several_heads),
        Cause("softmax", "queries", say("softmax over the queries instead of the keys"), always),
        Cause("softmax", "heads", say("softmax over the heads instead of the keys"), several_heads),
        Cause("softmax", "missing", say("no softmax: scores used as weights"), always),
        Cause("softmax", "base 2", say("softmax in base 2 without the factor log2(e)"), always),
        Cause("softmax", "plus one", say("softmax with 1 added to the denominator (a sink of 0)"), always),
        Cause("softmax", "sigmoid", say("sigmoid instead of softmax"), always),
        Cause("empty_rows", "mean of all values", say("rows that see nothing get the mean of all values (finite mask constant)"), masked),
        Cause("empty_rows", "as if unmasked", say("rows that see nothing are computed as if there were no mask"), masked),
        Cause("empty_rows", "NaN", say("rows that see nothing are NaN"), masked),
        Cause("rotary", "dropped", say("rotary embedding not applied"), has("rotary")),
        Cause("rotary", "other pairing", lambda c: "rotary pairing " + ("half-split instead of interleaved" if c.rotary is not None and c.rotary.interleaved else "interleaved instead of half-split"), has("rotary")),
        Cause("rotary", "queries alone", say("rotary embedding applied to the queries alone"), has("rotary")),
        Cause("rotary", "queries one late", say("rotary positions of the queries off by one"), has("rotary")),
        Cause("rotary", "queries from 0", say("rotary positions of the queries start at 0 instead of query_offset"), lambda c: c.rotary is not None and c.offset != 0),
        Cause("rotary", "applied", say("rotary embedding applied (half-split pairs), which nobody asked for"), lambda c: c.rotary is None and c.q.shape[3] % 2 == 0),
        Cause("rotary", "applied interleaved", say("rotary embedding applied (interleaved pairs), which nobody asked for"), lambda c: c.rotary is None and c.q.shape[3] % 2 == 0),
        Cause("keys", "last dropped", say("last key dropped"), always),
        Cause("keys", "first dropped", say("first key dropped"), always),
        Cause("operands", "query and key swapped", say("query and key swapped"), lambda c: c.q.shape == c.k.shape),
        Cause("operands", "key and value swapped", say("key and value swapped"), lambda c: c.k.shape == c.v.shape),
    )  # fmt: skip


CAUSES = _causes()

NAMES = {"bfloat16": "bfloat16", "tf32": "TF32", "float16": "float16"}  # the usual ones first
_STAGES = {
    "operands": "both matrix products in {}: query, key, value and weights rounded",
    "inputs": "query, key and value rounded to {}",
    "product": "products of query and key rounded to {}",
    "scores": "scores rounded to {}",
    "weights": "weights rounded to {}",
}


def _rounding(low: str, stage: str) -> Cause:
    sentence = _STAGES[stage].format(NAMES[low])
    return Cause("precision", f"{low} {stage}", lambda call: sentence, lambda call: True)


ROUNDINGS = tuple(_rounding(low, stage) for low in NAMES for stage in _STAGES)
#: The rounding of each lower precision.
LOW = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}


def without_merge(causes: tuple[Cause, ...]) -> tuple[tuple[Cause, ...], bool]:
    """The other causes. A wrong merge permutes the output: undoing that is cheaper than computing every row."""
    others = tuple(cause for cause in causes if cause.field != "merge")
    return others, len(others) < len(causes)


def settings_of(causes: tuple[Cause, ...]) -> Settings:
    """The contract with these changes."""
    return replace(CONTRACT, **{cause.field: cause.choice for cause in causes})
