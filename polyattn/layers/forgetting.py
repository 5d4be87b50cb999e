"""Forgetting attention: causal attention whose scores fade by a gate of every token between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from polyattn._attention import AuxRequest, Wish
from polyattn.arrays import Array, backend_of
from polyattn.caches import Cache, KVCache
from polyattn.layers.attending import AttentionLayer
from polyattn.layers.heads import all_of, heads_first, joined, positions_of
from polyattn.layers.initializers import ZEROS, Distribution, initializer
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params, linear
from polyattn.layers.norm import LayerNorm, RMSNorm
from polyattn.rotary import Rotary

__all__ = ["ForgettingAttention"]


@dataclass(frozen=True)
class ForgettingAttention(AttentionLayer):
    """Causal self-attention with a forget gate f of every token and head (Forgetting Transformer, FoX).

        s_ij = q_i . k_j / sqrt(D) + sum_(l = j + 1 .. i) log f_l,   f = sigmoid(x W_f + b_f)

    The sum is c_i - c_j with c the cumulative sums of log f, and c_i, the same for all keys of a row, leaves no
    trace in a softmax: the scores get the bias -c_j, one number a key, so that every implementation serves and
    nothing of L S numbers exists. lse and scores of return_aux are without c_i. c is summed in the compute dtype,
    and rounded like numbers of the size of c; the gates of hidden tokens count.

    Params, with E = embed_dim, D = head_dim: w_q, w_k, w_v (E, H, D), w_f (E, H), b_f (H,), at first 0, w_o (H, D,
    E), and with qk_norm, a norm of dim D, q_norm and k_norm. rotary: the paper does without.

        layer(params, x, mask=, dropout_seed=) -> out
        layer.run(params, x, ..., cache=, return_aux=) -> LayerResult(out, cache, aux)

    cache: a `KVCache` whose keys are one entry wider, for log f (`empty_cache`); its slots must be in the order of
    the tokens.

    Source: Lin 2025, arXiv:2503.02130.

    >>> import numpy as np
    >>> layer = ForgettingAttention(8, 2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    head_dim: int | None = None
    qk_norm: LayerNorm | RMSNorm | None = None
    rotary: Rotary | None = None
    dropout_rate: float = 0.0
    implementation: Wish = "auto"
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(embed_dim=self.embed_dim, num_heads=self.num_heads, head_dim=self.head_dim)
        self.check_heads(self.num_heads, self.head_dim)
        if self.qk_norm is not None and self.qk_norm.dim != self.width:
            raise ValueError(
                f"{self.name}: expected qk_norm of dim {self.width}, the width of a head, got {self.qk_norm.dim}; "
                f"make it for {self.width}"
            )
        self.check_rate(self.dropout_rate)
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def width(self) -> int:
        """The width D of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        embed, heads, inner = self.embed_dim, self.num_heads, self.num_heads * self.width
        into = initializer(self.name, self.initializer, embed, inner)
        found: dict[str, Parameter | Layer] = {
            name: Parameter((embed, heads, self.width), into) for name in ("w_q", "w_k", "w_v")
        }
        found["w_f"] = Parameter((embed, heads), initializer(self.name, self.initializer, embed, heads))
        found["b_f"] = Parameter((heads,), ZEROS)
        found["w_o"] = Parameter(
            (heads, self.width, embed), initializer(self.name, self.initializer, inner, embed)
        )
        return found if self.qk_norm is None else found | {"q_norm": self.qk_norm, "k_norm": self.qk_norm}

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> KVCache:
        """A cache for this layer, without tokens: log f lies behind the entries of a key."""
        return KVCache.empty(batch, self.num_heads, capacity, self.width + 1, self.width, like=like)

    def run(
        self,
        params: Params,
        x: Array,
        *,
        mask: Any = None,
        cache: Cache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        backend = self.check(params, self.embed_dim, x=x)
        xp = backend.xp
        start = 0 if cache is None else cache.length
        q, k, v = (heads_first(linear(x, params[name])) for name in ("w_q", "w_k", "w_v"))
        if self.qk_norm is not None:
            q, k = self.qk_norm(params["q_norm"], q), self.qk_norm(params["k_norm"], k)
        if self.rotary is not None:
            q, k = self.rotary.both(q, k, positions_of(x, start))
        log_f = xp.matrix_transpose(_log_sigmoid(linear(x, params["w_f"], params["b_f"])))  # (..., H, L)
        if cache is not None:
            self.check_cache(cache)
            if not cache.in_order:
                raise ValueError(
                    f"{self.name}: expected a cache whose slots are in the order of the tokens, got "
                    f"{type(cache).__name__}, whose are not; gates are summed from slot to slot, so take a KVCache"
                )
            cache = cache.append(xp.concat((k, log_f[..., None]), axis=-1), v)
            k, v, log_f = cache.key[..., :-1], cache.value, cache.key[..., -1]
        faded = backend.cumulative_sum(backend.astype(log_f, backend.compute_dtype(x.dtype)), axis=-1)
        heads, aux = self.attend(
            q,
            k,
            v,
            mask=all_of(None if cache is None else cache.mask, mask),
            bias=-faded[..., None, :],
            is_causal=True,
            query_offset=start,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            implementation=self.implementation,
        )
        return LayerResult(joined(heads, params["w_o"]), cache, aux)


def _log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x))), which neither overflows nor loses a gate near 1; in x's dtype."""
    backend = backend_of(x)
    xp, wide = backend.xp, backend.astype(x, backend.compute_dtype(x.dtype))
    low = xp.where(wide < 0, wide, 0.0)
    return backend.astype(low - xp.log1p(xp.exp(-xp.abs(wide))), x.dtype)
