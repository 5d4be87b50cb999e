"""The attention of sequence-to-sequence models before the transformer: Bahdanau's and Luong's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn._attention import AuxRequest
from polyattn.additive import additive_scores
from polyattn.arrays import Array
from polyattn.layers.attending import OneAttention
from polyattn.layers.initializers import Distribution, initializer
from polyattn.layers.layer import LayerResult, Parameter, Params, linear

__all__ = ["AdditiveAttention", "LuongAttention"]


class _Alignment(OneAttention):
    """One head whose values are the context itself, (..., L, embed_dim), (..., S, context_dim) -> (..., L, context_dim)."""

    initializer: str | Distribution

    def _sizes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the parameters."""
        raise NotImplementedError

    def _operands(self, params: Params, x: Array, context: Array) -> tuple[Array, Array, Array | None]:
        """Query, key and bias of one attention whose scores, unscaled, are those of the layer."""
        raise NotImplementedError

    def parameters(self) -> Mapping[str, Parameter]:
        return {
            name: Parameter(shape, initializer(self.name, self.initializer, shape[0], (*shape, 1)[1]))
            for name, shape in self._sizes().items()
        }

    def run(
        self,
        params: Params,
        x: Array,
        context: Array | None = None,
        *,
        mask: Any = None,
        is_causal: bool = False,
        query_offset: Any = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        source = self.source(params, x, context)
        # A head axis of size 1, so that masks mean the same as for other layers.
        x, source = x[..., None, :, :], source[..., None, :, :]
        query, key, bias = self._operands(params, x, source)
        heads, aux = self.attend(
            query,
            key,
            source,
            mask=mask,
            bias=bias,
            is_causal=is_causal,
            query_offset=query_offset,
            scale=1.0,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
        )
        return LayerResult(heads[..., 0, :, :], aux=aux)


def _added(query: Array, key: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Scores that are no products come as the bias of products over no entries at all."""
    return query[..., :0], key[..., :0], additive_scores(query, key, weight)


@dataclass(frozen=True)
class AdditiveAttention(_Alignment):
    """sum_j softmax_j(v . tanh(x_i W_q + c_j W_k)) c_j: the values are the context itself (Bahdanau).

    Params: w_q (embed_dim, hidden_dim), w_k (context_dim, hidden_dim), v (hidden_dim,). The call is that of
    `MultiHeadAttention` without bias and cache. `keras.layers.AdditiveAttention` has neither W_q nor W_k.

    Source: Bahdanau 2014, arXiv:1409.0473, section A.1.2.

    >>> import numpy as np
    >>> layer = AdditiveAttention(8, 16, context_dim=6)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((5, 8)), np.ones((7, 6))).shape
    (5, 6)
    """

    embed_dim: int
    hidden_dim: int
    _: KW_ONLY
    context_dim: int | None = None
    dropout_rate: float = 0.0
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(embed_dim=self.embed_dim, hidden_dim=self.hidden_dim, context_dim=self.context_dim)
        self.check_rate(self.dropout_rate)
        _ = self.parameters()  # refuses an unknown initializer

    def _sizes(self) -> Mapping[str, tuple[int, ...]]:
        return {
            "w_q": (self.embed_dim, self.hidden_dim),
            "w_k": (self.source_dim, self.hidden_dim),
            "v": (self.hidden_dim,),
        }

    def _operands(self, params: Params, x: Array, context: Array) -> tuple[Array, Array, Array | None]:
        return _added(linear(x, params["w_q"]), linear(context, params["w_k"]), params["v"])


@dataclass(frozen=True)
class LuongAttention(_Alignment):
    """sum_j softmax_j(score(x_i, c_j)) c_j with one of Luong's three scores, none of them scaled.

        "dot":      x . c
        "general":  x W c             w (embed_dim, context_dim)
        "concat":   v . tanh([x; c] W)   w (embed_dim + context_dim, hidden_dim), v (hidden_dim,)

    The call is that of `MultiHeadAttention` without bias and cache.

    Source: Luong 2015, arXiv:1508.04025, section 3.1 (W of "concat" transposed).

    >>> import numpy as np
    >>> LuongAttention(2, score="dot")({}, np.zeros((1, 2)), np.eye(2))
    array([[0.5, 0.5]])
    """

    embed_dim: int
    _: KW_ONLY
    score: str
    context_dim: int | None = None
    hidden_dim: int | None = None
    dropout_rate: float = 0.0
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(embed_dim=self.embed_dim, context_dim=self.context_dim, hidden_dim=self.hidden_dim)
        self.check_rate(self.dropout_rate)
        if self.score not in ("dot", "general", "concat"):
            raise ValueError(
                f"{self.name}: expected score 'dot', 'general' or 'concat', got {self.score!r}; take one of these"
            )
        if self.score == "dot" and self.source_dim != self.embed_dim:
            raise ValueError(
                f"{self.name}: expected equal widths for score='dot', got embed_dim={self.embed_dim} and "
                f"context_dim={self.context_dim}; take score='general'"
            )
        if (self.score == "concat") != (self.hidden_dim is not None):
            raise ValueError(
                f"{self.name}: expected hidden_dim with score='concat' and only there, got score={self.score!r} and "
                f"hidden_dim={self.hidden_dim!r}; it is the width of the layer inside 'concat'"
            )

        _ = self.parameters()  # refuses an unknown initializer

    def _sizes(self) -> Mapping[str, tuple[int, ...]]:
        if self.hidden_dim is not None:
            return {"w": (self.embed_dim + self.source_dim, self.hidden_dim), "v": (self.hidden_dim,)}
        return {"w": (self.embed_dim, self.source_dim)} if self.score == "general" else {}

    def _operands(self, params: Params, x: Array, context: Array) -> tuple[Array, Array, Array | None]:
        if self.score == "concat":
            w = params["w"]
            of_x, of_context = linear(x, w[: self.embed_dim, :]), linear(context, w[self.embed_dim :, :])
            return _added(of_x, of_context, params["v"])
        return linear(x, params["w"]) if self.score == "general" else x, context, None
