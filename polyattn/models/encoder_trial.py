"""The sentence encoder gives the same embeddings, and finds the same sentences, on every library, inside transformers,
and as an ONNX model.

The truth shares nothing with `polyattn.layers` but the weights: formulas on one sentence at a time, so without padding
and without a mask, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from polyattn import weights
from polyattn.models import minilm
from polyattn.models.search import SENTENCES, ranking
from polyattn.models.trial import Expected, ModelTrial, Question
from polyattn.parity.bench import Bench
from polyattn.truth.rounding import noise
from polyattn.truth.spec import Floats

__all__ = ["QUESTION", "encoder_trials", "expected", "tokens"]


def encoder_trials() -> tuple[tuple[ModelTrial, ...], list[str]]:
    """The trials that can run here, and why others cannot."""
    minilm.model_directory()
    own = ModelTrial("MiniLM embeddings", QUESTION, _in_our_layers)
    try:
        known = find_spec("transformers") is not None
    except ImportError:
        known = False
    if not known:
        return (own,), ["transformers is not installed, so MiniLM was not run there"]
    return (own, ModelTrial("MiniLM in transformers", QUESTION, _in_transformers, "bert")), []


@cache
def tokens() -> tuple[Floats, Floats]:
    """Token numbers of SENTENCES (sentences, longest) and lengths (sentences,), int32."""
    ids, lengths = minilm.tokenize(SENTENCES)
    return np.asarray(ids, np.int32), np.asarray(lengths, np.int32)


@cache
def expected() -> Expected:
    """The truth, and what rounding does to it."""
    flat = {
        name: x.astype(np.float64)
        for name, x in weights.flatten(
            weights.load(minilm.model_directory() / "model.safetensors", like=np.zeros(()))
        ).items()
    }
    ids, lengths = tokens()
    sentences = [row[:n] for row, n in zip(ids, lengths, strict=True)]

    def embed(number: Callable[[Floats], Floats]) -> Floats:
        return _formulas(flat, number, sentences)

    embeddings = embed(lambda x: x)
    return Expected(embeddings, noise(embed, draws=2), ranking(embeddings))


def _formulas(
    w: Mapping[str, Floats], number: Callable[[Floats], Floats], sentences: Sequence[Floats]
) -> Floats:
    """BERT (Devlin 2018, arXiv:1810.04805) on sentences (tokens,), and the means over their tokens: (sentences, 384)."""

    def dense(x: Floats, name: str) -> Floats:
        y: Floats = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return y

    def norm(x: Floats, name: str) -> Floats:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        y: Floats = x * w[f"{name}.weight"] + w[f"{name}.bias"]
        return y

    def attend(q: Floats, k: Floats, v: Floats) -> Floats:
        q, k, v = (x.reshape(len(x), 12, 32).swapaxes(0, 1) for x in (q, k, v))
        scores = q @ k.swapaxes(1, 2) / math.sqrt(32)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out: Floats = (p / p.sum(-1, keepdims=True)) @ v
        return out.swapaxes(0, 1).reshape(-1, 384)

    # The tokens of all lie one after the other.
    ends = np.cumsum([len(sentence) for sentence in sentences])[:-1]
    embedded = [
        w["embeddings.word_embeddings.weight"][sentence]
        + w["embeddings.position_embeddings.weight"][: len(sentence)]
        + w["embeddings.token_type_embeddings.weight"][0]
        for sentence in sentences
    ]
    x = norm(number(np.concatenate(embedded)), "embeddings.LayerNorm")
    for i in range(6):
        here = f"encoder.layer.{i}."
        qkv = (np.split(dense(x, f"{here}attention.self.{name}"), ends) for name in ("query", "key", "value"))
        attended = number(np.concatenate([attend(*of_one) for of_one in zip(*qkv, strict=True)]))
        x = norm(x + dense(attended, f"{here}attention.output.dense"), f"{here}attention.output.LayerNorm")
        h = dense(x, f"{here}intermediate.dense")
        h = h * (0.5 + 0.5 * number(_erf(h / math.sqrt(2))))
        x = norm(x + dense(h, f"{here}output.dense"), f"{here}output.LayerNorm")
    means = np.stack([tokens.mean(0) for tokens in np.split(x, ends)])
    embeddings: Floats = means / np.sqrt((means * means).sum(-1, keepdims=True))
    return embeddings


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _in_our_layers(bench: Bench, dtype: str) -> Floats:
    """`minilm.MINILM`, a page of `polyattn.layers`, on the arrays of the bench."""
    ids, lengths = tokens()
    flat = weights.flatten(minilm.load(like=np.zeros((), np.float32)))
    arrays = {name: bench.array(x, dtype) for name, x in flat.items()}
    arrays |= {"tokens": bench.array(ids), "lengths": bench.array(lengths)}

    def embed(given: Mapping[str, Any]) -> tuple[Any, Any]:
        params = weights.unflatten({name: given[name] for name in flat})
        x = minilm.MINILM(params, given["tokens"], given["lengths"])
        return x, x

    return bench.numpy(bench.run(embed, arrays, None)[0])


def _in_transformers(bench: Any, dtype: str) -> Floats:
    """The model that transformers makes of the same files, with this attention in every layer."""
    ids, lengths = tokens()
    real = np.arange(ids.shape[1]) < lengths[:, None]
    hidden = bench.bert(minilm.model_directory(), dtype, ids, real)
    mean = (hidden * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    embeddings: Floats = mean / np.sqrt((mean * mean).sum(-1, keepdims=True))
    return embeddings


QUESTION = Question("embeddings", "ranking", ranking, "other openings are the nearest", expected)
