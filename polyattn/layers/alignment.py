"""The attention of sequence-to-sequence models before the transformer: Bahdanau's and Luong's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn import attention as scaled_dot_product
from polyattn._attention import AuxRequest
from polyattn.additive import additive_attention
from polyattn.arrays import Array
from polyattn.layers.initializers import Distribution, initializer
from polyattn.layers.layer import Layer, Parameter, Params, linear, positive, share


class _Alignment(Layer):
    """One head whose values are the context itself, (..., L, embed_dim), (..., S, context_dim) -> (..., L, context_dim)."""

    embed_dim: int
    context_dim: int | None
    dropout_rate: float

    @property
    def source_dim(self) -> int:
        """The width of the context."""
        return self.embed_dim if self.context_dim is None else self.context_dim

    def _scored(self, params: Params, x: Array, context: Array, options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def __call__(
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
    ) -> Any:
        self.check(params, self.embed_dim, x=x, context=context)
        context = x if context is None else context
        if context.shape[-1] != self.source_dim:
            raise ValueError(
                f"{self.name}: expected context of shape (..., length, {self.source_dim}), got {tuple(context.shape)}; "
                "context_dim declares its width"
            )
        options = {
            "mask": mask,
            "is_causal": is_causal,
            "query_offset": query_offset,
            "dropout_rate": 0.0 if dropout_seed is None else self.dropout_rate,
            "dropout_seed": dropout_seed,
            "return_aux": return_aux,
        }
        # A head axis of size 1, so that masks mean the same as for other layers.
        try:
            found = self._scored(params, x[..., None, :, :], context[..., None, :, :], options)
        except (ValueError, TypeError) as error:
            if not str(error).startswith("polyattn.attention"):
                raise
            shapes = f"x {tuple(x.shape)} and context {tuple(context.shape)}"
            raise type(error)(f"{self.name} with {shapes}: {error}") from error
        if return_aux is None:
            return found[..., 0, :, :]
        return found[0][..., 0, :, :], found[1]


@dataclass(frozen=True)
class AdditiveAttention(_Alignment):
    """sum_j softmax_j(v . tanh(x_i W_q + c_j W_k)) c_j: the values are the context itself (Bahdanau).

    Params: w_q (embed_dim, hidden_dim), w_k (context_dim, hidden_dim), v (hidden_dim,). The call is that of
    `MultiHeadAttention` but for the cache. `keras.layers.AdditiveAttention` has neither W_q nor W_k.

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
        positive(
            "AdditiveAttention",
            embed_dim=self.embed_dim,
            hidden_dim=self.hidden_dim,
            context_dim=self.context_dim,
        )
        share("AdditiveAttention", self.dropout_rate)

    def parameters(self) -> Mapping[str, Parameter]:
        def kernel(*shape: int) -> Parameter:
            fan_out = shape[1] if len(shape) > 1 else 1
            return Parameter(shape, initializer(self.initializer, shape[0], fan_out, "AdditiveAttention"))

        return {
            "w_q": kernel(self.embed_dim, self.hidden_dim),
            "w_k": kernel(self.source_dim, self.hidden_dim),
            "v": kernel(self.hidden_dim),
        }

    def _scored(self, params: Params, x: Array, context: Array, options: dict[str, Any]) -> Any:
        q, k = linear(x, params["w_q"]), linear(context, params["w_k"])
        return additive_attention(q, k, context, params["v"], **options)


@dataclass(frozen=True)
class LuongAttention(_Alignment):
    """sum_j softmax_j(score(x_i, c_j)) c_j with one of Luong's three scores, none of them scaled.

        "dot":      x . c
        "general":  x W c             w (embed_dim, context_dim)
        "concat":   v . tanh([x; c] W)   w (embed_dim + context_dim, hidden_dim), v (hidden_dim,)

    The call is that of `MultiHeadAttention` but for the cache.

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
        positive(
            "LuongAttention",
            embed_dim=self.embed_dim,
            context_dim=self.context_dim,
            hidden_dim=self.hidden_dim,
        )
        share("LuongAttention", self.dropout_rate)
        if self.score not in ("dot", "general", "concat"):
            raise ValueError(f"{self.name}: expected score 'dot', 'general' or 'concat', got {self.score!r}")
        if self.score == "dot" and self.source_dim != self.embed_dim:
            raise ValueError(
                f"{self.name}: expected equal widths for score='dot', got embed_dim={self.embed_dim} and "
                f"context_dim={self.context_dim}; take score='general'"
            )
        if (self.score == "concat") != (self.hidden_dim is not None):
            raise ValueError(
                f"{self.name}: expected hidden_dim with score='concat' and only there, got score={self.score!r} and "
                f"hidden_dim={self.hidden_dim!r}"
            )

    def parameters(self) -> Mapping[str, Parameter]:
        def kernel(*shape: int) -> Parameter:
            fan_out = shape[1] if len(shape) > 1 else 1
            return Parameter(shape, initializer(self.initializer, shape[0], fan_out, "LuongAttention"))

        if self.score == "general":
            return {"w": kernel(self.embed_dim, self.source_dim)}
        if self.score == "concat":
            assert self.hidden_dim is not None
            return {
                "w": kernel(self.embed_dim + self.source_dim, self.hidden_dim),
                "v": kernel(self.hidden_dim),
            }
        return {}

    def _scored(self, params: Params, x: Array, context: Array, options: dict[str, Any]) -> Any:
        if self.score == "concat":
            w = params["w"]
            q, k = linear(x, w[: self.embed_dim, :]), linear(context, w[self.embed_dim :, :])
            return additive_attention(q, k, context, params["v"], **options)
        query = linear(x, params["w"]) if self.score == "general" else x
        return scaled_dot_product(query, context, context, scale=1.0, **options)
