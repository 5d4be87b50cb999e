"""A mixture of experts: many MLPs, of which a router asks a few for each token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from polyattn.arrays import Array, Backend, backend_of
from polyattn.arrays.numbers import SameArray
from polyattn.dropout import drop, fold_in
from polyattn.layers.activations import ACTIVATIONS, GATED, sigmoid
from polyattn.layers.dense import MLP
from polyattn.layers.initializers import ZEROS, Distribution, initializer
from polyattn.layers.layer import Layer, Parameter, Params, linear

__all__ = ["MixtureOfExperts"]


@dataclass(frozen=True)
class MixtureOfExperts(Layer):
    """sum over the top_k experts e of a token: w_e MLP_e(x), beside a `shared` MLP that every token asks.

        p = scores(x W_r + b_r);  the top_k largest of p + c are asked;  w = scale p / (sum of the p asked)

    scores: "softmax" over all experts (Qwen3-Next, gpt-oss, whose softmax over the chosen logits is the same number),
    or "sigmoid" of each (DeepSeek-V3). normalized=False: w = scale p. router_bias: there is b_r; correction: there is
    c, which chooses and does not weigh. groups: the experts lie in so many groups, and only those of the top_groups
    groups with the largest sums of two are asked. Of equal ones the first is. shared_gate: shared(x) times
    sigma(x W_s). activation, use_bias, dropout_rate: of each expert, as in `MLP`.

    Params, with E = embed_dim, H = hidden_dim, N = num_experts: w_router (E, N), b_router, correction (N,), w_in, w_gate
    (N, E, H), b_in, b_gate (N, H), w_out (N, H, E), b_out (N, E), shared, w_shared (E, 1). Many tokens ask every
    expert, and take what they chose; few, with top_k each fewer than N, gather the experts that they chose.

    Source: Shazeer 2017, arXiv:1701.06538, equation 1; DeepSeek-AI 2024, arXiv:2412.19437, equations 12 to 16.

    >>> import numpy as np
    >>> layer = MixtureOfExperts(4, 6, num_experts=8, top_k=2, activation="swiglu", shared=None)
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 4))).shape
    (3, 4)
    """

    embed_dim: int
    hidden_dim: int
    _: KW_ONLY
    num_experts: int
    top_k: int
    activation: str
    shared: MLP | None
    shared_gate: bool = False
    use_bias: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalized: bool = True
    scale: float = 1.0
    router_bias: bool = False
    correction: bool = False
    groups: int = 1
    top_groups: int = 1
    dropout_rate: float = 0.0
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        names = ("embed_dim", "hidden_dim", "num_experts", "top_k", "groups", "top_groups")
        self.check_sizes(**{name: getattr(self, name) for name in names})
        self.check_rate(self.dropout_rate)
        if self.activation not in (known := {**ACTIVATIONS, **GATED}):
            raise ValueError(
                f"{self.name}: expected activation among {', '.join(known)}, got "
                f"{self.activation!r}; take the one that the model was trained with"
            )
        members = self.num_experts // self.groups
        if (
            self.num_experts % self.groups
            or (self.groups > 1 and members < 2)
            or self.top_groups > self.groups
        ):
            raise ValueError(
                f"{self.name}: expected groups of equally many experts, two at least, of which top_groups are asked, got "
                f"{self.num_experts} experts, groups={self.groups} and top_groups={self.top_groups}; change one of them"
            )
        if self.top_k > members * self.top_groups:
            raise ValueError(
                f"{self.name}: expected top_k of at most {members * self.top_groups}, the experts that may be asked, got "
                f"{self.top_k}; a token cannot ask one twice"
            )
        if self.shared_gate and self.shared is None:
            raise ValueError(
                f"{self.name}: expected a shared MLP with shared_gate, got None; leave the gate out"
            )

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        def drawn(*shape: int) -> Parameter:
            return Parameter(shape, initializer(self.name, self.initializer, *shape[-2:]))

        n, e, h = self.num_experts, self.embed_dim, self.hidden_dim
        found: dict[str, Parameter | Layer] = {"w_router": drawn(e, n)}
        if self.router_bias:
            found["b_router"] = Parameter((n,), ZEROS)
        if self.correction:
            found["correction"] = Parameter((n,), ZEROS)
        ways = {"in": (e, h), "gate": (e, h), "out": (h, e)}
        for name, sizes in ways.items():
            if name == "gate" and self.activation not in GATED:
                continue
            found[f"w_{name}"] = drawn(n, *sizes)
            if self.use_bias:
                found[f"b_{name}"] = Parameter((n, sizes[1]), ZEROS)
        if self.shared is not None:
            found["shared"] = self.shared
        if self.shared_gate:
            found["w_shared"] = drawn(e, 1)
        return found

    def __call__(self, params: Params, x: SameArray, *, dropout_seed: int | Array | None = None) -> SameArray:
        backend = self.check(params, self.embed_dim, x=x)
        xp, compute = backend.xp, backend.compute_dtype(x.dtype)
        seeds = [None if dropout_seed is None else fold_in(dropout_seed, i) for i in range(2)]
        tokens = xp.reshape(x, (math.prod(x.shape[:-1]), self.embed_dim))
        weights, chosen = self._route(backend, params, backend.astype(tokens, compute))
        count = tokens.shape[0]
        few = isinstance(count, int) and count * self.top_k < self.num_experts
        if few:
            rows = xp.reshape(chosen, (count * self.top_k,))
            own = {name: backend.take(w, rows, axis=0) for name, w in params.items() if name[2:] in _WAYS}
            given = xp.reshape(
                xp.broadcast_to(tokens[:, None, :], (count, self.top_k, self.embed_dim)),
                (count * self.top_k, 1, self.embed_dim),
            )
            asked = xp.reshape(self._experts(own, given, seeds[0]), (count, self.top_k, self.embed_dim))
            weights = xp.take_along_axis(weights, chosen, axis=1)[..., None]
            out = xp.sum(backend.astype(asked, compute) * weights, axis=1)
        else:
            asked = self._experts(params, tokens[None, ...], seeds[0])  # (N, tokens, E)
            out = xp.sum(backend.astype(asked, compute) * xp.matrix_transpose(weights)[..., None], axis=0)
        out = xp.reshape(backend.astype(out, x.dtype), x.shape)
        if self.shared is None:
            return out
        everyone = self.shared(params["shared"], x, dropout_seed=seeds[1])
        return out + (everyone * sigmoid(linear(x, params["w_shared"])) if self.shared_gate else everyone)

    def _route(self, backend: Backend, params: Params, tokens: Array) -> tuple[Array, Array]:
        """The weight of every expert (tokens, N), 0 where it is not asked, and which are (tokens, top_k)."""
        xp = backend.xp
        wide = {name: backend.astype(params[name], tokens.dtype) for name in ("w_router", "b_router", "correction") if name in params}  # fmt: skip
        logits = linear(tokens, wide["w_router"], wide.get("b_router"))
        if self.scores == "softmax":
            top = xp.max(backend.stop_gradient(logits), axis=-1, keepdims=True)
            p = xp.exp(logits - top)
            p = p / xp.sum(p, axis=-1, keepdims=True)
        else:
            p = sigmoid(logits)
        ranked = backend.stop_gradient(p + wide["correction"] if self.correction else p)
        if self.groups > 1:
            grouped = xp.reshape(ranked, (ranked.shape[0], self.groups, self.num_experts // self.groups))
            two = xp.sum(xp.sort(grouped, axis=-1)[..., -2:], axis=-1)
            best = _ranks(backend, two) < self.top_groups
            ranked = xp.reshape(xp.where(best[..., None], grouped, -xp.inf), ranked.shape)
        chosen = xp.argsort(-ranked, axis=-1, stable=True)
        asked = xp.argsort(chosen, axis=-1, stable=True) < self.top_k
        weights = xp.where(asked, p, 0.0)
        if self.normalized:
            weights = weights / xp.sum(weights, axis=-1, keepdims=True)
        return weights * self.scale, chosen[:, : self.top_k]

    def _experts(self, params: Mapping[str, Any], x: Array, seed: Any) -> Array:
        """Stacked MLPs on x (N|1, n, E): (N, n, E)."""
        backend = backend_of(x)

        def affine(x: Array, name: str) -> Array:
            y = backend.matmul(x, params[f"w_{name}"])
            return y + params[f"b_{name}"][:, None, :] if self.use_bias else y

        hidden = affine(x, "in")
        if self.activation in GATED:
            hidden = GATED[self.activation](affine(x, "gate"), hidden)
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        return affine(drop(hidden, self.dropout_rate, seed), "out")


_WAYS = ("in", "gate", "out")


def _ranks(backend: Backend, x: Array) -> Array:
    """The place of each entry of the last axis from the largest on, 0, 1, ...; of equal ones the first comes first."""
    xp = backend.xp
    return xp.argsort(xp.argsort(-x, axis=-1, stable=True), axis=-1, stable=True)
