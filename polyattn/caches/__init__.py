"""Keys and values of earlier tokens, kept for decoding: a protocol, and a file for each cache."""

from polyattn.caches.cache import Cache
from polyattn.caches.linear import KVCache
from polyattn.caches.recurrent import RecurrentCache

__all__ = ["Cache", "KVCache", "RecurrentCache"]
