"""Transformer blocks and stacks of them, composed of the other layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, Self

from polyattn._attention import AttentionAux, AuxRequest
from polyattn.arrays import Array
from polyattn.caches import KVCache
from polyattn.dropout import drop, fold_in
from polyattn.layers.alignment import AdditiveAttention, LuongAttention
from polyattn.layers.dense import MLP
from polyattn.layers.layer import Layer, Params, share
from polyattn.layers.multihead import MultiHeadAttention
from polyattn.layers.norm import LayerNorm, RMSNorm

Norm = LayerNorm | RMSNorm

#: What the frameworks mean by a transformer block when nobody says more.
#: torch: `torch.nn.TransformerEncoderLayer`. flax: the defaults of nnx.LayerNorm, nnx.gelu and
#: nnx.MultiHeadAttention, normalised first as in Flax's own examples. keras: the defaults of
#: keras.layers.LayerNormalization and keras.layers.MultiHeadAttention, with the ReLU and the order of Keras
#: Hub's TransformerEncoder.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "torch": {
        "epsilon": 1e-5,
        "activation": "relu",
        "norm_first": False,
        "dropout_rate": 0.1,
        "attention_initializer": "xavier_packed",
        "mlp_initializer": "torch_linear",
    },
    "flax": {
        "epsilon": 1e-6,
        "activation": "gelu_tanh",
        "norm_first": True,
        "dropout_rate": 0.0,
        "attention_initializer": "lecun_normal",
        "mlp_initializer": "lecun_normal",
    },
    "keras": {
        "epsilon": 1e-3,
        "activation": "relu",
        "norm_first": False,
        "dropout_rate": 0.0,
        "attention_initializer": "glorot_uniform",
        "mlp_initializer": "glorot_uniform",
    },
}


class DecoderAux(NamedTuple):
    """What a decoder block saw: of its own tokens and of the context."""

    self_attention: AttentionAux
    cross_attention: AttentionAux


def _settings(layer: str, preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    if preset not in PRESETS:
        raise ValueError(
            f"polyattn.layers.{layer}.preset: expected a preset among {', '.join(PRESETS)}, got {preset!r}"
        )
    if unknown := changes.keys() - PRESETS[preset].keys():
        raise ValueError(
            f"polyattn.layers.{layer}.preset: expected changes of {', '.join(PRESETS[preset])}, got "
            f"{', '.join(sorted(unknown))}; compose the block of its parts for anything else"
        )
    return {**PRESETS[preset], **changes}


class _Residual(Layer):
    """x + f(x) around each part, normalised before or after; parts draw their dropout from seeds of their own."""

    norm: Norm
    norm_first: bool
    dropout_rate: float

    def __post_init__(self) -> None:
        share(type(self).__name__, self.dropout_rate)

    def _around(
        self, params: Params, x: Array, number: int, seed: Any, part: Any
    ) -> tuple[Array, tuple[Any, ...]]:
        """Part `number` of the block around x: part(input, seed) -> out, or (out, ...rest)."""
        norm = params[f"norm_{number}"]
        inner_seed, outer_seed = (
            (None, None) if seed is None else (fold_in(seed, 2 * number), fold_in(seed, 2 * number + 1))
        )
        found = part(self.norm(norm, x) if self.norm_first else x, inner_seed)
        out, rest = (found[0], found[1:]) if isinstance(found, tuple) else (found, ())
        x = x + drop(out, self.dropout_rate, outer_seed)
        return (x if self.norm_first else self.norm(norm, x)), rest


@dataclass(frozen=True)
class EncoderBlock(_Residual):
    """Self-attention, then an MLP, each with a residual connection and a norm; (..., L, E) -> (..., L, E).

        norm_first:   x = x + attention(norm_1(x));  x = x + mlp(norm_2(x))
        otherwise:    x = norm_1(x + attention(x));  x = norm_2(x + mlp(x))

    With causal attention this is the block of GPT and Llama. Params: "attention", "mlp", "norm_1", "norm_2".
    The call is that of its attention. dropout_rate drops entries of both residual branches where the call has
    a dropout_seed. Nothing here has a silent default: see `EncoderBlock.preset`.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.1; norm first: Xiong 2020, arXiv:2002.04745.

    >>> import numpy as np
    >>> block = EncoderBlock.preset("torch", 8, 2, 32)
    >>> block(block.init(0, like=np.zeros(())), np.ones((5, 8))).shape
    (5, 8)
    """

    attention: MultiHeadAttention
    mlp: MLP
    norm: Norm
    _: KW_ONLY
    norm_first: bool
    dropout_rate: float = 0.0

    @classmethod
    def preset(cls, name: str, embed_dim: int, num_heads: int, mlp_dim: int, **changes: Any) -> Self:
        """The block that "torch", "flax" or "keras" means; changes replace entries of `PRESETS[name]`."""
        use = _settings("EncoderBlock", name, changes)
        rate = use["dropout_rate"]
        return cls(
            MultiHeadAttention(
                embed_dim, num_heads, dropout_rate=rate, initializer=use["attention_initializer"]
            ),
            MLP(
                embed_dim,
                mlp_dim,
                activation=use["activation"],
                dropout_rate=rate,
                initializer=use["mlp_initializer"],
            ),
            LayerNorm(embed_dim, epsilon=use["epsilon"]),
            norm_first=use["norm_first"],
            dropout_rate=rate,
        )

    def parameters(self) -> Mapping[str, Layer]:
        return {"attention": self.attention, "norm_1": self.norm, "mlp": self.mlp, "norm_2": self.norm}

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> KVCache:
        """A cache for the attention of this block, without tokens."""
        return self.attention.empty_cache(batch, capacity, like=like)

    def __call__(
        self,
        params: Params,
        x: Array,
        *,
        mask: Any = None,
        is_causal: bool | None = None,
        cache: KVCache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> Any:
        self.check(params, self.attention.embed_dim, x=x)

        def attend(x: Array, seed: Any) -> Any:
            return self.attention(
                params["attention"],
                x,
                mask=mask,
                is_causal=is_causal,
                cache=cache,
                dropout_seed=seed,
                return_aux=return_aux,
            )

        x, rest = self._around(params, x, 1, dropout_seed, attend)
        x, _ = self._around(
            params, x, 2, dropout_seed, lambda x, seed: self.mlp(params["mlp"], x, dropout_seed=seed)
        )
        return (x, *rest) if rest else x


@dataclass(frozen=True)
class EncoderDecoderAttention(_Residual):
    """Self-attention over the target, then attention to the source, each with a residual connection and a norm.

        layer(params, x, context, *, mask=None, context_mask=None, is_causal=True, cache=None, ...)

    x (..., L, E) is the target so far, context (..., S, C) the encoded source. mask hides target positions,
    context_mask source positions: (..., H, L, S) or a mask such as `masks.key_lengths(n)`. Params:
    "self_attention", "norm_1", "cross_attention", "norm_2". aux is a `DecoderAux`. cross_attention may be any
    attention layer whose output is as wide as x, additive ones too.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.1.

    >>> import numpy as np
    >>> attend = MultiHeadAttention(8, 2)
    >>> layer = EncoderDecoderAttention(attend, attend, LayerNorm(8, epsilon=1e-5), norm_first=False)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 8))).shape
    (5, 8)
    """

    self_attention: MultiHeadAttention
    cross_attention: MultiHeadAttention | AdditiveAttention | LuongAttention
    norm: Norm
    _: KW_ONLY
    norm_first: bool
    dropout_rate: float = 0.0

    def parameters(self) -> Mapping[str, Layer]:
        return {
            "self_attention": self.self_attention,
            "norm_1": self.norm,
            "cross_attention": self.cross_attention,
            "norm_2": self.norm,
        }

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> KVCache:
        """A cache for the self-attention, without tokens."""
        return self.self_attention.empty_cache(batch, capacity, like=like)

    def __call__(
        self,
        params: Params,
        x: Array,
        context: Array,
        *,
        mask: Any = None,
        context_mask: Any = None,
        is_causal: bool = True,
        cache: KVCache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> Any:
        if context is None:
            raise ValueError(f"{self.name}: expected a context, got None; without one take EncoderBlock")
        self.check(params, self.self_attention.embed_dim, x=x, context=context)

        def to_target(x: Array, seed: Any) -> Any:
            return self.self_attention(
                params["self_attention"],
                x,
                mask=mask,
                is_causal=is_causal,
                cache=cache,
                dropout_seed=seed,
                return_aux=return_aux,
            )

        def to_source(x: Array, seed: Any) -> Any:
            return self.cross_attention(
                params["cross_attention"],
                x,
                context,
                mask=context_mask,
                dropout_seed=seed,
                return_aux=return_aux,
            )

        x, own = self._around(params, x, 1, dropout_seed, to_target)
        x, other = self._around(params, x, 2, dropout_seed, to_source)
        x = self._then(params, x, dropout_seed)
        caches = own[:1] if cache is not None else ()
        aux = (DecoderAux(own[-1], other[-1]),) if return_aux is not None else ()
        return (x, *caches, *aux) if caches or aux else x

    def _then(self, params: Params, x: Array, dropout_seed: Any) -> Array:
        """What follows the two attentions."""
        return x


@dataclass(frozen=True)
class DecoderBlock(EncoderDecoderAttention):
    """`EncoderDecoderAttention`, then an MLP with a residual connection and a norm: params "mlp", "norm_3" too.

    >>> import numpy as np
    >>> block = DecoderBlock.preset("torch", 8, 2, 32)
    >>> block(block.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 8))).shape
    (5, 8)
    """

    _: KW_ONLY
    mlp: MLP

    @classmethod
    def preset(cls, name: str, embed_dim: int, num_heads: int, mlp_dim: int, **changes: Any) -> Self:
        """The block that "torch", "flax" or "keras" means; changes replace entries of `PRESETS[name]`."""
        encoder = EncoderBlock.preset(name, embed_dim, num_heads, mlp_dim, **changes)
        return cls(
            encoder.attention,
            encoder.attention,
            encoder.norm,
            mlp=encoder.mlp,
            norm_first=encoder.norm_first,
            dropout_rate=encoder.dropout_rate,
        )

    def parameters(self) -> Mapping[str, Layer]:
        return {**super().parameters(), "mlp": self.mlp, "norm_3": self.norm}

    def _then(self, params: Params, x: Array, dropout_seed: Any) -> Array:
        x, _ = self._around(
            params, x, 3, dropout_seed, lambda x, seed: self.mlp(params["mlp"], x, dropout_seed=seed)
        )
        return x


class _Stack(Layer):
    """The same block `depth` times, each with parameters of its own, and a norm at the end if asked for."""

    block: Any
    depth: int
    final_norm: Norm | None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"{self.name}: expected depth >= 1, got {self.depth}")

    def parameters(self) -> Mapping[str, Layer]:
        blocks = {f"block_{i}": self.block for i in range(self.depth)}
        return blocks if self.final_norm is None else blocks | {"norm": self.final_norm}

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> tuple[KVCache, ...]:
        """A cache for each block, without tokens."""
        return tuple(self.block.empty_cache(batch, capacity, like=like) for _ in range(self.depth))

    def _run(self, params: Params, x: Array, context: Sequence[Array], options: dict[str, Any]) -> Any:
        self.check_params(params, x)
        caches, seed = options.pop("cache"), options.pop("dropout_seed")
        if caches is not None and len(caches) != self.depth:
            raise ValueError(
                f"{self.name}: expected a cache for each of the {self.depth} blocks, got {len(caches)}; "
                "make them with empty_cache"
            )
        new, aux = [], []
        for i in range(self.depth):
            cache = None if caches is None else caches[i]
            own_seed = None if seed is None else fold_in(seed, i)
            found = self.block(
                params[f"block_{i}"], x, *context, cache=cache, dropout_seed=own_seed, **options
            )
            x, *rest = found if isinstance(found, tuple) else (found,)
            if caches is not None:
                new.append(rest[0])
            if options["return_aux"] is not None:
                aux.append(rest[-1])
        if self.final_norm is not None:
            x = self.final_norm(params["norm"], x)
        more = (*((tuple(new),) if new else ()), *((tuple(aux),) if aux else ()))
        return (x, *more) if more else x


@dataclass(frozen=True)
class Encoder(_Stack):
    """`depth` encoder blocks one after the other, then final_norm if there is one.

    Params: "block_0", ..., and "norm". The call is that of `EncoderBlock`; cache and aux are tuples with an
    entry for each block. With causal attention it is the trunk of GPT and Llama.

    >>> import numpy as np
    >>> encoder = Encoder(EncoderBlock.preset("torch", 8, 2, 32), 2)
    >>> encoder(encoder.init(0, like=np.zeros(())), np.ones((5, 8))).shape
    (5, 8)
    """

    block: EncoderBlock
    depth: int
    _: KW_ONLY
    final_norm: Norm | None = None

    def __call__(
        self,
        params: Params,
        x: Array,
        *,
        mask: Any = None,
        is_causal: bool | None = None,
        cache: Sequence[KVCache] | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> Any:
        options = {
            "mask": mask,
            "is_causal": is_causal,
            "cache": cache,
            "dropout_seed": dropout_seed,
            "return_aux": return_aux,
        }
        return self._run(params, x, (), options)


@dataclass(frozen=True)
class Decoder(_Stack):
    """`depth` decoder blocks one after the other, then final_norm if there is one.

    Params: "block_0", ..., and "norm". The call is that of `DecoderBlock`; cache and aux are tuples with an
    entry for each block.

    >>> import numpy as np
    >>> decoder = Decoder(DecoderBlock.preset("torch", 8, 2, 32), 2)
    >>> decoder(decoder.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 8))).shape
    (5, 8)
    """

    block: EncoderDecoderAttention
    depth: int
    _: KW_ONLY
    final_norm: Norm | None = None

    def __call__(
        self,
        params: Params,
        x: Array,
        context: Array,
        *,
        mask: Any = None,
        context_mask: Any = None,
        is_causal: bool = True,
        cache: Sequence[KVCache] | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> Any:
        options = {
            "mask": mask,
            "context_mask": context_mask,
            "is_causal": is_causal,
            "cache": cache,
            "dropout_seed": dropout_seed,
            "return_aux": return_aux,
        }
        return self._run(params, x, (context,), options)
