"""Reports on where a token stands: rotary pairs, bases, scalings, offsets; and what is multiplied into queries."""

from __future__ import annotations

from typing import Any

import numpy as np
from parity.reports.asked import Asked, Floats, Reports, heads, past, textbook, turned

from polyattn import mods
from polyattn.rotary import Linear, Llama3, Rotary

REPORTS = Reports()
TWO_PI = 2.0 * np.pi


def rotated(rows: int, at: Any = None, at_k: Any = None, /, *, keys: int | None = None, **how: Any) -> Asked:
    """Causal attention on turned vectors."""
    q, k, v = heads(rows, keys, width=16)
    keys = rows if keys is None else keys
    at = np.arange(rows) if at is None else at
    at_k = np.arange(keys) if at_k is None else at_k
    out = textbook(turned(q, at, **how), turned(k, at_k, **how), v, past(rows, keys, keys - rows))
    return out, (q, k, v), {"is_causal": True, "query_offset": "end"}


def meant(asked: Asked, **rotary: Any) -> Asked:
    return asked[0], asked[1], asked[2] | {"rotary": Rotary(**rotary)}


@REPORTS("jzhang38/TinyLlama#24", "pairs side by side for weights made for halves", "pairing interleaved")
def the_pairs_of_meta(wrong: bool) -> Asked:
    return meant(rotated(10, interleaved=wrong))


@REPORTS(
    "huggingface/transformers#39687", "halves for weights made for pairs side by side", "pairing half-split"
)
def the_pairs_of_neox(wrong: bool) -> Asked:
    return meant(rotated(10, interleaved=not wrong), interleaved=True)


@REPORTS("karpathy/llama2.c#356", "10000 is the base of every model, Code Llama's too", r"\bbase\b|theta")
def the_base_of_llama(wrong: bool) -> Asked:
    return meant(rotated(10, base=1e4 if wrong else 1e6), base=1e6)


@REPORTS("lyogavin/airllm#369", "rope_theta of a config is not carried on", r"\bbase\b|theta")
def the_base_of_the_default(wrong: bool) -> Asked:
    return meant(rotated(3, np.arange(9, 12), keys=12, base=1e4 if wrong else 5e5), base=5e5)


@REPORTS("felafax/felafax#59", "the scaling of Llama 3.1 is missing", "scaling|frequenc")
def no_llama_scaling(wrong: bool) -> Asked:
    frequencies = 1e4 ** (-np.arange(0, 16, 2) / 16)
    turns = 64 * frequencies / TWO_PI  # an original length of 64
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    times = 1.0 if wrong else smooth + (1.0 - smooth) / 8.0
    return meant(rotated(24, times=times), scaling=Llama3(8.0, 1.0, 4.0, 64))


@REPORTS(
    "lablup/mlxcel#1340",
    "the linear scaling of Gemma 3's global layers is missing",
    "scaling|frequenc|positions",
)
def no_linear_scaling(wrong: bool) -> Asked:
    return meant(rotated(10, times=1.0 if wrong else 1 / 8.0, base=1e6), base=1e6, scaling=Linear(8.0))


@REPORTS(
    "pie-project/pie#602", "partial rotary with the frequencies of a whole head", "width|partial|frequenc"
)
def partial_frequencies(wrong: bool) -> Asked:
    return meant(rotated(10, width=8, of=16 if wrong else 8), width=8)


@REPORTS(
    "ml-explore/mlx-lm#1698",
    "partial_rotary_factor unread: the whole head is turned",
    "width|partial|whole head|all entries",
)
def all_is_turned(wrong: bool) -> Asked:
    return meant(rotated(10, width=16 if wrong else 8), width=8)


@REPORTS(
    "mlfoundations/open_lm#4", "turned by the head's number, which cancels", "rotary embedding not applied"
)
def turned_by_the_head(wrong: bool) -> Asked:
    q, k, v = heads(10, width=16)
    if wrong:
        at = np.arange(4)[:, None] * np.ones(10)
        out = textbook(turned(q, at), turned(k, at), v, past(10))
        return meant((out, (q, k, v), {"is_causal": True}))
    return meant(rotated(10))


@REPORTS("RobertCsordas/moeut#6", "the queries of a cached step are turned from 0", "start at 0")
def queries_from_nought(wrong: bool) -> Asked:
    return meant(rotated(3, np.arange(3) + (0 if wrong else 7), keys=10))


@REPORTS("Blaizzy/mlx-vlm#1983", "every decoded token stands at 0, in the cache too", r"\b0\b|positions")
def all_decoded_stand_at_nought(wrong: bool) -> Asked:
    at_k = np.where(np.arange(10) < 7, np.arange(10), 0) if wrong else np.arange(10)
    return meant(rotated(1, np.array([0 if wrong else 9]), at_k, keys=10))


@REPORTS(
    "fla-org/flash-linear-attention#766",
    "layers after the first count the token twice",
    "off by one|one late|positions",
)
def counted_too_early(wrong: bool) -> Asked:
    at_k = np.arange(10) + (np.arange(10) == 9) * wrong
    return meant(rotated(1, np.array([9 + wrong]), at_k, keys=10))


@REPORTS(
    "unslothai/unsloth#3795",
    "with padding on the left one position for all rows of a batch",
    "positions of the queries",
)
def one_position_for_the_batch(wrong: bool) -> Asked:
    q, k, v = (x[:1] for x in heads(1, 7, width=16))  # the row whose prompt is 2 shorter than the longest
    out = textbook(turned(q, [6 + 2 * wrong]), turned(k, np.arange(7)), v)
    return meant((out, (q, k, v), {"is_causal": True, "query_offset": "end"}))


def rms(x: Floats) -> Floats:
    size: Floats = np.sqrt(np.mean(x**2, -1, keepdims=True))
    return size


@REPORTS("vllm-project/vllm-metal#659", "the norms of queries and keys are skipped", "norm")
def no_norms(wrong: bool) -> Asked:
    q, k, v = heads(10)
    q, k = 2.0 * q, 3.0 * k
    given = (q, k, v) if wrong else (q / rms(q), k / rms(k), v)
    return textbook(*given, past(10)), (q / rms(q), k / rms(k), v), {"is_causal": True}


@REPORTS(
    "AI-Hypercomputer/maxtext#1611",
    "the temperature of Llama 4's layers without rotary",
    "temperature|score_mod ignored",
)
def no_temperature(wrong: bool) -> Asked:
    q, k, v = heads(10)
    sharper = 1.0 + 0.5 * np.log(np.floor((np.arange(10.0) + 1.0) / 4.0) + 1.0)
    out = textbook(q if wrong else q * sharper[:, None], k, v, past(10))
    return out, (q, k, v), {"is_causal": True, "score_mod": mods.temperature(0.5, 4)}


@REPORTS("vllm-project/vllm#36880", "Qwen's queries are not multiplied by log n", "log|temperature|queries")
def no_log_n(wrong: bool) -> Asked:
    q, k, v = heads(24)
    sharper = np.maximum(np.log(np.arange(1.0, 25.0)) / np.log(6.0), 1.0)[:, None]
    return textbook(q if wrong else q * sharper, k, v, past(24)), (q * sharper, k, v), {"is_causal": True}
