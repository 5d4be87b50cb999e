"""What every cache is: the keys and values of earlier tokens, as a value."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

from polyattn.arrays import Array
from polyattn.masks.algebra import Mask

__all__ = ["Cache"]


@runtime_checkable
class Cache(Protocol):
    """Earlier tokens, in whatever form: all that a layer asks of a cache, whose class is one file.

        before, cache = cache.length, cache.append(k, v)
        where = {"query_offset": before, "key_positions": None if cache.in_order else cache.positions}
        out = attention(q, cache.key, cache.value, mask=cache.mask, is_causal=True, **where)

    S is the number of slots. What a slot holds is the cache's affair: key and value may be kept (linear, circular),
    gathered (paged) or computed (latent) when they are read; where slots are not in the order of the tokens,
    `positions` says where each key stands. A recurrent cache is none: it has
    a state (`polyattn.linear`) where these have keys.

    One that is not to be read as a whole has `attend(query, **options)` besides, `attention` to what it holds, which
    layers ask then (paged, quantised).

    A cache is a value, best a NamedTuple, so that compilers see its arrays: the old one stays when a new one comes.
    """

    @property
    def key(self) -> Array:
        """(..., Hkv, S, D); what lies in an empty slot nobody may see."""

    @property
    def value(self) -> Array:
        """(..., Hkv, S, E)"""

    @property
    def length(self) -> int | Array:
        """How many tokens came, hence the position of the next one: a number, 0-d, or one for each batch item."""

    @property
    def mask(self) -> Mask:
        """Hides the empty slots."""

    @property
    def positions(self) -> Array:
        """Where the key in each slot stands: integers (S,), or (B, S); negative = an empty slot."""

    @property
    def in_order(self) -> bool:
        """Whether slot i holds token i wherever it holds one, so that positions say no more than mask does."""

    def append(self, key: Array, value: Array, /) -> Self:
        """The cache with these tokens behind its own: key (..., Hkv, n, D), value (..., Hkv, n, E), any n."""
