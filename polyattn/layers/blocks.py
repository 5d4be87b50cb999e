"""Transformer blocks, composed of the other layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, Self

from polyattn._attention import AttentionAux, AuxRequest
from polyattn.arrays import Array
from polyattn.calls import seed_like
from polyattn.dropout import drop, fold_in
from polyattn.layers.attending import AttentionLayer, Memory
from polyattn.layers.dense import MLP
from polyattn.layers.experts import MixtureOfExperts
from polyattn.layers.layer import Layer, LayerResult, Params
from polyattn.layers.multihead import MultiHeadAttention
from polyattn.layers.norm import LayerNorm, Norm
from polyattn.layers.presets import settings

__all__ = ["DecoderAux", "DecoderBlock", "EncoderBlock", "EncoderDecoderAttention"]


class DecoderAux(NamedTuple):
    """What a decoder block saw: of its own tokens and of the context."""

    self_attention: AttentionAux
    cross_attention: AttentionAux


class _Residual(AttentionLayer):
    """x + f(x) around each part, normalised before or after; parts draw their dropout from seeds of their own."""

    norm: Norm | None
    norm_first: bool
    branch_norm: Norm | None
    dropout_rate: float

    def __post_init__(self) -> None:
        self.check_rate(self.dropout_rate)
        if self.norm is None and not self.norm_first:
            raise ValueError(
                f"{self.name}: expected a norm with norm_first=False, which normalises the sum, got None; with a "
                "branch_norm alone write norm_first=True"
            )

    def _around(
        self, name: str, number: int, params: Params, x: Array, seed: Any, **options: Any
    ) -> LayerResult:
        """The part of that name and the norm of that number around x, which is `out` then."""
        part: Any = self.parameters()[name]
        if seed is not None:
            seed = seed_like(self.name, "dropout_seed", seed)
        inner, outer = (None if seed is None else fold_in(seed, 2 * number + i) for i in range(2))
        norms = self._norms(number)

        def normed(which: str, x: Array) -> Array:
            name = f"{which}_{number}"
            return norms[name](params[name], x) if name in norms else x

        given = normed("norm", x) if self.norm_first else x
        found: LayerResult = part.run(params[name], given, dropout_seed=inner, **options)
        x = x + drop(normed("branch_norm", found.out), self.dropout_rate, outer)
        return found._replace(out=x if self.norm_first else normed("norm", x))

    def _norms(self, number: int) -> dict[str, Norm]:
        """The norms around the part of that number, by the names of their params."""
        norms = {"norm": self.norm, "branch_norm": self.branch_norm}
        return {f"{name}_{number}": norm for name, norm in norms.items() if norm is not None}


@dataclass(frozen=True)
class EncoderBlock(_Residual):
    """Self-attention, then an MLP, each with a residual connection and a norm; (..., L, E) -> (..., L, E).

        norm_first:   x = x + attention(norm_1(x));  x = x + mlp(norm_2(x))
        otherwise:    x = norm_1(x + attention(x));  x = norm_2(x + mlp(x))

    With causal attention this is the block of GPT and Llama. branch_norm is one more norm, of what attention and
    mlp give, before it is added: beside `norm` in Gemma 2, in its place (norm=None) in OLMo 2. attention: any layer
    with embed_dim, run and empty_cache. Params: "attention", "mlp", "norm_1", "norm_2", "branch_norm_1",
    "branch_norm_2". The call is that of its attention, but for the context: mask, bias, is_causal, query_offset, and
    with `run` cache and return_aux. dropout_rate drops entries of both residual branches where the call has a
    dropout_seed. Nothing here has a silent default: see `EncoderBlock.preset`.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.1; norm first: Xiong 2020, arXiv:2002.04745.

    >>> import numpy as np
    >>> block = EncoderBlock.preset("torch", 8, 2, 32)
    >>> block(block.init(0, like=np.zeros(())), np.ones((5, 8))).shape
    (5, 8)
    """

    attention: AttentionLayer
    mlp: MLP | MixtureOfExperts
    norm: Norm | None
    _: KW_ONLY
    norm_first: bool
    branch_norm: Norm | None = None
    dropout_rate: float = 0.0

    @classmethod
    def preset(cls, name: str, embed_dim: int, num_heads: int, mlp_dim: int, **changes: Any) -> Self:
        """The block that "torch", "flax" or "keras" means; changes replace entries of `PRESETS[name]`."""
        use = settings(f"polyattn.layers.{cls.__name__}.preset", name, changes)
        rate, drawn = use["dropout_rate"], use["attention_initializer"]
        attention = MultiHeadAttention(embed_dim, num_heads, dropout_rate=rate, initializer=drawn)
        own = {"activation": use["activation"], "initializer": use["mlp_initializer"]}
        mlp = MLP(embed_dim, mlp_dim, dropout_rate=rate, **own)
        norm = LayerNorm(embed_dim, epsilon=use["epsilon"])
        return cls(attention, mlp, norm, norm_first=use["norm_first"], dropout_rate=rate)

    def parameters(self) -> Mapping[str, Layer]:
        return {"attention": self.attention, **self._norms(1), "mlp": self.mlp, **self._norms(2)}

    @property
    def window(self) -> int | None:
        """That of its attention."""
        return self.attention.window

    def empty_cache(self, batch: int, capacity: int, *, like: Array, **kind: Any) -> Any:
        """A cache for the attention of this block, without tokens; kind: as that has it."""
        return self.attention.empty_cache(batch, capacity, like=like, **kind)

    def run(self, params: Params, x: Array, *, dropout_seed: Any = None, **options: Any) -> LayerResult:
        if "context" in options:
            raise TypeError(f"{self.name}: expected x alone, got a context; take EncoderDecoderAttention")
        self.check(params, self.attention.embed_dim, x=x)
        found = self._around("attention", 1, params, x, dropout_seed, **options)
        return found._replace(out=self._around("mlp", 2, params, found.out, dropout_seed).out)


@dataclass(frozen=True)
class EncoderDecoderAttention(_Residual):
    """Self-attention over the target, then attention to the source, each with a residual connection and a norm.

        layer(params, x, context, *, mask=None, bias=None, context_mask=None, context_bias=None, is_causal=True, ...)

    x (..., L, E) is the target so far, context (..., S, C) the encoded source, or what `remember` makes of it. mask and bias are about target
    positions, context_mask and context_bias about source positions: (..., H, L, S), or a mask such as
    `masks.key_lengths(n)`. cache holds the earlier tokens of the target. Params:
    "self_attention", "norm_1", "cross_attention", "norm_2". aux is a `DecoderAux`. cross_attention may be any
    attention layer whose output is as wide as x, additive ones too.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.1.

    >>> import numpy as np
    >>> attend = MultiHeadAttention(8, 2)
    >>> layer = EncoderDecoderAttention(attend, attend, LayerNorm(8, epsilon=1e-5), norm_first=False)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 8))).shape
    (5, 8)
    """

    self_attention: AttentionLayer
    cross_attention: AttentionLayer
    norm: Norm | None
    _: KW_ONLY
    norm_first: bool
    branch_norm: Norm | None = None
    dropout_rate: float = 0.0

    def parameters(self) -> Mapping[str, Layer]:
        return {
            "self_attention": self.self_attention,
            **self._norms(1),
            "cross_attention": self.cross_attention,
            **self._norms(2),
        }

    @property
    def window(self) -> int | None:
        """That of its self-attention."""
        return self.self_attention.window

    def empty_cache(self, batch: int, capacity: int, *, like: Array, **kind: Any) -> Any:
        """A cache for the self-attention, without tokens; kind: as that has it."""
        return self.self_attention.empty_cache(batch, capacity, like=like, **kind)

    def remember(self, params: Params, context: Array) -> Any:
        """The keys and values of the source, which calls take in its place."""
        self.check_params(params, context)
        return self.cross_attention.remember(params["cross_attention"], context)

    def run(
        self,
        params: Params,
        x: Array,
        context: Array | Memory,
        *,
        context_mask: Any = None,
        context_bias: Array | None = None,
        is_causal: bool = True,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
        **options: Any,
    ) -> LayerResult:
        if context is None:
            raise ValueError(f"{self.name}: expected a context, got None; without one take EncoderBlock")
        source = {} if isinstance(context, Memory) else {"context": context}
        self.check(params, self.self_attention.embed_dim, x=x, **source)
        options |= {"is_causal": is_causal, "return_aux": return_aux}
        own = self._around("self_attention", 1, params, x, dropout_seed, **options)
        options = {"context": context, "mask": context_mask, "return_aux": return_aux}
        if context_bias is not None:  # additive attention has none
            options["bias"] = context_bias
        other = self._around("cross_attention", 2, params, own.out, dropout_seed, **options)
        aux = None if return_aux is None else DecoderAux(own.aux, other.aux)
        return LayerResult(other.out, own.cache, aux)


@dataclass(frozen=True)
class DecoderBlock(EncoderDecoderAttention):
    """`EncoderDecoderAttention`, then an MLP with a residual connection and a norm: params "mlp", "norm_3" too.

    >>> import numpy as np
    >>> block = DecoderBlock.preset("torch", 8, 2, 32)
    >>> block(block.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 8))).shape
    (5, 8)
    """

    _: KW_ONLY
    mlp: MLP | MixtureOfExperts

    @classmethod
    def preset(cls, name: str, embed_dim: int, num_heads: int, mlp_dim: int, **changes: Any) -> Self:
        """The block that "torch", "flax" or "keras" means; changes replace entries of `PRESETS[name]`."""
        use = settings(f"polyattn.layers.{cls.__name__}.preset", name, changes)
        encoder = EncoderBlock.preset(name, embed_dim, num_heads, mlp_dim, **use)
        attend, mlp, first = encoder.attention, encoder.mlp, encoder.norm_first
        rate = encoder.dropout_rate
        return cls(attend, attend, encoder.norm, mlp=mlp, norm_first=first, dropout_rate=rate)

    def parameters(self) -> Mapping[str, Layer]:
        return {**super().parameters(), "mlp": self.mlp, **self._norms(3)}

    def run(self, params: Params, x: Array, context: Array | Memory, **options: Any) -> LayerResult:
        found = super().run(params, x, context, **options)
        return found._replace(out=self._around("mlp", 3, params, found.out, options.get("dropout_seed")).out)
