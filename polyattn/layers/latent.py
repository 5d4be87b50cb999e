"""Multi-head latent attention: DeepSeek's, whose cache holds one short vector a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from polyattn import latent
from polyattn._attention import AuxRequest, Wish
from polyattn.arrays import Array, backend_of
from polyattn.caches import Cache, LatentCache
from polyattn.layers.attending import AttentionLayer
from polyattn.layers.heads import all_of, heads_first, joined, positions_of, reach
from polyattn.layers.initializers import Distribution, initializer
from polyattn.layers.layer import Layer, LayerResult, Parameter, Params, linear
from polyattn.layers.norm import RMSNorm
from polyattn.rotary import Rotary

__all__ = ["LatentAttention"]


@dataclass(frozen=True)
class LatentAttention(AttentionLayer):
    """Self-attention whose keys and values come from a latent of kv_lora_rank numbers (MLA; DeepSeek-V2, V3, Kimi).

        c = norm(x W_dkv),  r = rotary(x W_kr)                          what is cached: R + P numbers a token
        u = norm(x W_dq), or x itself without q_lora_rank
        q_h = [u W_uq,h; rotary(u W_qr,h)],  k_h = [c W_uk,h; r],  v_h = c W_uv,h
        out = concat_h(softmax(scale q_h k_h^T) v_h) W_o

    Params, with E = embed_dim, R = kv_lora_rank, N = qk_nope_head_dim, P = qk_rope_head_dim, V = v_head_dim: w_dkv
    (E, R), kv_norm, w_kr (E, P), w_uk (R, H, N), w_uv (R, H, V), w_dq (E, Q) and q_norm with q_lora_rank = Q, w_uq
    (Q or E, H, N), w_qr (Q or E, H, P), w_o (H, V, E). No biases. epsilon: that of both RMS norms, 1e-6 in
    DeepSeek's. rotary: None turns nothing (Kimi Linear); DeepSeek's weights want Rotary(interleaved=True). scale:
    None = 1/sqrt(N + P), which DeepSeek multiplies with (0.1 m ln s + 1)^2 for contexts made s times longer by
    YaRN.

        layer(params, x, mask=, bias=, is_causal=, dropout_seed=) -> out
        layer.run(params, x, ..., cache=, return_aux=) -> LayerResult(out, cache, aux)

    A cache is a `LatentCache`, or any of one kv head, with the key [c; r] and the value c. Few queries beside many keys are computed
    in the absorbed form, others with expanded keys: `polyattn.latent.latent_attention` says what they are.

    Source: DeepSeek-AI 2024, arXiv:2405.04434, equations 9 to 19; arXiv:2412.19437, equations 1 to 11.

    >>> import numpy as np
    >>> sizes = {"kv_lora_rank": 4, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 3}
    >>> layer = LatentAttention(8, 2, **sizes, epsilon=1e-6, rotary=Rotary(interleaved=True))
    >>> layer(layer.init(0, like=np.zeros(())), np.ones((3, 5, 8)), is_causal=True).shape
    (3, 5, 8)
    """

    embed_dim: int
    num_heads: int
    _: KW_ONLY
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    epsilon: float
    q_lora_rank: int | None = None
    rotary: Rotary | None = None
    scale: float | None = None
    is_causal: bool = False
    dropout_rate: float = 0.0
    implementation: Wish = "auto"
    initializer: str | Distribution = "glorot_uniform"

    def __post_init__(self) -> None:
        self.check_sizes(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            v_head_dim=self.v_head_dim,
            q_lora_rank=self.q_lora_rank,
        )
        self.check_rate(self.dropout_rate)
        if self.rotary is not None and self.qk_rope_head_dim % 2:
            raise ValueError(
                f"{self.name}: expected an even qk_rope_head_dim with rotary, got {self.qk_rope_head_dim}; entries are "
                "turned in pairs"
            )
        _ = self.parameters()  # refuses an unknown initializer

    def parameters(self) -> Mapping[str, Parameter | Layer]:
        heads, rank, width = self.num_heads, self.kv_lora_rank, self.embed_dim
        source = width if self.q_lora_rank is None else self.q_lora_rank
        shapes: dict[str, tuple[int, ...]] = {
            "w_uq": (source, heads, self.qk_nope_head_dim),
            "w_qr": (source, heads, self.qk_rope_head_dim),
            "w_dkv": (width, rank),
            "w_kr": (width, self.qk_rope_head_dim),
            "w_uk": (rank, heads, self.qk_nope_head_dim),
            "w_uv": (rank, heads, self.v_head_dim),
            "w_o": (heads, self.v_head_dim, width),
        }
        if self.q_lora_rank is not None:
            shapes["w_dq"] = (width, source)

        def drawn(name: str, shape: tuple[int, ...]) -> Parameter:
            fan_in = shape[0] * shape[1] if name == "w_o" else shape[0]
            fan_out = shape[2] if name == "w_o" else shape[1] * (shape[2] if len(shape) > 2 else 1)
            return Parameter(shape, initializer(self.name, self.initializer, fan_in, fan_out))

        return {**self.norms, **{name: drawn(name, shape) for name, shape in shapes.items()}}

    @cached_property
    def norms(self) -> Mapping[str, RMSNorm]:
        """Those of the latents, made once: `torch.compile` cannot follow the making of a layer."""
        ranks = {"kv_norm": self.kv_lora_rank, "q_norm": self.q_lora_rank}
        return {name: RMSNorm(n, epsilon=self.epsilon) for name, n in ranks.items() if n is not None}

    def empty_cache(self, batch: int, capacity: int, *, like: Array) -> LatentCache:
        """A cache of latents for this layer, without tokens: R + P numbers a token."""
        return LatentCache.empty(batch, capacity, self.kv_lora_rank, self.qk_rope_head_dim, like=like)

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
        query, key, c = self.project(params, x, positions_of(x, start))
        if cache is not None:
            if isinstance(cache, LatentCache):  # of which the value is a part of the key
                cache = cache.append(c[..., 0, :, :], key[..., 0, :, self.kv_lora_rank :])
            else:
                cache = cache.append(key, c)
            key = cache.key
        found = latent.attend(
            self.name,
            query,
            key,
            params["w_uk"],
            params["w_uv"],
            mask=all_of(None if cache is None else cache.mask, mask),
            bias=bias,
            is_causal=self.is_causal if is_causal is None else is_causal,
            query_offset=start,
            key_positions=None if cache is None or cache.in_order else cache.positions,
            scale=self.scale,
            dropout_rate=0.0 if dropout_seed is None else self.dropout_rate,
            dropout_seed=dropout_seed,
            return_aux=return_aux,
            implementation=self.implementation,
        )
        heads, aux = (found, None) if return_aux is None else found
        return LayerResult(joined(heads, params["w_o"]), cache, aux)

    def project(self, params: Params, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Queries (..., H, L, N + P), the key [c; r] (..., 1, L, R + P) and the value c (..., 1, L, R), turned."""
        u = x
        if self.q_lora_rank is not None:
            u = self.norms["q_norm"](params["q_norm"], linear(x, params["w_dq"]))
        q, t = (heads_first(linear(u, params[name])) for name in ("w_uq", "w_qr"))
        c = self.norms["kv_norm"](params["kv_norm"], linear(x, params["w_dkv"]))[..., None, :, :]
        r = linear(x, params["w_kr"])[..., None, :, :]
        if self.rotary is not None:
            t, r = self.rotary.both(t, r, positions, **reach(self.rotary, positions))
        xp = backend_of(x).xp
        return xp.concat((q, t), axis=-1), xp.concat((c, r), axis=-1), c
