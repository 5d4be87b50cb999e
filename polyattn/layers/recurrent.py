"""Layers that read from left to right and remember a state of constant size: linear and lightning attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from polyattn.arrays import Array, backend_of
from polyattn.caches import RecurrentCache
from polyattn.calls import flag, number, seed_like, shown, size
from polyattn.layers.activations import sigmoid, silu
from polyattn.layers.attending import AttentionLayer
from polyattn.layers.initializers import Distribution, initializer
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params, linear
from polyattn.layers.norm import RMSNorm
from polyattn.linear import attend

__all__ = ["LightningAttention", "LinearAttention", "RecurrentLayer"]


class Memory(NamedTuple):
    """The sizes of a `RecurrentCache`, but for the batch."""

    kv_heads: int
    head_dim: int
    value_dim: int
    kernel_size: int = 1
    channels: int = 0


class RecurrentLayer(AttentionLayer):
    """x (..., L, embed_dim) -> the same shape; each token sees those before it by a state of constant size.

        layer(params, x) -> out
        layer.run(params, x, cache=) -> LayerResult(out, cache, None)

    cache: a `RecurrentCache` with what is remembered of the earlier tokens; x continues them, in pieces of any length.
    What a block says to its attention may be said: is_causal, which is True always; a dropout_seed, which drops
    nothing, for there are no weights; return_aux is refused, for the same reason.
    """

    embed_dim: int

    def memory(self) -> Memory:
        """The sizes of what is remembered of an item."""
        raise NotImplementedError

    def read(
        self, params: Params, x: Array, state: Array | None, tail: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """The output, and what is remembered then; state and tail are None where there is no cache."""
        raise NotImplementedError

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> RecurrentCache:
        """A cache for this layer, without tokens. It has room for `capacity` of them as for any number: its size is constant."""
        size(f"{self.name}.empty_cache", "capacity", capacity)
        return RecurrentCache.empty(batch, **self.memory()._asdict(), like=like)

    def run(
        self,
        params: Params,
        x: Array,
        *,
        is_causal: bool | None = None,
        cache: RecurrentCache | None = None,
        dropout_seed: int | Array | None = None,
        return_aux: Any = None,
    ) -> LayerResult:
        self.check(params, self.embed_dim, x=x)
        if is_causal is not None and not flag(self.name, "is_causal", is_causal):
            raise ValueError(
                f"{self.name}: expected is_causal=True, got False; a state holds no later tokens, take MultiHeadAttention"
            )
        if return_aux is not None:
            raise ValueError(
                f"{self.name}: expected no return_aux, got {shown(return_aux)}; a state has no weights to show"
            )
        if dropout_seed is not None:
            seed_like(self.name, "dropout_seed", dropout_seed)
        if cache is None:
            return LayerResult(self.read(params, x, None, None)[0])
        self.check_cache(cache)
        out, state, tail = self.read(params, x, cache.state, cache.tail)
        return LayerResult(out, RecurrentCache(state, tail, cache.length + x.shape[-2]))

    def check_cache(self, cache: Any) -> None:
        """An error unless this is a cache of such a layer, and of these sizes."""
        memory, advice = self.memory(), "write cache=layer.empty_cache(batch, capacity, like=x)"
        if not isinstance(cache, RecurrentCache):
            raise TypeError(f"{self.name}: expected a RecurrentCache, got {shown(cache)}; {advice}")
        expected = (
            (memory.kv_heads, memory.head_dim, memory.value_dim),
            (memory.kernel_size - 1, memory.channels),
        )
        found = tuple(cache.state.shape[-3:]), tuple(cache.tail.shape[-2:])
        if found != expected:
            raise ValueError(
                f"{self.name}: expected a cache whose state ends in {expected[0]} and tail in {expected[1]}, got "
                f"{found[0]} and {found[1]}; {advice}"
            )


class _Heads(RecurrentLayer):
    """Queries, keys and values of H heads of one width, D = embed_dim / num_heads unless given."""

    num_heads: int
    head_dim: int | None
    chunk_size: int
    initializer: str | Distribution

    def __post_init__(self) -> None:
        self.check_sizes(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            chunk_size=self.chunk_size,
        )
        self.check_heads(self.num_heads, self.head_dim)
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def width(self) -> int:
        """The width D of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        e, heads = self.embed_dim, (self.num_heads, self.width)
        flat = self.num_heads * self.width
        into = initializer(self.name, self.initializer, e, flat)
        out_of = initializer(self.name, self.initializer, flat, e)
        maps = {f"w_{name}": Parameter((e, *heads), into) for name in "qkv"}
        return maps | {"w_o": Parameter((*heads, e), out_of)}


@dataclass(frozen=True)
class LinearAttention(_Heads):
    """out = concat_h(o_h) W_o with o_t = sum_(i <= t) (f(q_t) . f(k_i)) v_i / sum_(i <= t) f(q_t) . f(k_i).

    f(x) = elu(x) + 1: x + 1 where x > 0, exp(x) elsewhere. Both sums are one recurrence, in which the values have one
    more entry, 1: the state is (H, D, D + 1). Params: w_q, w_k, w_v (embed_dim, H, D), w_o (H, D, embed_dim). The
    call is that of `RecurrentLayer`; chunk_size: as `polyattn.linear.linear_attention` has it.

    Source: Katharopoulos 2020, arXiv:2006.16236, section 3.3 and equation 7.

    >>> import numpy as np
    >>> layer = LinearAttention(8, 2)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    head_dim: int | None = None
    chunk_size: int = 64
    initializer: str | Distribution = "glorot_uniform"

    def memory(self) -> Memory:
        return Memory(self.num_heads, self.width, self.width + 1)

    def read(
        self, params: Params, x: Array, state: Array | None, tail: Array | None
    ) -> tuple[Array, Array, Array | None]:
        q, k, v = (heads_of(x, params[f"w_{name}"]) for name in "qkv")
        xp = backend_of(x).xp
        with_ones = xp.concat((v, xp.ones_like(v[..., :1])), axis=-1)
        arrays = operands(_positive(q), _positive(k), with_ones, state=state)
        sums, state = attend(self.name, arrays, 1.0, self.chunk_size)
        heads = side_by_side(sums[..., :-1] / sums[..., -1:], x)
        w_o = xp.reshape(params["w_o"], (heads.shape[-1], self.embed_dim))
        return linear(heads, w_o), state, tail


@dataclass(frozen=True)
class LightningAttention(_Heads):
    """out = (sigmoid(x W_gate) * norm(concat_h(o_h))) W_o, the state of head h fading by exp(-slope_h) a token.

        S_t = exp(-slope_h) S_(t-1) + k_t v_t^T,   o_t = S_t^T q_t,   q, k, v = silu(x W_q), silu(x W_k), silu(x W_v)

    norm is an `RMSNorm` over all heads together. slopes: a number for each head, which is not learned;
    `polyattn.linear.lightning_slopes(num_heads, layer, depth)` are those of MiniMax-Text-01. Params: w_q, w_k, w_v,
    w_gate (embed_dim, H, D), norm, w_o (H, D, embed_dim). The call is that of `RecurrentLayer`; chunk_size: as
    `polyattn.linear.linear_attention` has it.

    Source: Qin 2024, arXiv:2401.04658; MiniMax 2025, arXiv:2501.08313.

    >>> import numpy as np
    >>> from polyattn.linear import lightning_slopes
    >>> layer = LightningAttention(8, 2, slopes=lightning_slopes(2, layer=0, depth=4))
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    slopes: tuple[float, ...]
    head_dim: int | None = None
    epsilon: float = 1e-6
    chunk_size: int = 64
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        slopes = [number(self.name, "every slope", slope) for slope in self.slopes]
        if len(slopes) != self.num_heads or not all(slope >= 0 for slope in slopes):
            raise ValueError(
                f"{self.name}: expected slopes of {self.num_heads} numbers of at least 0, got {shown(self.slopes)}; "
                f"write slopes=lightning_slopes({self.num_heads}, layer, depth)"
            )

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        found = dict(super().parameters())
        return found | {"w_gate": found["w_q"], "norm": self._norm}

    @cached_property  # made with the layer, as compilers make none
    def _norm(self) -> RMSNorm:
        return RMSNorm(self.num_heads * self.width, epsilon=self.epsilon)

    def memory(self) -> Memory:
        return Memory(self.num_heads, self.width, self.width)

    def read(
        self, params: Params, x: Array, state: Array | None, tail: Array | None
    ) -> tuple[Array, Array, Array | None]:
        backend = backend_of(x)
        xp = backend.xp
        q, k, v = (silu(heads_of(x, params[f"w_{name}"])) for name in "qkv")
        decay = backend.asarray([[[-slope]] for slope in self.slopes], q.dtype, x)
        decay = xp.broadcast_to(decay, (*q.shape[:-1], 1))
        heads, state = attend(self.name, operands(q, k, v, decay, state=state), 1.0, self.chunk_size)
        normed = self._norm(params["norm"], side_by_side(heads, x))
        w = params["w_gate"]
        gate = sigmoid(linear(x, xp.reshape(w, (self.embed_dim, self._norm.dim))))
        w_o = xp.reshape(params["w_o"], (self._norm.dim, self.embed_dim))
        return linear(gate * normed, w_o), state, tail


def heads_of(x: Array, w: Array) -> Array:
    """x W of every head, (..., H, L, D), in the compute dtype."""
    backend = backend_of(x)
    return backend.astype(backend.xp.moveaxis(linear(x, w), -2, -3), backend.compute_dtype(x.dtype))


def side_by_side(heads: Array, x: Array) -> Array:
    """Heads (..., H, L, E) as (..., L, H E), in x's dtype."""
    backend = backend_of(heads)
    width = heads.shape[-3] * heads.shape[-1]
    return backend.astype(
        backend.xp.reshape(backend.xp.moveaxis(heads, -3, -2), (*x.shape[:-1], width)), x.dtype
    )


def operands(
    query: Array,
    key: Array,
    value: Array,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    state: Any,
) -> dict[str, Any]:
    """What `polyattn.linear.attend` takes."""
    return {"query": query, "key": key, "value": value, "decay": decay, "beta": beta, "state": state}


def _positive(x: Array) -> Array:
    """elu(x) + 1."""
    xp = backend_of(x).xp
    positive = x > 0
    return xp.where(positive, x + 1.0, xp.exp(xp.where(positive, xp.zeros_like(x), x)))
