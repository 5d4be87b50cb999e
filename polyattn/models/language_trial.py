"""The language model gives the same logits, and so the same tokens, on every library.

The truth shares nothing with `polyattn.layers` but the weights: formulas on one conversation, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from polyattn import weights
from polyattn.models import smollm2
from polyattn.models.trial import Expected, ModelTrial, Question
from polyattn.parity.bench import Bench
from polyattn.truth.rounding import noise
from polyattn.truth.spec import Floats

__all__ = ["ANSWER", "QUESTION", "expected", "language_trials", "tokens"]

ANSWER = "The capital of France is Paris."
_ASKED = [{"role": "user", "content": "What is the capital of France?"}]


def language_trials() -> tuple[ModelTrial, ...]:
    """The trials; ModuleNotFoundError where the weights are not installed."""
    smollm2.model_file()
    # An ONNX model of it would have to hold half a gigabyte for a row of this table.
    return (ModelTrial("SmolLM2 logits", QUESTION, _in_our_layers, without="writes_graphs"),)


@cache
def tokens() -> tuple[Floats, int]:
    """A question and its answer (tokens,), int32, and how many of the last tokens the model should say."""
    speaks = smollm2.load(like=np.zeros((), np.float32)).tokens
    answer = [*speaks.encode(ANSWER), smollm2.END]
    return np.asarray([*speaks.chat(_ASKED), *answer], np.int32), len(answer)


@cache
def expected() -> Expected:
    """The truth, and what rounding does to it: the logits of each token of the answer, and the likeliest ones."""
    w = {name: np.asarray(x, np.float64) for name, x in smollm2.file().tensors.items()}
    text, count = tokens()

    def logits(number: Callable[[Floats], Floats]) -> Floats:
        return _formulas(w, number, text[:-1], count)

    found = logits(lambda x: x)
    return Expected(found, noise(logits, draws=2), found.argmax(-1))


def _formulas(w: Mapping[str, Floats], number: Callable[[Floats], Floats], text: Floats, rows: int) -> Floats:
    """Llama (Touvron 2023, arXiv:2302.13971) on one text (tokens,): logits (rows, vocabulary) of the last rows."""
    n = len(text)
    turns = np.arange(n)[:, None] / 100_000.0 ** (np.arange(32) / 32)
    cos, sin = np.cos(turns), np.sin(turns)
    seen = np.tril(np.ones((n, n)))

    def dense(x: Floats, name: str) -> Floats:
        y: Floats = x @ w[f"{name}.weight"].T
        return y

    def norm(x: Floats, name: str) -> Floats:
        y: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]
        return y

    def heads(x: Floats) -> Floats:
        return x.reshape(n, -1, 64).swapaxes(0, 1)

    def turned(x: Floats) -> Floats:
        even, odd = x[..., 0::2], x[..., 1::2]
        return number(np.stack((even * cos - odd * sin, even * sin + odd * cos), -1).reshape(x.shape))

    x = number(w["token_embd.weight"][text])
    for i in range(30):
        here = f"blk.{i}."
        h = norm(x, f"{here}attn_norm")
        q, k, v = (heads(dense(h, f"{here}attn_{name}")) for name in "qkv")
        q, k, v = turned(q), turned(k).repeat(3, 0), v.repeat(3, 0)
        s = q @ k.swapaxes(1, 2) / 8.0
        e = np.exp(s - s.max(-1, keepdims=True)) * seen
        attended = (e / e.sum(-1, keepdims=True)) @ v
        x = x + dense(attended.swapaxes(0, 1).reshape(n, -1), f"{here}attn_output")
        h = norm(x, f"{here}ffn_norm")
        gate = dense(h, f"{here}ffn_gate")
        x = x + dense(gate / (1.0 + np.exp(-gate)) * dense(h, f"{here}ffn_up"), f"{here}ffn_down")
    return dense(norm(x[-rows:], "output_norm"), "token_embd")


def _in_our_layers(bench: Bench, dtype: str) -> Floats:
    """`smollm2.SMOLLM2`, a page of `polyattn.layers`, on the arrays of the bench."""
    flat = weights.flatten(smollm2.load(like=np.zeros((), np.float32)).params)
    text, count = tokens()
    arrays: dict[str, Any] = {name: bench.array(x, dtype) for name, x in flat.items()}
    arrays["text"] = bench.array(text[None, :-1])

    def logits(given: Mapping[str, Any]) -> tuple[Any, Any]:
        params = weights.unflatten({name: given[name] for name in flat})
        x = smollm2.SMOLLM2.trunk_of(params, given["text"]).out
        found = smollm2.SMOLLM2.logits(params, x[0, -count:, :])
        return found, found

    return bench.numpy(bench.run(logits, arrays, None)[0])


QUESTION = Question("logits", "tokens", lambda x: x.argmax(-1), "other tokens are the likeliest", expected)
