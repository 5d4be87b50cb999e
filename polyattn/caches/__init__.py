"""Keys and values of earlier tokens, kept for decoding."""

from polyattn.caches.linear import KVCache

__all__ = ["KVCache"]
