"""The model that writes down speech gives the same logits, and so the same words, on every library.

The truth shares nothing with `polyattn.layers` but the weights: formulas on one recording, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from polyattn import weights
from polyattn.models import sound, whisper
from polyattn.models.trial import Expected, ModelTrial, Question
from polyattn.parity.bench import Bench
from polyattn.truth.rounding import noise
from polyattn.truth.spec import Floats

__all__ = ["QUESTION", "SAID", "expected", "given", "speech_trials"]

SAID = " Ever tried, ever failed. No matter, try again. Fail again. Fail better."


def speech_trials() -> tuple[ModelTrial, ...]:
    """The trials; ModuleNotFoundError where weights or recording are not installed."""
    whisper.model_directory()
    sound.recording()
    # An ONNX model of it agrees too, and takes half a minute to be written for a row of this table.
    return (ModelTrial("Whisper logits", QUESTION, _in_our_layers, without="writes_graphs"),)


@cache
def given() -> tuple[Floats, Floats, int]:
    """The ten seconds of the recording (1000, 80), tokens (n,), int32, and how many of the last the model should say."""
    heard = sound.log_mel(sound.read_wave(sound.recording()))[:1000]
    words = whisper.Tokens(whisper.model_directory()).encode(SAID)
    return heard, np.asarray([*whisper.PROMPT, *words], np.int32), len(words)


@cache
def expected() -> Expected:
    """The truth, and what rounding does to it: the logits of each token of the answer, and the likeliest ones."""
    w = {name: x.astype(np.float64) for name, x in whisper.file().items()}
    heard, text, count = given()

    def logits(number: Callable[[Floats], Floats]) -> Floats:
        return _formulas(w, number, heard, text[:-1])[-count:]

    found = logits(lambda x: x)
    return Expected(found, noise(logits, draws=2), found.argmax(-1))


def _formulas(
    w: Mapping[str, Floats], number: Callable[[Floats], Floats], heard: Floats, text: Floats
) -> Floats:
    """Whisper (Radford 2022, arXiv:2212.04356) on frames (T, 80) and tokens (n,): logits (n, vocabulary)."""

    def dense(x: Floats, name: str) -> Floats:
        y: Floats = x @ w[f"{name}/weight"].T + w[f"{name}/bias"]
        return y

    def norm(x: Floats, name: str) -> Floats:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        y: Floats = x * w[f"{name}/gamma"] + w[f"{name}/beta"]
        return y

    def gelu(x: Floats) -> Floats:
        return x * (0.5 + 0.5 * number(_erf(x / math.sqrt(2))))

    def convolved(x: Floats, name: str, stride: int) -> Floats:
        lines = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((1, 1), (0, 0))), 3, 0)[::stride]
        kernel = w[f"{name}/weight"]  # (out, in, 3), and a line is (in, 3)
        y: Floats = (
            number(lines.reshape(-1, 3 * x.shape[1])) @ kernel.reshape(len(kernel), -1).T + w[f"{name}/bias"]
        )
        return gelu(y)

    def attend(seen: Floats | float, q: Floats, k: Floats, v: Floats) -> Floats:
        q, k, v = (x.reshape(len(x), 6, 64).swapaxes(0, 1) for x in (q, k, v))
        s = q @ k.swapaxes(1, 2) / 8.0
        e = np.exp(s - s.max(-1, keepdims=True)) * seen
        out: Floats = (e / e.sum(-1, keepdims=True)) @ v
        return out.swapaxes(0, 1).reshape(-1, 384)

    def to_itself(x: Floats, here: str, seen: Floats | float) -> Floats:
        qkv = np.split(dense(norm(x, f"{here}/layer_norm"), f"{here}/linear_0"), 3, -1)
        return x + dense(attend(seen, *qkv), f"{here}/linear_1")

    def thought(x: Floats, here: str) -> Floats:
        hidden = gelu(dense(norm(x, f"{here}/layer_norm"), f"{here}/linear_0"))
        return x + dense(hidden, f"{here}/linear_1")

    x = convolved(convolved(number(heard), "encoder/conv1", 1), "encoder/conv2", 2)
    x = x + w["encoder/position_encodings/encodings"][: len(x)]
    for i in range(4):
        x = to_itself(x, f"encoder/layer_{i}/self_attention", 1.0)
        x = thought(x, f"encoder/layer_{i}/ffn")
    source, n = norm(x, "encoder/layer_norm"), len(text)
    table = w["decoder/embeddings/weight"]
    x = number(table[text] + w["decoder/position_encodings/encodings"][:n])
    for i in range(4):
        x, here = to_itself(x, f"decoder/layer_{i}/self_attention", np.tri(n)), f"decoder/layer_{i}/attention"
        q = dense(norm(x, f"{here}/layer_norm"), f"{here}/linear_0")
        x = x + dense(attend(1.0, q, *np.split(dense(source, f"{here}/linear_1"), 2, -1)), f"{here}/linear_2")
        x = thought(x, f"decoder/layer_{i}/ffn")
    logits: Floats = norm(x, "decoder/layer_norm") @ table.T
    return logits


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _in_our_layers(bench: Bench, dtype: str) -> Floats:
    """`whisper.WHISPER`, a page of `polyattn.layers`, on the arrays of the bench."""
    flat = weights.flatten(whisper.load(like=np.zeros((), np.float32)).params)
    heard, text, count = given()
    arrays: dict[str, Any] = {name: bench.array(x, dtype) for name, x in flat.items()}
    arrays |= {"heard": bench.array(heard[None], dtype), "text": bench.array(text[None, :-1])}

    def logits(given: Mapping[str, Any]) -> tuple[Any, Any]:
        params = weights.unflatten({name: given[name] for name in flat})
        found = whisper.WHISPER(params, given["heard"], given["text"])[0, -count:, :]
        return found, found

    return bench.numpy(bench.run(logits, arrays, None)[0])


QUESTION = Question("logits", "tokens", lambda x: x.argmax(-1), "other tokens are the likeliest", expected)
