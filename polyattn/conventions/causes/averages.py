"""Mistakes in the average: sinks, the softmax and what stands in its place, and what is done to the output."""

from __future__ import annotations

from polyattn.conventions.call import Call
from polyattn.conventions.causes.cause import (
    Applies,
    Cause,
    always,
    batched,
    both,
    equal_widths,
    has,
    say,
    several_heads,
    square,
)

__all__ = ["AVERAGES"]


def _no(name: str) -> Applies:
    return lambda call: getattr(call, name) is None


def _divided(call: Call) -> str:
    return f"output divided by sqrt({call.q.shape[3]}) besides the scores"


def _shared(call: Call) -> str:
    return f"output divided by {call.k.shape[2]}, the number of keys"


AVERAGES = (
    Cause("sinks", "dropped", say("sinks left out of the softmax"), has("sinks")),
    Cause("sinks", "not shifted", say("sinks added to the denominator as exp(sink), the scores as exp(s - max s)"), has("sinks")),
    Cause("sinks", "scaled", say("sinks multiplied by the scale, as scores are"), has("sinks")),
    Cause("sinks", "exponentiated twice", say("sinks exponentiated twice: exp(sink) taken for a score"), has("sinks")),
    Cause("sinks", "subtracted", say("sinks with the sign swapped"), has("sinks"), rare=True),
    Cause("sinks", "first head's", say("sink of the first head used for all"), both(has("sinks"), several_heads), rare=True),
    Cause("softmax", "queries", say("softmax over the queries instead of the keys"), always),
    Cause("softmax", "heads", say("softmax over the heads instead of the keys"), several_heads),
    Cause("softmax", "missing", say("no softmax: scores used as weights"), always),
    Cause("softmax", "base 2", say("softmax in base 2 without the factor log2(e)"), always),
    Cause("softmax", "plus one", say("softmax with 1 added to the denominator (a sink of 0)"), always),
    Cause("softmax", "sigmoid", say("sigmoid instead of softmax"), always),
    Cause("softmax", "twice", say("softmax applied twice"), always),
    Cause("softmax", "batch items", say("softmax over the batch items instead of the keys"), batched, rare=True, whole_batch=True),
    Cause("softmax", "keys and heads", say("softmax over keys and heads together"), several_heads, rare=True),
    Cause("softmax", "plus one, not shifted", say("softmax with 1 added to the sum of exp(s - max s), not exp(-max s)"), _no("sinks"), rare=True),
    Cause("softmax", "sigmoid less log n", say("sigmoid with the bias -log(number of keys) instead of softmax"), always, rare=True),
    Cause("softmax", "relu over n", say("relu over the number of keys instead of softmax"), always, rare=True),
    Cause("softmax", "sparsemax", say("sparsemax instead of softmax"), always, rare=True),
    Cause("softmax", "entmax-1.5", say("entmax with alpha = 1.5 instead of softmax"), always, rare=True),
    Cause("softmax", "softpick", say("softpick instead of softmax"), always, rare=True),
    Cause("output", "query added", say("query added to the output: a residual connection"), equal_widths),
    Cause("output", "value added", say("value added to the output: a residual connection"), square, rare=True),
    Cause("output", "divided by sqrt(D)", _divided, always, rare=True),
    Cause("output", "divided by S", _shared, always, rare=True),
    Cause("output", "mean of heads", say("mean of the heads in place of each"), several_heads, rare=True),
    Cause("output", "heads reversed", say("heads of the output in reverse order"), several_heads, rare=True),
    Cause("output", "heads interleaved", say("heads merged wrongly: (H D) written as (D H), heads interleaved"), several_heads, rare=True),
)  # fmt: skip
