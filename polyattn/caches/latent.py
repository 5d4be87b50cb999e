"""The latent cache: one narrow vector a token, from which the keys and the values of all heads are made."""

from __future__ import annotations

from typing import NamedTuple

from polyattn import masks
from polyattn.arrays import Array, backend_of
from polyattn.caches.scatter import behind
from polyattn.caches.tokens import check_tokens, held, lengths, room_for, standing, zeros
from polyattn.calls import answers, size
from polyattn.masks.algebra import Mask

__all__ = ["LatentCache"]

_WHO = "polyattn.caches.LatentCache.append"


class LatentCache(NamedTuple):
    """The cache of multi-head latent attention: a latent c of R numbers and a rotated key r of a few, for all heads.

        k_h = [W_uk,h c; r],  v_h = W_uv,h c            what the heads would read
        q_h . k_h = [W_uk,h^T q_c; q_r] . [c; r]        what they read here: one kv head [c; r], whose value is c

        cache = LatentCache.empty(batch, capacity, rank, rotary_dim, like=x)
        cache = cache.append(c, r)                      # (..., n, R) and (..., n, rotary_dim)
        out = attention(q, cache.key, cache.value, mask=cache.mask, scale=..., ...)   # q (..., H, L, R + rotary_dim)
        heads = out @ w_uv                              # (..., H, L, R) @ (H, R, E)

    That is multi-query attention, so keys and values of the heads are never made. The value is the first R entries of the
    key and no second copy. The scale is that of the heads, 1/sqrt(width of k_h). Length and overflow are as in `KVCache`.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.

    >>> import numpy as np
    >>> cache = LatentCache.empty(1, 4, 3, 2, like=np.zeros(())).append(np.ones((1, 1, 3)), np.zeros((1, 1, 2)))
    >>> cache.key.shape, cache.value.shape, cache.key[0, 0, 0]
    ((1, 1, 4, 5), (1, 1, 4, 3), array([1., 1., 1., 0., 0.]))
    """

    key: Array  # (..., 1, capacity, R + rotary_dim)
    rank: Array  # (R, 0): no number in it, since what compilers know of an array is its shape
    length: int | Array = 0  # how many tokens are there; 0-d, or one for each batch item

    @property
    def in_order(self) -> bool:
        """Slot i holds token i."""
        return True

    @classmethod
    @answers("polyattn.caches.LatentCache.empty", line="LatentCache.empty")
    def empty(cls, batch: int, capacity: int, rank: int, rotary_dim: int, *, like: Array) -> LatentCache:
        """A cache without tokens in the library, dtype and on the device of `like`."""
        who = "polyattn.caches.LatentCache.empty"
        width = size(who, "rank", rank) + size(who, "rotary_dim", rotary_dim)
        key = zeros(who, like, batch=batch, kv_heads=1, capacity=capacity, width=width)
        return cls(key, zeros(who, like, rank=rank, nothing=0))

    @property
    def capacity(self) -> int:
        """The number of tokens there is room for."""
        return int(self.key.shape[-2])

    @property
    def value(self) -> Array:
        """The latents, (..., 1, capacity, R)."""
        return self.key[..., : self.rank.shape[0]]

    @property
    def mask(self) -> Mask:
        """Hides what is not there yet."""
        return masks.key_lengths(self.length)

    @property
    def positions(self) -> Array:
        """The index of a slot where a token is, -1 where none is yet: (capacity,), or (B, capacity)."""
        backend = backend_of(self.key)
        at = backend.arange(0, self.capacity, self.key)
        return standing(backend, at, lengths(self.length, self.key))

    @answers(_WHO, line="cache.append")
    def append(self, latent: Array, rotated: Array) -> LatentCache:
        """The cache with these tokens behind its own: latent (..., n, R), rotated (..., n, rotary_dim).

        ValueError if they do not fit; NaN where a compiler traces length, as in `KVCache`.
        """
        rank, own = self.rank.shape[0], self.key[..., 0, :, :]
        names = ("latent", "rotated")
        n = check_tokens(_WHO, latent, rotated, own[..., :rank], own[..., rank:], names)
        room_for(_WHO, n, held(_WHO, self.length, tuple(self.key.shape[:-3])), self.capacity)
        token = backend_of(self.key).xp.concat([latent, rotated], axis=-1)[..., None, :, :]
        return LatentCache(behind(self.key, token, self.length), self.rank, self.length + n)
