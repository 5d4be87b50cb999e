"""A language model on characters: which one comes next, given those before it."""

from __future__ import annotations

from collections.abc import Sequence

from polyattn import layers
from polyattn.masks import sliding_window
from polyattn.rotary import Rotary

#: A character's number is its place here; these are all that `shakespeare.txt` has.
CHARACTERS = "\n !\"&'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"


def encode(text: str) -> list[int]:
    """The numbers of the characters.

    >>> encode("Ay, sir")
    [14, 66, 8, 1, 60, 50, 59]
    """
    if strange := sorted(set(text) - set(CHARACTERS)):
        raise ValueError(f"encode: expected only the characters {CHARACTERS!r}, got {''.join(strange)!r} too")
    return [CHARACTERS.index(character) for character in text]


def decode(tokens: Sequence[int]) -> str:
    """The inverse of `encode`."""
    return "".join(CHARACTERS[token] for token in tokens)


def language_model(
    *, dim: int = 96, num_heads: int = 3, hidden_dim: int = 224, depth: int = 4, window: int = 64
) -> layers.LanguageModel:
    """The blocks of Llama, in small: `layers.LanguageModel` on characters; by default the model of the file.

    A token sees itself and the `window` - 1 tokens before it, and of their places only the distance (`Rotary`), so that
    a text may be longer than those of the training.
    """
    attention = layers.MultiQueryAttention(
        dim,
        num_heads,
        qkv_bias=False,
        out_bias=False,
        is_causal=True,
        mask=sliding_window(window),
        rotary=Rotary(),
    )
    mlp = layers.MLP(dim, hidden_dim, activation="swiglu", use_bias=False)
    norm = layers.RMSNorm(dim, epsilon=1e-5)
    block = layers.EncoderBlock(attention, mlp, norm, norm_first=True)
    return layers.LanguageModel(
        layers.Embedding(len(CHARACTERS), dim),
        layers.Encoder(block, depth, final_norm=norm),
        head=layers.Linear(dim, len(CHARACTERS), use_bias=False),
    )
