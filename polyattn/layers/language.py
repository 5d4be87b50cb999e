"""A language model: which token comes next, given those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn.arrays import Array, backend_of
from polyattn.layers.attending import AttentionLayer
from polyattn.layers.dense import Embedding, Linear
from polyattn.layers.heads import positions_of
from polyattn.layers.layer import Layer, LayerResult, Params, linear
from polyattn.layers.stacks import Decoder, Encoder

__all__ = ["LanguageModel"]


@dataclass(frozen=True)
class LanguageModel(AttentionLayer):
    """logits = head(trunk(embedding(tokens))): integers (..., L) -> (..., L, vocabulary), for the token after each.

    head: a `Linear` from the last vector to the logits, or None: the table of the embedding serves again, x E^T
    (Press and Wolf 2017, arXiv:1608.05859). positions: a table of vectors for the places 0, 1, ..., which are added to
    those of the tokens there (GPT-2, Whisper). embedding_scale multiplies the vectors that enter the first block
    (Gemma: sqrt(embed_dim)). logits_cap c bends logits to c tanh(logits / c) (Gemma 2). The blocks of `trunk` should be
    causal; those of a `Decoder` look at a context besides. Params: "embedding", "positions", "trunk", "head".

        model(params, tokens, ...) -> logits;   model.run(params, tokens, cache=, ...) -> LayerResult
        model(params, tokens, context, ...)     with a Decoder

    Options are those of the trunk. `polyattn.generation.generate` goes on with a text.

    >>> import numpy as np
    >>> from polyattn.layers import MLP, CausalSelfAttention, EncoderBlock, RMSNorm
    >>> norm, attention = RMSNorm(8, epsilon=1e-5), CausalSelfAttention(8, 2, context_length=None)
    >>> block = EncoderBlock(attention, MLP(8, 16, activation="swiglu"), norm, norm_first=True)
    >>> model = LanguageModel(Embedding(50, 8), Encoder(block, 2, final_norm=norm))
    >>> model(model.init(0, like=np.zeros(())), np.asarray([3, 1, 4])).shape
    (3, 50)
    """

    embedding: Embedding
    trunk: Encoder | Decoder
    _: KW_ONLY
    positions: Embedding | None = None
    head: Linear | None = None
    embedding_scale: float | None = None
    logits_cap: float | None = None

    def parameters(self) -> Mapping[str, Layer]:
        parts = {
            "embedding": self.embedding,
            "positions": self.positions,
            "trunk": self.trunk,
            "head": self.head,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def empty_cache(
        self, batch: int, capacity: int, *, like: Array, circular: bool = False
    ) -> tuple[Any, ...]:
        """A cache for each block, without tokens; circular: as the trunk has it."""
        return self.trunk.empty_cache(batch, capacity, like=like, circular=circular)

    def run(
        self,
        params: Params,
        tokens: Array,
        *context: Any,
        cache: Sequence[Any] | None = None,
        **options: Any,
    ) -> LayerResult:
        """Logits, the longer caches, and what each attention saw."""
        found = self.trunk_of(params, tokens, *context, cache=cache, **options)
        return found._replace(out=self.logits(params, found.out))

    def trunk_of(
        self,
        params: Params,
        tokens: Array,
        *context: Any,
        cache: Sequence[Any] | None = None,
        **options: Any,
    ) -> LayerResult:
        """The same before the head: vectors (..., L, embed_dim)."""
        self.check_params(params, tokens)
        if self.positions is not None and options.get("cu_seqlens") is not None:
            raise ValueError(
                f"{self.name}: expected one text with a table of positions, got cu_seqlens; pad the documents instead"
            )
        if cache is not None:
            self.trunk.check_cache(cache)
        x = self.vectors(params, tokens, 0 if cache is None else cache[0].length)
        return self.trunk.run(params["trunk"], x, *context, cache=cache, **options)

    def vectors(self, params: Params, tokens: Array, start: int | Array = 0) -> Array:
        """What enters the first block, (..., L, embed_dim), where the tokens stand at start, start + 1, ..."""
        x = self.embedding(params["embedding"], tokens)
        if self.embedding_scale is not None:
            x = x * backend_of(x).asarray(self.embedding_scale, x.dtype, x)
        if self.positions is None:
            return x
        return x + self.positions(params["positions"], positions_of(x, start))

    def logits(self, params: Params, x: Array) -> Array:
        """What the last vectors (..., embed_dim) say of the next tokens, (..., vocabulary)."""
        if self.head is not None:
            logits = self.head(params["head"], x)
        else:
            logits = linear(x, backend_of(x).xp.matrix_transpose(params["embedding"]["table"]))
        if self.logits_cap is None:
            return logits
        xp = backend_of(x).xp
        return self.logits_cap * xp.tanh(logits / self.logits_cap)
