"""A language model on characters: which one comes next, given those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polyattn import AuxRequest, layers
from polyattn.arrays import Array
from polyattn.caches import KVCache
from polyattn.layers import AttentionLayer, Layer, LayerResult, Params
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


@dataclass(frozen=True)
class LanguageModel(AttentionLayer):
    """Tokens (..., L), integers -> logits (..., L, size) of the character that follows each of them.

        x = embedding(token)
        depth times:   x = x + attention(norm(x));   x = x + swiglu(norm(x))
        logits = norm(x) W

    The blocks of Llama, in small. A token sees itself and the `window` - 1 tokens before it, and of their
    places only the distance (`Rotary`), so that a text may be longer than those of the training.
    """

    size: int = len(CHARACTERS)
    dim: int = 96
    num_heads: int = 3
    num_kv_heads: int = 1
    hidden_dim: int = 224
    depth: int = 4
    window: int = 64

    @property
    def trunk(self) -> layers.Encoder:
        """The blocks and the norm behind them."""
        attention = layers.GroupedQueryAttention(
            self.dim,
            self.num_heads,
            num_kv_heads=self.num_kv_heads,
            qkv_bias=False,
            out_bias=False,
            is_causal=True,
            mask=sliding_window(self.window),
            rotary=Rotary(),
        )
        mlp = layers.MLP(self.dim, self.hidden_dim, activation="swiglu", use_bias=False)
        norm = layers.RMSNorm(self.dim, epsilon=1e-5)
        block = layers.EncoderBlock(attention, mlp, norm, norm_first=True)
        return layers.Encoder(block, self.depth, final_norm=norm)

    @property
    def embedding(self) -> layers.Embedding:
        """A vector for each character."""
        return layers.Embedding(self.size, self.dim)

    @property
    def head(self) -> layers.Linear:
        """From the last vector to the logits."""
        return layers.Linear(self.dim, self.size, use_bias=False)

    def parameters(self) -> Mapping[str, Layer]:
        return {"embedding": self.embedding, "trunk": self.trunk, "head": self.head}

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> tuple[KVCache, ...]:
        """A cache for each block, without tokens."""
        return self.trunk.empty_cache(batch, capacity, like=like)

    def run(
        self,
        params: Params,
        tokens: Array,
        *,
        cache: Sequence[KVCache] | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        """logits, the longer caches, and what each attention saw; a call gives the logits alone."""
        x = self.embedding(params["embedding"], tokens)
        found = self.trunk.run(params["trunk"], x, cache=cache, return_aux=return_aux)
        return found._replace(out=self.head(params["head"], found.out))
