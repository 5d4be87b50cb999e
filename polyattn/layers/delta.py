"""Layers of the gated delta rule: what a key brought before is replaced, and what is old fades."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

from polyattn.arrays import Array, backend_of
from polyattn.convolution import convolve
from polyattn.layers.activations import sigmoid, silu, softplus
from polyattn.layers.decays import LOG_RATE, TIME_STEP
from polyattn.layers.initializers import Distribution, initializer
from polyattn.layers.layer import Layer, Parameter, Params, linear
from polyattn.layers.norm import RMSNorm
from polyattn.layers.recurrent import Memory, RecurrentLayer, operands, side_by_side
from polyattn.linear import attend, l2norm

__all__ = ["GatedDeltaNet", "KimiDeltaAttention"]


class _DeltaRule(RecurrentLayer):
    """Convolution, unit keys, the gated delta rule, a gated norm: what the layers have in common."""

    num_heads: int
    kernel_size: int
    epsilon: float
    chunk_size: int
    initializer: str | Distribution

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Heads of keys, heads of values, widths of both."""
        raise NotImplementedError

    @cached_property  # made with the layer, as compilers make none
    def _norm(self) -> RMSNorm:
        return RMSNorm(self._sizes[3], epsilon=self.epsilon)

    def _forgetting(self, params: Params, x: Array) -> Array:
        """What the decay is made of, before its time step: (..., L, Hv, D), or D = 1."""
        raise NotImplementedError

    def _gate(self, params: Params, x: Array) -> Array:
        """What the output is multiplied with, in the compute dtype: (..., L, Hv, E)."""
        raise NotImplementedError

    def _drawn(self, fan_in: int, *shape: int) -> Parameter:
        """A map of fan_in numbers to the other axes of its shape."""
        return Parameter(shape, initializer(self.name, self.initializer, fan_in, math.prod(shape) // fan_in))

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        e, (key_heads, heads, width, value_width) = self.embed_dim, self._sizes
        channels = self.memory().channels
        taps = initializer(self.name, "torch_linear", self.kernel_size, self.kernel_size)
        return {
            "w_q": self._drawn(e, e, key_heads, width),
            "w_k": self._drawn(e, e, key_heads, width),
            "w_v": self._drawn(e, e, heads, value_width),
            "conv": Parameter((self.kernel_size, channels), taps),
            "w_beta": self._drawn(e, e, heads),
            "a_log": Parameter((heads,), LOG_RATE),
            "norm": self._norm,
            "w_o": self._drawn(heads * value_width, heads, value_width, e),
        }

    def memory(self) -> Memory:
        key_heads, heads, width, value_width = self._sizes
        channels = 2 * key_heads * width + heads * value_width
        return Memory(heads, width, value_width, self.kernel_size, channels)

    def read(
        self, params: Params, x: Array, state: Array | None, tail: Array | None
    ) -> tuple[Array, Array, Array | None]:
        backend = backend_of(x)
        xp, compute = backend.xp, backend.compute_dtype(x.dtype)
        key_heads, heads, width, _ = self._sizes
        rows = tuple(x.shape[:-1])

        def flat(name: str) -> Array:
            w = params[name]
            return linear(x, xp.reshape(w, (w.shape[0], w.shape[1] * w.shape[2])))

        mixed, tail = convolve(
            self.name, xp.concat([flat(f"w_{name}") for name in "qkv"], axis=-1), params["conv"], None, tail
        )
        mixed, split = backend.astype(silu(mixed), compute), key_heads * width

        def of_heads(start: int, stop: int | None, count: int) -> Array:
            part = mixed[..., start:stop]
            return xp.moveaxis(xp.reshape(part, (*rows, count, part.shape[-1] // count)), -2, -3)

        query, key = (
            _repeated(l2norm(of_heads(i * split, (i + 1) * split, key_heads)), heads) for i in range(2)
        )
        value = of_heads(2 * split, None, heads)
        rate = xp.exp(backend.astype(params["a_log"], compute))[:, None]
        decay = -rate * softplus(self._forgetting(params, x))
        beta = sigmoid(backend.astype(linear(x, params["w_beta"]), compute))[..., None]
        decay, beta = (xp.moveaxis(given, -2, -3) for given in (decay, beta))
        out, state = attend(
            self.name, operands(query, key, value, decay, beta, state=state), None, self.chunk_size
        )
        normed = self._norm(params["norm"], backend.astype(out, x.dtype))
        gated = backend.astype(normed, compute) * xp.moveaxis(self._gate(params, x), -2, -3)
        joined = side_by_side(gated, x)
        return linear(joined, xp.reshape(params["w_o"], (joined.shape[-1], self.embed_dim))), state, tail


@dataclass(frozen=True)
class GatedDeltaNet(_DeltaRule):
    """The gated delta rule as Qwen3-Next has it: one decay a head, beta and decay made of the token.

        q, k, v = silu(conv([x W_q, x W_k, x W_v])),   q, k of length 1,   beta = sigmoid(x W_beta)
        g = -exp(a_log) softplus(x W_decay + dt_bias),   out = (norm(o) * silu(x W_gate)) W_o
        S_t = F_t + k_t beta_t (v_t - F_t^T k_t)^T,   F_t = exp(g_t) S_(t-1),   o_t = S_t^T q_t / sqrt(D)

    num_heads heads of queries and keys, of width head_dim; num_value_heads of values, of width value_dim, each with
    a state: head h of values reads key h // (Hv // H). conv is a `polyattn.convolution.causal_convolution` over
    kernel_size tokens, norm an `RMSNorm` of each head. Params: w_q, w_k (embed_dim, H, D), w_v, w_gate (embed_dim, Hv,
    E), conv (kernel_size, 2 H D + Hv E), w_beta, w_decay (embed_dim, Hv), a_log, dt_bias (Hv,), norm, w_o (Hv, E,
    embed_dim). The call is that of `RecurrentLayer`; chunk_size: as `polyattn.linear.linear_attention` has it.

    Source: Yang 2024, arXiv:2412.06464, section 3.1; Qwen3-Next, whose weights `polyattn.weights` reads.

    >>> import numpy as np
    >>> layer = GatedDeltaNet(8, 2, num_value_heads=4, head_dim=3)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    head_dim: int
    num_value_heads: int | None = None
    value_dim: int | None = None
    kernel_size: int = 4
    epsilon: float = 1e-6
    chunk_size: int = 64
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        names = (
            "embed_dim",
            "num_heads",
            "head_dim",
            "num_value_heads",
            "value_dim",
            "kernel_size",
            "chunk_size",
        )
        self.check_sizes(**{name: getattr(self, name) for name in names})
        if self._sizes[1] % self.num_heads:
            raise ValueError(
                f"{self.name}: expected num_heads to divide num_value_heads, got num_heads={self.num_heads} and "
                f"num_value_heads={self.num_value_heads}; each head of keys serves equally many heads of values"
            )
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        heads = self.num_heads if self.num_value_heads is None else self.num_value_heads
        return self.num_heads, heads, self.head_dim, self.value_dim or self.head_dim

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        e, (_, heads, _, value_width) = self.embed_dim, self._sizes
        return {
            **super().parameters(),
            "w_decay": self._drawn(e, e, heads),
            "dt_bias": Parameter((heads,), TIME_STEP),
            "w_gate": self._drawn(e, e, heads, value_width),
        }

    def _forgetting(self, params: Params, x: Array) -> Array:
        return _added(linear(x, params["w_decay"]), params["dt_bias"])[..., None]

    def _gate(self, params: Params, x: Array) -> Array:
        return silu(_widened(linear(x, params["w_gate"])))


@dataclass(frozen=True)
class KimiDeltaAttention(_DeltaRule):
    """Kimi delta attention (KDA): the gated delta rule with a decay for each entry of the key.

        q, k, v = silu(conv([x W_q, x W_k, x W_v])),   q, k of length 1,   beta = sigmoid(x W_beta)
        g = -exp(a_log) softplus(x W_decay_in W_decay_out + dt_bias)
        S_t = F_t + k_t beta_t (v_t - F_t^T k_t)^T,   F_t = diag(exp(g_t)) S_(t-1),   o_t = S_t^T q_t / sqrt(D)
        out = (norm(o) * sigmoid(x W_gate_in W_gate_out)) W_o

    Params: w_q, w_k, w_v (embed_dim, H, D), conv (kernel_size, 3 H D), w_beta (embed_dim, H), w_decay_in, w_gate_in
    (embed_dim, D), w_decay_out, w_gate_out (D, H, D), a_log (H,), dt_bias (H, D), norm, w_o (H, D, embed_dim). conv is
    a `polyattn.convolution.causal_convolution` over kernel_size tokens, norm an `RMSNorm` of each head. The call is
    that of `RecurrentLayer`; a chunk takes chunk_size^2 D numbers a head.

    Source: Kimi Team 2025, arXiv:2510.26692; Kimi-Linear-48B-A3B, whose weights `polyattn.weights` reads.

    >>> import numpy as np
    >>> layer = KimiDeltaAttention(8, 2, head_dim=3)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8))).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    head_dim: int
    kernel_size: int = 4
    epsilon: float = 1e-5
    chunk_size: int = 16
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        names = ("embed_dim", "num_heads", "head_dim", "kernel_size", "chunk_size")
        self.check_sizes(**{name: getattr(self, name) for name in names})
        _ = self.parameters()  # refuses an unknown initializer

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        return self.num_heads, self.num_heads, self.head_dim, self.head_dim

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        e, heads, width = self.embed_dim, self.num_heads, self.head_dim
        low_rank: dict[str, Parameter] = {}
        for name in ("decay", "gate"):
            low_rank[f"w_{name}_in"] = self._drawn(e, e, width)
            low_rank[f"w_{name}_out"] = self._drawn(width, width, heads, width)
        return {**super().parameters(), **low_rank, "dt_bias": Parameter((heads, width), TIME_STEP)}

    def _forgetting(self, params: Params, x: Array) -> Array:
        inner = linear(x, params["w_decay_in"])
        return _added(linear(inner, params["w_decay_out"]), params["dt_bias"])

    def _gate(self, params: Params, x: Array) -> Array:
        inner = linear(x, params["w_gate_in"])
        return sigmoid(_widened(linear(inner, params["w_gate_out"])))


def _widened(x: Array) -> Array:
    """In the compute dtype."""
    backend = backend_of(x)
    return backend.astype(x, backend.compute_dtype(x.dtype))


def _added(x: Array, b: Array) -> Array:
    """x + b in the compute dtype, in which a decay is small."""
    return _widened(x) + _widened(b)


def _repeated(x: Array, heads: int) -> Array:
    """(..., H, L, D) -> (..., heads, L, D): each head as often as it is read."""
    *lead, own, tokens, width = x.shape
    if own == heads:
        return x
    xp, each = backend_of(x).xp, heads // own
    wide = xp.broadcast_to(x[..., None, :, :], (*lead, own, each, tokens, width))
    return xp.reshape(wide, (*lead, heads, tokens, width))
