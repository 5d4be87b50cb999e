"""Documents packed one behind the other: which one a token belongs to, and where it stands in it."""

from __future__ import annotations

from polyattn.arrays import Array, backend_of


def standing_in(cu_seqlens: Array, tokens: int) -> tuple[Array, Array]:
    """The document of each token, n behind the last of n, and its position in it: int32 (tokens,), memory O(tokens)."""
    backend = backend_of(cu_seqlens)
    xp = backend.xp
    bounds = backend.astype(cu_seqlens, xp.int32)
    token = backend.astype(backend.arange(0, tokens, bounds), xp.int32)
    document, n = xp.zeros_like(token), bounds.shape[0] - 1
    step = 1 << n.bit_length()
    while (
        step := step // 2
    ):  # the last bound that is not behind the token, as searchsorted has it where there is int64
        further = document + step
        there = (further <= n) & (backend.take(bounds, backend.clip(further, 0, n), 0) <= token)
        document = xp.where(there, further, document)
    return document, token - backend.take(bounds, document, 0)
