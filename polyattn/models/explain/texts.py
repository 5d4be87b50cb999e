"""A text as a pretrained model reads it: its tokens, and what the attention of every layer is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from polyattn.models import minilm, smollm2
from polyattn.rotary import Rotary
from polyattn.truth.spec import Floats

__all__ = ["MODELS", "Model", "Read"]


class Read(NamedTuple):
    """Tokens as words, and for each layer q (heads, tokens, width), k and v (kv heads, tokens, width), float32.

    Queries and keys are those before rotary positions turn them.
    """

    tokens: list[str]
    layers: Iterable[tuple[Floats, Floats, Floats]]


@dataclass(frozen=True)
class Model:
    """A pretrained model whose attention can be shown."""

    name: str
    about: str
    depth: int
    heads: int
    is_causal: bool
    longest: int  # the most tokens that it can read
    added: int  # how many of the tokens are not of the text, half before it and half behind
    numbers: Callable[[str], list[int]]
    read: Callable[[list[int]], Read]
    rotary: Rotary | None = None  # how every layer turns its queries and keys


def _minilm_numbers(text: str) -> list[int]:
    (numbers,), _ = minilm.tokenize([text], whole=True)
    return numbers


def _read_minilm(numbers: list[int]) -> Read:
    params = minilm.load(like=np.zeros((), np.float32))
    ids, lengths = np.asarray([numbers], np.int32), np.asarray([len(numbers)], np.int32)
    found = minilm.MINILM.queries_keys_values(params, ids, lengths)
    return Read(minilm.token_names(numbers), ((q[0], k[0], v[0]) for q, k, v in found))


def _smollm2_numbers(text: str) -> list[int]:
    return smollm2.Tokens(smollm2.file().metadata).encode(text)


def _read_smollm2(numbers: list[int]) -> Read:
    params, tokens = smollm2.load(like=np.zeros((), np.float32))
    found = smollm2.queries_keys_values(params, np.asarray([numbers], np.int32))
    return Read([tokens.decode([number]) for number in numbers], ((q[0], k[0], v[0]) for q, k, v in found))


#: By the name that a call gives.
MODELS: Mapping[str, Model] = {
    "minilm": Model(
        "MiniLM",
        "all-MiniLM-L6-v2, an encoder of sentences: 6 layers of 12 heads, no mask.",
        depth=minilm.MINILM.encoder.depth,
        heads=12,
        is_causal=False,
        longest=512,
        added=2,
        numbers=_minilm_numbers,
        read=_read_minilm,
    ),
    "smollm2": Model(
        "SmolLM2",
        "SmolLM2-135M-Instruct, a language model: 30 layers of 9 heads, causal; rotary positions turn q and k.",
        depth=smollm2.SMOLLM2.trunk.depth,
        heads=9,
        is_causal=True,
        longest=8192,
        added=0,
        numbers=_smollm2_numbers,
        read=_read_smollm2,
        rotary=smollm2.BLOCK.attention.rotary,
    ),
}
