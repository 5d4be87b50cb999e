"""Talking heads and multi-token attention as layers, which begin as multi-head attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn import mixing
from polyattn._attention import AuxRequest
from polyattn.arrays import Array, backend_of
from polyattn.layers.attending import OneAttention
from polyattn.layers.heads import heads_first, joined
from polyattn.layers.initializers import Distribution, initializer
from polyattn.layers.layer import LayerResult, Parameter, Params, linear

__all__ = ["MultiTokenAttention", "TalkingHeadsAttention"]


@dataclass(frozen=True)
class _Same(Distribution):
    """1 where the last two indices are equal, or where they are `where`, and 0 elsewhere: what mixes nothing yet."""

    where: tuple[int, int] | None = None

    def draw(self, shape: tuple[int, ...], seed: int, stream: int, like: Array) -> Array:
        backend, (*lead, n, m) = backend_of(like), shape
        ones = [
            [float(i == j if self.where is None else (i, j) == self.where) for j in range(m)]
            for i in range(n)
        ]
        return backend.xp.broadcast_to(backend.asarray(ones, like.dtype, like), (*lead, n, m)) + 0.0


@dataclass(frozen=True)
class _Mixing(OneAttention):
    """Projections as those of `MultiHeadAttention`, without biases, around an attention whose heads mix."""

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    head_dim: int | None = None
    context_dim: int | None = None
    is_causal: bool = False
    scale: float | None = None
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            context_dim=self.context_dim,
        )
        self.check_heads(self.num_heads, self.head_dim)
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def width(self) -> int:
        """The width D of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    def parameters(self) -> Mapping[str, Parameter]:
        heads, inner = (self.num_heads, self.width), self.num_heads * self.width
        sources = {"w_q": self.embed_dim, "w_k": self.source_dim, "w_v": self.source_dim}
        found = {
            name: Parameter((n, *heads), initializer(self.name, self.initializer, n, inner))
            for name, n in sources.items()
        }
        out = initializer(self.name, self.initializer, inner, self.embed_dim)
        return found | {"w_o": Parameter((*heads, self.embed_dim), out)}

    def _mix(
        self,
        params: Params,
        q: Array,
        k: Array,
        v: Array,
        options: dict[str, Any],
        return_aux: AuxRequest | None,
    ) -> Any:
        raise NotImplementedError

    def run(
        self,
        params: Params,
        x: Array,
        context: Array | None = None,
        *,
        mask: Any = None,
        bias: Array | None = None,
        is_causal: bool | None = None,
        query_offset: Any = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        source = self.source(params, x, context)
        q, k, v = (
            heads_first(linear(given, params[name]))
            for name, given in (("w_q", x), ("w_k", source), ("w_v", source))
        )
        options = {
            "mask": mask,
            "bias": bias,
            "is_causal": self.is_causal if is_causal is None else is_causal,
            "query_offset": query_offset,
            "scale": self.scale,
        }
        found = self._mix(params, q, k, v, options, return_aux)
        heads, aux = (found, None) if return_aux is None else found
        return LayerResult(joined(heads, params["w_o"]), aux=aux)


@dataclass(frozen=True)
class TalkingHeadsAttention(_Mixing):
    """Multi-head attention whose heads are mixed before the softmax by w_scores and after it by w_weights.

        s_g = sum_h w_scores[h, g] q_h k_h^T / sqrt(D);  u_f = sum_g w_weights[g, f] softmax(s_g);  out = concat_f(u_f v_f) W_o

    Params, with E = embed_dim and C = context_dim: w_q (E, H, D), w_k and w_v (C, H, D), w_o (H, D, E), w_scores
    and w_weights (H, H), at first the identity. No biases. The call is that of `MultiHeadAttention` without cache
    and dropout_seed; `run` gives the mixed weights and scores. Memory O(H L S): `polyattn.mixing` says why.

    Source: Shazeer 2020, arXiv:2003.02436.

    >>> import numpy as np
    >>> layer = TalkingHeadsAttention(8, 2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    def parameters(self) -> Mapping[str, Parameter]:
        mixed = Parameter((self.num_heads, self.num_heads), _Same())
        return {**super().parameters(), "w_scores": mixed, "w_weights": mixed}

    def _mix(
        self,
        params: Params,
        q: Array,
        k: Array,
        v: Array,
        options: dict[str, Any],
        return_aux: AuxRequest | None,
    ) -> Any:
        return mixing.talk(self.name, q, k, v, params["w_scores"], params["w_weights"], options, return_aux)


@dataclass(frozen=True)
class MultiTokenAttention(_Mixing):
    """Multi-head attention whose scores are convolved over query_width queries and key_width keys before the softmax.

        t_ij = sum_(a, b) kernel[h, a, b] s_(i - a)(j - b + key_width // 2),   hidden scores 0 before, -inf after

    group_size: after the softmax the weights of so many neighbouring heads are mixed; 1 mixes none. Params: those
    of `TalkingHeadsAttention`, but for w_scores and w_weights kernel (H, query_width, key_width), and w_heads (H /
    C, C, C) where group_size C is larger than 1; at first they change nothing. The call is that of
    `TalkingHeadsAttention`; the paper's group normalisation is no part of it. Memory O(H L S).

    Source: Golovneva 2025, arXiv:2504.00927, sections 3.1 and 3.2.

    >>> import numpy as np
    >>> layer = MultiTokenAttention(8, 2, query_width=2, key_width=3, is_causal=True)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    _: KW_ONLY
    query_width: int
    key_width: int
    group_size: int = 1

    def __post_init__(self) -> None:
        self.check_sizes(query_width=self.query_width, key_width=self.key_width, group_size=self.group_size)
        super().__post_init__()
        if self.num_heads % self.group_size:
            raise ValueError(
                f"{self.name}: expected group_size to divide num_heads, got group_size={self.group_size} and "
                f"num_heads={self.num_heads}; every group has equally many heads"
            )

    def parameters(self) -> Mapping[str, Parameter]:
        alone = _Same((0, self.key_width // 2))
        found = {"kernel": Parameter((self.num_heads, self.query_width, self.key_width), alone)}
        if self.group_size > 1:
            count = self.group_size
            found["w_heads"] = Parameter((self.num_heads // count, count, count), _Same())
        return {**super().parameters(), **found}

    def _mix(
        self,
        params: Params,
        q: Array,
        k: Array,
        v: Array,
        options: dict[str, Any],
        return_aux: AuxRequest | None,
    ) -> Any:
        return mixing.convolve(
            self.name, q, k, v, params["kernel"], params.get("w_heads"), options, return_aux
        )
