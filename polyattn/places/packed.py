"""Documents packed one behind the other: which one a token belongs to, and where it stands in it."""

from __future__ import annotations

from polyattn.arrays import Array, backend_of


def standing_in(cu_seqlens: Array, tokens: int) -> tuple[Array, Array]:
    """The document of each token, n behind the last of n, and its position in it: int32 (tokens,), memory O(tokens)."""
    backend = backend_of(cu_seqlens)
    xp = backend.xp
    bounds = backend.astype(cu_seqlens, xp.int32)
    token = backend.astype(backend.arange(0, tokens, bounds), xp.int32)
    document = backend.astype(xp.searchsorted(bounds[1:], token, side="right"), xp.int32)
    return document, token - bounds[(document,)]
