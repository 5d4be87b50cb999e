"""The model: an encoder that reads characters, a decoder that writes them, and between the two an attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from dates import ALPHABET, SOURCE_LENGTH, TARGET_LENGTH

from polyattn import AuxRequest, masks
from polyattn.arrays import Array, backend_of
from polyattn.caches import KVCache
from polyattn.layers import (
    AdditiveAttention,
    Decoder,
    DecoderBlock,
    Embedding,
    Encoder,
    EncoderBlock,
    Layer,
    LayerNorm,
    LayerResult,
    Linear,
    MultiHeadCrossAttention,
    Normal,
    Params,
)
from polyattn.masks import Mask
from polyattn.rotary import sinusoidal

WIDTH, HEADS = 64, 4

Cross = MultiHeadCrossAttention | AdditiveAttention
Caches = Sequence[KVCache]  # one for each decoder block

#: How the decoder looks at the source: Vaswani 2017 (arXiv:1706.03762) or Bahdanau 2014 (arXiv:1409.0473).
CROSS_ATTENTION: Mapping[str, Cross] = {
    "multi-head": MultiHeadCrossAttention(WIDTH, HEADS),
    "additive": AdditiveAttention(WIDTH, hidden_dim=WIDTH),
}


@dataclass(frozen=True)
class Translator(Layer):
    """logits = model(params, src_tokens, tgt_tokens, src_mask, tgt_mask).

    src_tokens (B, S) and tgt_tokens (B, L) are numbers of characters, the target shifted by one: it begins
    with 0. logits (B, L, characters) are about the character that comes next. Masks as `polyattn.attention`
    takes them, True = may attend: `masks.key_lengths(n)` for the source, `masks.causal()` for the target.
    """

    embedding: Embedding
    encoder: Encoder
    decoder: Decoder
    readout: Linear

    @classmethod
    def of(cls, cross_attention: Cross) -> Self:
        """The model of this example, with one decoder block around the given attention to the source."""
        sizes = (WIDTH, HEADS, 2 * WIDTH)
        block = replace(DecoderBlock.preset("flax", *sizes), cross_attention=cross_attention)
        norm = LayerNorm(WIDTH, epsilon=1e-6)
        return cls(
            Embedding(len(ALPHABET), WIDTH, initializer=Normal(1.0)),
            Encoder(EncoderBlock.preset("flax", *sizes), 2, final_norm=norm),
            Decoder(block, 1, final_norm=norm),
            Linear(WIDTH, len(ALPHABET)),
        )

    def parameters(self) -> Mapping[str, Layer]:
        return {
            "embedding": self.embedding,
            "encoder": self.encoder,
            "decoder": self.decoder,
            "readout": self.readout,
        }

    def __call__(
        self, params: Params, src_tokens: Array, tgt_tokens: Array, src_mask: Mask, tgt_mask: Mask
    ) -> Array:
        context = self.encode(params, src_tokens, src_mask)
        return self.decode(params, context, tgt_tokens, src_mask, tgt_mask).out

    def encode(self, params: Params, src_tokens: Array, src_mask: Mask) -> Array:
        """What the decoder looks at: (B, S, width)."""
        x = self._embed(params, src_tokens)
        return self.encoder(params["encoder"], x, mask=src_mask)

    def decode(
        self,
        params: Params,
        context: Array,
        tgt_tokens: Array,
        src_mask: Mask,
        tgt_mask: Mask,
        *,
        cache: Caches | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        """logits, the longer cache if tgt_tokens continue one, a `DecoderAux` of each block if asked for."""
        before = 0 if cache is None else cache[0].length
        x = self._embed(params, tgt_tokens, before)
        found = self.decoder.run(
            params["decoder"],
            x,
            context,
            mask=tgt_mask,
            context_mask=src_mask,
            is_causal=False,  # tgt_mask says so
            cache=cache,
            return_aux=return_aux,
        )
        return found._replace(out=self.readout(params["readout"], found.out))

    def greedy(
        self, params: Params, src_tokens: Array, compiled: Callable[..., Any] = lambda step: step
    ) -> Array:
        """The likeliest character, ten times in a row: (B, 10). compiled: `jax.jit` for instance."""
        read, write = compiled(self.read), compiled(self.write)
        xp = backend_of(src_tokens).xp
        context, cache = read(params, src_tokens)
        tokens = [xp.zeros_like(src_tokens[:, :1])]
        for _ in range(TARGET_LENGTH):
            token, cache = write(params, src_tokens, context, tokens[-1], cache)
            tokens.append(token)
        return xp.concat(tokens[1:], axis=1)

    def read(self, params: Params, src_tokens: Array) -> tuple[Array, Caches]:
        """The encoded source, and caches in which nothing is written yet."""
        context = self.encode(params, src_tokens, source_mask(src_tokens))
        return context, self.decoder.empty_cache(len(src_tokens), TARGET_LENGTH, like=context)

    def write(
        self, params: Params, src_tokens: Array, context: Array, token: Array, cache: Caches
    ) -> tuple[Array, Caches]:
        """The likeliest character after `token` (B, 1); the cache remembers those before it, and how many."""
        src_mask = source_mask(src_tokens)
        logits, cache, _ = self.decode(params, context, token, src_mask, masks.causal(), cache=cache)
        backend = backend_of(logits)
        return backend.astype(backend.xp.argmax(logits, axis=-1), token.dtype), cache

    def alignment(self, params: Params, src_tokens: Array, tgt_tokens: Array) -> Array:
        """Where the decoder looks before each character it writes, all heads: (B, H, L, S)."""
        src_mask = source_mask(src_tokens)
        context = self.encode(params, src_tokens, src_mask)
        (aux,) = self.decode(
            params, context, tgt_tokens, src_mask, masks.causal(), return_aux=AuxRequest(weights=True)
        ).aux
        return aux.cross_attention.weights

    def _embed(self, params: Params, tokens: Array, start: int | Array = 0) -> Array:
        """Vectors of the characters and of their positions, which are counted from `start`."""
        x = self.embedding(params["embedding"], tokens)
        backend = backend_of(x)
        position = backend.arange(0, tokens.shape[-1], tokens) + start
        return x + backend.xp.take(sinusoidal(SOURCE_LENGTH, WIDTH, like=x), position, axis=0)


def source_mask(src_tokens: Array) -> Mask:
    """Nobody looks at what fills a text."""
    xp = backend_of(src_tokens).xp
    return masks.key_lengths(xp.sum(src_tokens != 0, axis=-1))


def shifted(tgt_tokens: Array) -> Array:
    """What the decoder has read when it writes tgt_tokens: 0, and all but the last."""
    xp = backend_of(tgt_tokens).xp
    return xp.concat((xp.zeros_like(tgt_tokens[:, :1]), tgt_tokens[:, :-1]), axis=1)
