"""Keys and values of earlier tokens, kept for decoding: a protocol, and a file for each cache."""

from polyattn.caches.cache import Cache
from polyattn.caches.circular import CircularCache
from polyattn.caches.evicting import EvictingCache
from polyattn.caches.latent import LatentCache
from polyattn.caches.linear import KVCache
from polyattn.caches.mass import attention_mass, heaviest
from polyattn.caches.paged import PagedCache
from polyattn.caches.quantized import QuantizedCache
from polyattn.caches.reading import cached_attention
from polyattn.caches.recurrent import RecurrentCache

__all__ = [
    "Cache",
    "CircularCache",
    "EvictingCache",
    "KVCache",
    "LatentCache",
    "PagedCache",
    "QuantizedCache",
    "RecurrentCache",
    "attention_mass",
    "cached_attention",
    "heaviest",
]
