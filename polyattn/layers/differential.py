"""Differential attention as a layer: two softmaxes a head, and how much of the second is taken away is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from polyattn import differential
from polyattn._attention import AuxRequest, Wish
from polyattn.arrays import Array, backend_of
from polyattn.caches import Cache, KVCache
from polyattn.calls import number
from polyattn.layers.attending import AttentionLayer
from polyattn.layers.heads import all_of, heads_first, joined, positions_of
from polyattn.layers.initializers import Distribution, Normal, initializer
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params, linear
from polyattn.layers.norm import RMSNorm
from polyattn.rotary import Rotary

__all__ = ["DifferentialAttention"]

_LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


@dataclass(frozen=True)
class DifferentialAttention(AttentionLayer):
    """Self-attention whose weights are a difference of two softmaxes (Differential Transformer, version 1).

        head_h = (softmax(q1 k1^T / sqrt(D)) - lam softmax(q2 k2^T / sqrt(D))) v,   [q1; q2] = x W_q,h, [k1; k2], v alike
        lam = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init
        out = (1 - lambda_init) concat_h(rms_norm(head_h)) W_o

    A head is 2D wide, embed_dim / num_heads unless head_dim says so, and so is its value; with Hkv = num_kv_heads,
    params: w_q (E, H, 2D), w_k and w_v (E, Hkv, 2D), w_o (H, 2D, E), lambda_q1, lambda_k1, lambda_q2, lambda_k2
    (D,), at first normal with standard deviation 0.1, norm (scale (2D,), of all heads). No biases. lambda_init: the
    paper's is 0.8 - 0.6 exp(-0.3 (l - 1)) in layer l = 1, 2, ... epsilon: of the norm, 1e-5 in the paper's code.
    rotary turns the two halves of q and k each.

        layer(params, x, mask=, bias=, is_causal=, dropout_seed=) -> out
        layer.run(params, x, ..., cache=, return_aux=) -> LayerResult(out, cache, aux)

    cache: a `KVCache` with the earlier tokens of x. aux is a `DifferentialAux`, the two attentions.

    Source: Ye 2024, arXiv:2410.05258, equations 1 to 3.

    >>> import numpy as np
    >>> layer = DifferentialAttention(8, 2, lambda_init=0.2, epsilon=1e-5)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8)), is_causal=True).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    lambda_init: float
    epsilon: float
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rotary: Rotary | None = None
    is_causal: bool = False
    dropout_rate: float = 0.0
    implementation: Wish = "auto"
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
        )
        self.check_heads(self.num_heads, self.head_dim, self.kv_heads)
        if self.width % 2:
            raise ValueError(
                f"{self.name}: expected heads of an even width, got {self.width}; the halves are those of the two "
                "softmaxes"
            )
        number(self.name, "lambda_init", self.lambda_init)
        self.check_rate(self.dropout_rate)
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def width(self) -> int:
        """The width 2D of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        width, heads = self.width, {"w_q": self.num_heads, "w_k": self.kv_heads, "w_v": self.kv_heads}
        inner = self.num_heads * width
        found: dict[str, Parameter | Layer] = {
            name: Parameter(
                (self.embed_dim, count, width),
                initializer(self.name, self.initializer, self.embed_dim, count * width),
            )
            for name, count in heads.items()
        }
        out = initializer(self.name, self.initializer, inner, self.embed_dim)
        found["w_o"] = Parameter((self.num_heads, width, self.embed_dim), out)
        found |= {name: Parameter((width // 2,), Normal(0.1)) for name in _LAMBDAS}
        return found | {"norm": self.norm}

    @cached_property
    def norm(self) -> RMSNorm:
        """That of the heads, made once: `torch.compile` cannot follow the making of a layer."""
        return RMSNorm(self.width, epsilon=self.epsilon)

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> KVCache:
        """A cache for this layer, without tokens."""
        return KVCache.empty(batch, self.kv_heads, capacity, self.width, like=like)

    def lam(self, params: Params) -> Array:
        """How much of the second softmax is taken away, in the compute dtype."""
        backend = backend_of(params["lambda_q1"])
        xp, compute = backend.xp, backend.compute_dtype(params["lambda_q1"].dtype)
        q1, k1, q2, k2 = (backend.astype(params[name], compute) for name in _LAMBDAS)
        return xp.exp(xp.sum(q1 * k1)) - xp.exp(xp.sum(q2 * k2)) + self.lambda_init

    def run(
        self,
        params: Params,
        x: Array,
        *,
        mask: Any = None,
        bias: Array | None = None,
        is_causal: bool | None = None,
        cache: Cache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: AuxRequest | None = None,
    ) -> LayerResult:
        self.check(params, self.embed_dim, x=x)
        if cache is not None:
            self.check_cache(cache)
        start = 0 if cache is None else cache.length
        q, k, v = (heads_first(linear(x, params[name])) for name in ("w_q", "w_k", "w_v"))
        if self.rotary is not None:
            at = positions_of(x, start)
            q, k = self._turn(self.rotary, q, at), self._turn(self.rotary, k, at)
        if cache is not None:
            cache = cache.append(k, v)
            k, v = cache.key, cache.value
        found = differential.attend(
            self.name,
            q,
            k,
            v,
            self.lam(params),
            mask=all_of(None if cache is None else cache.mask, mask),
            bias=bias,
            is_causal=self.is_causal if is_causal is None else is_causal,
            query_offset=start,
            key_positions=None if cache is None or cache.in_order else cache.positions,
            dropout_rate=0.0 if dropout_seed is None else self.dropout_rate,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            implementation=self.implementation,
        )
        heads, aux = (found, None) if return_aux is None else found
        heads = (1.0 - self.lambda_init) * self.norm(params["norm"], heads)
        return LayerResult(joined(heads, params["w_o"]), cache, aux)

    def _turn(self, rotary: Rotary, x: Array, positions: Array) -> Array:
        half = self.width // 2
        parts = x[..., :half], x[..., half:]
        return backend_of(x).xp.concat([rotary(part, positions) for part in parts], axis=-1)
