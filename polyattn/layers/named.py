"""The names under which the field knows attention: each a `MultiHeadAttention` with other defaults."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from polyattn._attention import AuxRequest, Wish
from polyattn.arrays import Array
from polyattn.layers.attending import AttentionLayer
from polyattn.layers.layer import LayerResult, Params
from polyattn.layers.multihead import MultiHeadAttention
from polyattn.problem.options import spelled_out

__all__ = [
    "CausalSelfAttention",
    "CrossAttention",
    "GroupedQueryAttention",
    "MultiHeadCrossAttention",
    "MultiQueryAttention",
    "ScaledDotProductAttention",
    "SelfAttention",
]


@dataclass(frozen=True)
class ScaledDotProductAttention(AttentionLayer):
    """`polyattn.attention` as a layer without parameters: layer({}, query, key, value, mask=...).

    query (..., H, L, D), key (..., Hkv, S, D), value (..., Hkv, S, E); rank 2 is one head. The weights are
    returned by layer.run(..., return_aux=AuxRequest(weights=True)).

    >>> import numpy as np
    >>> x = np.eye(2)
    >>> ScaledDotProductAttention(scale=0.0)({}, x, x, x)
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """

    _: KW_ONLY
    scale: float | None = None
    dropout_rate: float = 0.0
    implementation: Wish = "auto"

    def __post_init__(self) -> None:
        self.check_rate(self.dropout_rate)

    @partial(spelled_out, without=("scale", "dropout_rate", "dropout_seed"))
    def run(
        self,
        params: Params,
        query: Array,
        key: Array,
        value: Array,
        *,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
        **options: Any,
    ) -> LayerResult:
        self.check_params(params, query)
        out, aux = self.attend(
            query,
            key,
            value,
            scale=self.scale,
            implementation=self.implementation,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            **options,
        )
        return LayerResult(out, aux=aux)


@dataclass(frozen=True)
class SelfAttention(MultiHeadAttention):
    """One head of self-attention with trainable projections and no output projection.

        softmax((x W_q) (x W_k)^T / sqrt(D)) x W_v,   x (..., L, embed_dim) -> (..., L, head_dim)

    qkv_bias=False is the form with plain matrices, qkv_bias=True the one with linear layers. Params as
    `MultiHeadAttention` with H = 1.

    >>> import numpy as np
    >>> layer = SelfAttention(3, head_dim=2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((6, 3))).shape
    (6, 2)
    """

    num_heads: int = 1
    _: KW_ONLY
    qkv_bias: bool = False
    output_projection: bool = False


@dataclass(frozen=True)
class CausalSelfAttention(MultiHeadAttention):
    """Self-attention in which no position sees a later one, over at most context_length tokens (GPT-2).

    >>> import numpy as np
    >>> layer = CausalSelfAttention(8, 2, context_length=16, dropout_rate=0.1)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((5, 8))).shape
    (5, 8)
    """

    _: KW_ONLY
    context_length: int | None = field()  # required, None = any: a bare annotation inherits the default
    is_causal: bool = True

    def run(self, params: Params, x: Array, context: Array | None = None, **options: Any) -> LayerResult:
        if context is not None or options.get("is_causal") is False:
            raise ValueError(
                f"{self.name}: expected self-attention that is causal, got "
                f"{'a context' if context is not None else 'is_causal=False'}; take MultiHeadAttention"
            )
        return super().run(params, x, **options)


@dataclass(frozen=True)
class MultiHeadCrossAttention(MultiHeadAttention):
    """Queries from x, keys and values from a context of another length and width, which must be given.

    >>> import numpy as np
    >>> layer = MultiHeadCrossAttention(8, 2, context_dim=6)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 6))).shape
    (5, 8)
    """

    def run(self, params: Params, x: Array, context: Array | None = None, **options: Any) -> LayerResult:
        if context is None:
            raise ValueError(
                f"{self.name}: expected a context, got None; for self-attention take MultiHeadAttention"
            )
        return super().run(params, x, context, **options)


@dataclass(frozen=True)
class CrossAttention(MultiHeadCrossAttention):
    """One head of cross-attention without output projection: (..., L, embed_dim) -> (..., L, head_dim).

    >>> import numpy as np
    >>> layer = CrossAttention(3, head_dim=2, context_dim=4)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((6, 3)), np.ones((8, 4))).shape
    (6, 2)
    """

    num_heads: int = 1
    _: KW_ONLY
    qkv_bias: bool = False
    output_projection: bool = False


@dataclass(frozen=True)
class GroupedQueryAttention(MultiHeadAttention):
    """GQA: several query heads share a key and value head (Ainslie 2023, arXiv:2305.13245): head h reads h // G.

    >>> import numpy as np
    >>> layer = GroupedQueryAttention(8, 4, num_kv_heads=2)
    >>> layer.shapes()["w_k"]
    (8, 2, 2)
    """

    _: KW_ONLY
    num_kv_heads: int = field()  # required


@dataclass(frozen=True)
class MultiQueryAttention(MultiHeadAttention):
    """MQA: all query heads share one key and value head (Shazeer 2019, arXiv:1911.02150).

    >>> import numpy as np
    >>> MultiQueryAttention(8, 4).shapes()["w_k"]
    (8, 1, 2)
    """

    _: KW_ONLY
    num_kv_heads: int = 1

    def __post_init__(self) -> None:
        self.check_sizes(num_kv_heads=self.num_kv_heads)
        if self.num_kv_heads != 1:
            raise ValueError(
                f"{self.name}: expected num_kv_heads=1, got {self.num_kv_heads}; for more take GroupedQueryAttention"
            )
        super().__post_init__()
